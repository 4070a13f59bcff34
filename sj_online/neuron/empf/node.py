"""The EM-PF neuron: parameters and state; the equations are in :mod:`sj_online.neuron.empf.reference`."""

import math
from typing import Any

import torch
from torch import Tensor

from ..base import OnlineNode, natural
from . import reference
from .op import empf


class EMPFNode(OnlineNode):
    """EM-PF neuron: leaky integration, float spikes of the overshoot, reset to the threshold exactly.

    Forward, for each step: m = decay v + x; s = relu(m - threshold); v = m - s = min(m, threshold) (EM-PF, Eq. 3-5).
    Both parameters are sigmoids of ``raw_decay`` and ``raw_threshold``. The gradient of s is 1 where m >= threshold,
    else 0: no surrogate. Where it fires, a neuron passes nothing on in time, so that there the online gradient
    (``temporal_grad=False``) equals the exact one (EM-PF, Theorem 4.2).

    Args:
        num_steps: None: one decay and threshold for any number of steps; T: one of each per step.
        decay: leak in (0, 1), at the start.
        threshold: threshold in (0, 1), at the start.
        learnable: whether raw parameters are trained; else they are buffers of the same names.
        membrane_norm: number of channels C: batch normalisation of the membrane, one BatchNorm2d(C) per step, mixed
            in with learnable weights (EM-PF, Eq. 6). None: without.
        parallel: no membrane, s = relu(x - threshold) (EM-PF, Algorithm 1); no ``raw_decay`` then.
        temporal_grad: True: the exact gradient (STBP); False: the online gradient.
        step_mode: ``'s'``: x [N, ...]; ``'m'``: x [T, N, ...].
        backend: ``'torch'``, ``'cupy'`` or ``'auto'``.
        store_v_seq: keep the membrane potentials as ``v_seq`` [T, N, ...].

    Raises:
        ValueError: an argument out of range, or membrane_norm together with parallel.

    Example:
        >>> node = EMPFNode(step_mode="m")
        >>> node(torch.tensor([[0.25], [0.5], [0.25]])).flatten().tolist()
        [0.0, 0.125, 0.0]
        >>> node.v.tolist()
        [0.5]
    """

    paper = "EM-PF: Effective multi-precision firing neuron (online training, random back-propagation)"

    def __init__(
        self,
        num_steps: int | None = None,
        *,
        decay: float = 0.5,
        threshold: float = 0.5,
        learnable: bool = True,
        membrane_norm: int | None = None,
        parallel: bool = False,
        temporal_grad: bool = True,
        step_mode: str = "s",
        backend: str = "torch",
        store_v_seq: bool = False,
    ) -> None:
        for name, value in (("decay", decay), ("threshold", threshold)):
            if not 0 < value < 1:
                raise ValueError(f"{name}={value!r} is not inside the open interval (0, 1)")
        super().__init__(
            num_steps,
            memories={"v": 0.0},
            v_threshold=threshold,
            surrogate_function=None,
            temporal_grad=temporal_grad,
            step_mode=step_mode,
            backend=backend,
            store_v_seq=store_v_seq,
        )
        self.spike_bits = 0
        self.parallel = parallel
        if not parallel:
            self._add_raw("decay", _logit(decay), learnable)
        self._add_raw("threshold", _logit(threshold), learnable)

    @property
    def decay(self) -> Tensor:
        """Leak [1] or [num_steps], in (0, 1); zero if parallel."""
        return torch.zeros_like(self.raw_threshold) if self.parallel else self.raw_decay.sigmoid()

    @property
    def threshold(self) -> Tensor:
        """Threshold [1] or [num_steps], in (0, 1)."""
        return self.raw_threshold.sigmoid()

    def leak(self, t: int) -> Tensor | float | None:
        """See :meth:`OnlineNode.leak`."""
        return 0.0 if self.parallel else self.decay[0 if self.num_steps is None else t]

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        """One step; see the host's MemoryModule. inputs [N, ...]."""
        x, v, t = inputs[0], states[0], sum(states[1:])
        if self.runs_on(x) == "cupy":
            s_seq, states, _ = self.sequence(x[None], states)
            return (s_seq[0],), states
        decay, threshold = (self._at(p, t, 1, x)[0] for p in (self.decay, self.threshold))
        m = reference.charge(x, v if self.temporal_grad else v.detach(), decay)
        s, v = reference.fire(m, threshold, self.spike_bits, self.temporal_grad)
        return (s.to(x.dtype),), (v, *(t + 1 for t in states[1:]))

    def sequence(self, x_seq: Tensor, states: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...], Tensor | None]:
        """All T steps in one operator; see :meth:`OnlineNode.sequence`."""
        steps, t = x_seq.shape[0], sum(states[1:])
        decay, threshold = (self._at(p, t, steps, x_seq) for p in (self.decay, self.threshold))
        store_v = self.store_v_seq or torch.is_grad_enabled()
        s_seq, v, v_seq = empf(
            x_seq, states[0], decay, threshold, self.spike_bits, store_v, self.temporal_grad, self.runs_on(x_seq)
        )
        return s_seq, (v, *(t + steps for t in states[1:])), v_seq

    def extra_repr(self) -> str:
        """The neuron's arguments, decay and threshold in natural units."""
        decay = "parallel" if self.parallel else f"decay={natural(self.decay)}"
        return f"{decay}, threshold={natural(self.threshold)}, {super().extra_repr()}"


def _logit(p: float) -> float:
    return math.log(p / (1 - p))
