"""The LM-H neuron: parameters and state; the equations are in :mod:`sj_online.neuron.lmh.reference`."""

import math

import torch
from spikingjelly.activation_based import surrogate
from torch import Tensor

from .. import conventions
from ..base import BACKENDS, OnlineNode
from ..units import logit, natural
from . import reference
from .op import lmh


class LMHNode(OnlineNode):
    """LM-H neuron: a dendrite and a soma, with four learnable factors between them.

    Forward, for each step (LM-H, Eq. 4): v_d = mu_d v_d + mu_s v + x; m = lambda_s v + lambda_d v_d;
    o = v_threshold H(m - v_threshold); v = m - o. The neuron emits v_threshold, not 1; v starts at v_threshold / 2 and
    v_d at 0. mu = sigmoid(raw_mu) - 0.5 in (-0.5, 0.5) and lambda = sigmoid(raw_lambda) + 0.5 in (0.5, 1.5) start at 0
    and 1: an IF neuron. The gradient is the exact adjoint of the model with o detached in the reset, and the surrogate
    in place of H'.

    Args:
        num_steps: None: one value per factor for any number of steps (vanilla); T: one per step (radical).
        v_threshold: threshold and height of a spike, above 0; not trained.
        surrogate_function: the host's surrogate; None: the triangle, PiecewiseQuadratic(alpha=1.0). Only the
            triangle has a sequence form, any other runs step by step.
        temporal_grad: True: the exact gradient; False: v and v_d enter each step detached.
        step_mode: ``'s'``: x [N, ...]; ``'m'``: x [T, N, ...].
        backend: ``'torch'``, ``'cupy'`` or ``'auto'``; with a surrogate other than the triangle not ``'cupy'``.
        store_v_seq: keep the potentials of the soma as ``v_seq`` [T, N, ...].
        tau: of the host: lambda_s starts at the leak 1 - 1/tau; above 2, as lambda_s is above 0.5. None: at 1.
        decay_input: of the host; only False: x is not scaled.
        v_reset: of the host; only None: a spike leaves the membrane by subtraction.
        detach_reset: of the host; only True: as in the paper.

    Raises:
        ValueError: an argument out of range, or one of the host's that cannot be honoured.

    Example:
        >>> node = LMHNode(step_mode="m")
        >>> node(torch.tensor([[0.25], [0.25], [0.25], [0.25]])).flatten().tolist()
        [0.0, 1.0, 0.0, 0.0]
    """

    parameters_per_step = 4
    paper = "LM-H (Hao et al. 2024)"

    def __init__(
        self,
        num_steps: int | None = None,
        *,
        v_threshold: float = 1.0,
        surrogate_function: surrogate.SurrogateFunctionBase | None = None,
        temporal_grad: bool = True,
        step_mode: str = "s",
        backend: str = "torch",
        store_v_seq: bool = False,
        tau: float | None = None,
        decay_input: bool = False,
        v_reset: float | None = None,
        detach_reset: bool = True,
    ) -> None:
        conventions.refuse(
            type(self).__name__,
            {
                "detach_reset": (detach_reset, True, "its gradient leaves the reset out"),
                "v_reset": (v_reset, None, "its reset subtracts v_threshold"),
                "decay_input": (decay_input, False, "its factors act on v and v_d alone"),
            },
        )
        if not (v_threshold > 0 and math.isfinite(v_threshold)):
            raise ValueError(f"v_threshold={v_threshold!r} is not a finite number above 0")
        super().__init__(
            num_steps,
            memories={"v": v_threshold / 2, "v_d": 0.0},
            v_threshold=v_threshold,
            surrogate_function=surrogate_function or surrogate.PiecewiseQuadratic(alpha=1.0),
            temporal_grad=temporal_grad,
            step_mode=step_mode,
            backend=backend,
            store_v_seq=store_v_seq,
        )
        for name in ("mu_d", "mu_s", "lambda_s", "lambda_d"):
            self._add_raw(name, 0.0, learnable=True)
        if tau is not None and not self.adopt_leak(conventions.leak_of(tau)):
            raise ValueError(f"tau={tau!r} is not above 2: lambda_s = 1 - 1/tau lies inside (0.5, 1.5)")

    @property
    def supported_backends(self) -> tuple[str, ...]:
        """What ``backend`` may be: with a surrogate other than the triangle not ``'cupy'``."""
        return BACKENDS if self._is_triangle() else ("torch", "auto")

    def _is_triangle(self) -> bool:
        return type(self.surrogate_function) is surrogate.PiecewiseQuadratic and self.surrogate_function.spiking

    @property
    def mu_d(self) -> Tensor:
        """Dendrite to dendrite [1] or [num_steps], in (-0.5, 0.5)."""
        return self.raw_mu_d.sigmoid() - 0.5

    @property
    def mu_s(self) -> Tensor:
        """Soma to dendrite [1] or [num_steps], in (-0.5, 0.5)."""
        return self.raw_mu_s.sigmoid() - 0.5

    @property
    def lambda_s(self) -> Tensor:
        """Soma to soma [1] or [num_steps], in (0.5, 1.5)."""
        return self.raw_lambda_s.sigmoid() + 0.5

    @property
    def lambda_d(self) -> Tensor:
        """Dendrite to soma [1] or [num_steps], in (0.5, 1.5)."""
        return self.raw_lambda_d.sigmoid() + 0.5

    def leak(self, t: int) -> Tensor | float | None:
        """None: dendrite and soma leak differently."""
        return None

    def adopt_leak(self, leak: float) -> bool:
        """As lambda_s, in (0.5, 1.5): with the other factors at their start this is LIF with that leak."""
        inside = 0.5 < leak < 1.5
        if inside:
            self.raw_lambda_s.data.fill_(logit(leak - 0.5))
        return inside

    def _factors(self, t: int, steps: int, dtype: torch.dtype) -> Tensor:
        raw_mu, raw_lambda = (self.raw_mu_d, self.raw_mu_s), (self.raw_lambda_s, self.raw_lambda_d)
        mu = [self._at(p, t, steps, dtype).sigmoid() - 0.5 for p in raw_mu]
        return torch.stack(mu + [self._at(p, t, steps, dtype).sigmoid() + 0.5 for p in raw_lambda])

    def step(self, x: Tensor, states: tuple[Tensor, ...], t: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See :meth:`OnlineNode.step`."""
        v, v_d = states
        factors = self._factors(t, 1, v.dtype)[:, 0]
        o, v_d, v = reference.step(x, v_d, v, factors, self.v_threshold, self.surrogate_function)
        return o, (v, v_d)

    def sequence(
        self, x_seq: Tensor, states: tuple[Tensor, ...], t: int
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
        """All T steps in one operator if H' is the triangle; see :meth:`OnlineNode.sequence`."""
        if not self._is_triangle():
            return super().sequence(x_seq, states, t)
        v, v_d = states
        o_seq, v_d, v, _, v_seq = lmh(
            x_seq.contiguous(),
            v_d.contiguous(),
            v.contiguous(),
            self._factors(t, x_seq.shape[0], v.dtype),
            self.v_threshold,
            self.surrogate_function.alpha,
            self.store_v_seq or torch.is_grad_enabled(),
            self.temporal_grad,
            self.runs_on(x_seq),
        )
        return o_seq, (v, v_d), v_seq

    def extra_repr(self) -> str:
        """The neuron's arguments, factors in natural units."""
        factors = (f"{name}={natural(getattr(self, name))}" for name in ("mu_d", "mu_s", "lambda_s", "lambda_d"))
        return f"v_threshold={self.v_threshold}, {', '.join(factors)}, {super().extra_repr()}"
