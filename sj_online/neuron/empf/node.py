"""The EM-PF neuron: parameters and state; the equations are in :mod:`sj_online.neuron.empf.reference`."""

import torch
from spikingjelly.activation_based import surrogate
from torch import Tensor, nn

from sj_online import host

from .. import conventions
from ..base import BACKENDS, OnlineNode
from ..units import first, logit, natural
from . import reference
from .op import empf


class EMPFNode(OnlineNode):
    """EM-PF neuron: leaky integration, float spikes of the overshoot, reset to the threshold exactly.

    Forward, for each step: m = decay v + x; s = relu(m - threshold); v = m - s = min(m, threshold) (EM-PF, Eq. 3-5).
    Both parameters are sigmoids of ``raw_decay`` and ``raw_threshold``. The gradient of s is 1 where m >= threshold,
    else 0: no surrogate. Where it fires, a neuron passes nothing on in time, so that there the online gradient
    (``temporal_grad=False``) equals the exact one (EM-PF, Theorem 4.2).

    It wants a batch norm in front, as the papers' networks have: a neuron whose current never reaches its threshold
    emits nothing and passes no gradient on, so that nothing in front of it learns. For the same reason there is none
    behind the readout.

    Args:
        num_steps: None: one decay and threshold for any number of steps; T: one of each per step.
        decay: leak in (0, 1), at the start.
        threshold: threshold in (0, 1), at the start.
        learnable: whether raw parameters are trained; else they are buffers of the same names.
        membrane_norm: number of channels C of x [N, C, ...]: m is replaced by alpha m + beta BN(m), with its own
            BatchNorm per step and alpha, beta learnable in (0, 1), 0.5 at the start (EM-PF, Eq. 6). None: without.
        parallel: no membrane, s = relu(x - threshold) (EM-PF, Algorithm 1); v stays zero and there is no ``raw_decay``.
        temporal_grad: True: the exact gradient (STBP); False: the online gradient.
        step_mode: ``'s'``: x [N, ...]; ``'m'``: x [T, N, ...].
        backend: ``'torch'``, ``'cupy'`` or ``'auto'``; with membrane_norm not ``'cupy'``.
        store_v_seq: keep the membrane potentials as ``v_seq`` [T, N, ...].
        tau: the host's word for ``decay``, which is 1 - 1/tau.
        v_threshold: the host's word for ``threshold``. Read from the node it is the threshold as it is now, a float;
            of the first step, where each has its own; nan on the meta device.
        decay_input: of the host; only False: x is not scaled.
        v_reset: of the host; only None: what is emitted leaves the membrane.
        surrogate_function: of the host; only None: the spikes are their own derivative.
        detach_reset: of the host; only False: the reset is part of the gradient.

    Raises:
        ValueError: an argument out of range, one of the host's that cannot be honoured, or membrane_norm together with
            parallel.

    Example:
        >>> node = EMPFNode(step_mode="m")
        >>> node(torch.tensor([[0.25], [0.5], [0.25]])).flatten().tolist()
        [0.0, 0.125, 0.0]
        >>> node.v.tolist()
        [0.5]
    """

    paper = "EM-PF (Comprehensive Online Training and Deployment for SNNs)"
    parameters_per_step = 2
    spike_bits = 0

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
        tau: float | None = None,
        v_threshold: float | None = None,
        decay_input: bool = False,
        v_reset: float | None = None,
        surrogate_function: surrogate.SurrogateFunctionBase | None = None,
        detach_reset: bool = False,
    ) -> None:
        conventions.refuse(
            type(self).__name__,
            {
                "surrogate_function": (surrogate_function, None, "it has none, its spikes are their own derivative"),
                "detach_reset": (detach_reset, False, "its reset is exact; temporal_grad=False cuts all of time"),
                "v_reset": (v_reset, None, "a neuron that fires is reset to its threshold"),
                "decay_input": (decay_input, False, "the leak acts on v alone"),
            },
        )
        decay = conventions.renamed("decay", decay, 0.5, "tau", None if tau is None else conventions.leak_of(tau))
        threshold = conventions.renamed("threshold", threshold, 0.5, "v_threshold", v_threshold)
        for name, value in (("decay", decay), ("threshold", threshold)):
            if not 0 < value < 1:
                raise ValueError(f"{name}={value!r} is not inside the open interval (0, 1)")
        if membrane_norm is not None and (type(membrane_norm) is not int or membrane_norm < 1 or parallel):
            raise ValueError(
                f"membrane_norm={membrane_norm!r}, parallel={parallel!r}: membrane_norm is None or a number of channels"
                " of at least 1, and None if parallel, where there is no membrane"
            )
        super().__init__(
            num_steps,
            memories={"v": 0.0},
            v_threshold=threshold,
            surrogate_function=None,
            temporal_grad=temporal_grad,
            step_mode=step_mode,
            backend=backend,
            store_v_seq=store_v_seq,
            detach_reset=False,
        )
        self.parallel = parallel
        if not parallel:
            self._add_raw("decay", logit(decay), learnable)
        self._add_raw("threshold", logit(threshold), learnable)
        self.membrane_norm: nn.ModuleList | None = None
        if membrane_norm is not None:
            self.membrane_norm = nn.ModuleList(_MembraneNorm(membrane_norm) for _ in range(num_steps or 1))
            self._add_raw("alpha", 0.0, learnable)
            self._add_raw("beta", 0.0, learnable)
            self.backend = backend  # again, as there is no kernel for it

    @property
    def supported_backends(self) -> tuple[str, ...]:
        """What ``backend`` may be: with membrane_norm not ``'cupy'``."""
        return ("torch", "auto") if getattr(self, "membrane_norm", None) else BACKENDS

    @property
    def decay(self) -> Tensor:
        """Leak [1] or [num_steps], in (0, 1); zero if parallel."""
        return torch.zeros_like(self.raw_threshold) if self.parallel else self.raw_decay.sigmoid()

    @property
    def threshold(self) -> Tensor:
        """Threshold [1] or [num_steps], in (0, 1)."""
        return self.raw_threshold.sigmoid()

    @property
    def v_threshold(self) -> float:
        """See the class; no forward reads it, as on a GPU that waits for the device."""
        return first(self.threshold)

    @v_threshold.setter
    def v_threshold(self, value: float) -> None:
        if not hasattr(self, "raw_threshold"):  # the host's constructor comes first, ours follows it
            return
        if not isinstance(value, (int, float)) or not 0 < value < 1:
            raise ValueError(f"v_threshold={value!r} is not a number inside the open interval (0, 1)")
        self.raw_threshold.data.fill_(logit(value))

    def leak(self, t: int) -> Tensor | float | None:
        """See :meth:`OnlineNode.leak`; with membrane_norm every channel has its own."""
        if self.membrane_norm:
            return None
        return 0.0 if self.parallel else self.decay[0 if self.num_steps is None else t]

    def adopt_leak(self, leak: float) -> bool:
        """As decay, in (0, 1); not if parallel."""
        inside = not self.parallel and 0 < leak < 1
        if inside:
            self.raw_decay.data.fill_(logit(leak))
        return inside

    def step(self, x: Tensor, states: tuple[Tensor, ...], t: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See :meth:`OnlineNode.step`."""
        (v,) = states
        threshold = self._at(self.raw_threshold, t, 1, v.dtype).sigmoid()[0]
        if self.parallel:
            return reference.fire_parallel(x.to(v.dtype), threshold, self.spike_bits), states
        decay = self._at(self.raw_decay, t, 1, v.dtype).sigmoid()[0]
        if not (self.membrane_norm or torch.is_grad_enabled() or host.transformed()):
            s, v = reference.step_without_graph(x, v, decay, threshold, self.spike_bits)
            return s, (v,)
        m = reference.charge(x, v, decay)
        if self.membrane_norm:
            alpha, beta = (self._at(p, t, 1, v.dtype).sigmoid()[0] for p in (self.raw_alpha, self.raw_beta))
            m = reference.normalize(m, self.membrane_norm[t], alpha, beta)
        s, v = reference.fire(m, threshold, self.spike_bits, self.temporal_grad)
        return s, (v,)

    def sequence(
        self, x_seq: Tensor, states: tuple[Tensor, ...], t: int
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
        """All T steps in one operator, step by step with membrane_norm; see :meth:`OnlineNode.sequence`."""
        if self.membrane_norm:
            return super().sequence(x_seq, states, t)
        (v,), steps, backend = states, x_seq.shape[0], self.runs_on(x_seq)
        threshold = self._at(self.raw_threshold, t, steps, v.dtype).sigmoid()
        decay = torch.zeros_like(threshold) if self.parallel else self._at(self.raw_decay, t, steps, v.dtype).sigmoid()
        if self.parallel and backend == "torch":
            threshold = threshold.view(-1, *(1 for _ in v.shape))
            s_seq = reference.fire_parallel(x_seq.to(v.dtype), threshold, self.spike_bits)
            return s_seq.to(x_seq.dtype), states, v.expand_as(x_seq)
        learns = torch.is_grad_enabled()
        keep = "v" if self.store_v_seq or (learns and decay.requires_grad) else "fired" if learns else ""
        x_seq, v0 = x_seq.contiguous(), v.contiguous()  # so that every backend and the compiler agree on all strides
        s_seq, v_last, v_seq = empf(x_seq, v0, decay, threshold, self.spike_bits, keep, self.temporal_grad, backend)
        if self.parallel:
            return s_seq, states, v.expand_as(x_seq)
        return s_seq, (v_last,), v_seq

    def extra_repr(self) -> str:
        """The neuron's arguments, decay and threshold in natural units."""
        decay = "parallel" if self.parallel else f"decay={natural(self.decay)}"
        bits = f", spike_bits={self.spike_bits}" if self.spike_bits else ""
        return f"{decay}, threshold={natural(self.threshold)}{bits}, {super().extra_repr()}"


class _MembraneNorm(nn.BatchNorm2d):
    """BatchNorm2d that also takes [N, C] and [N, C, L], so that a neuron behind a linear layer can have one."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass
