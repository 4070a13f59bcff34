"""EM-PF and HD-LIF neurons for inference on a CPU: a step in few passes, in place, and levels as uint8.

What a step costs there is memory that is new or read again. The numbers are those of the neuron it was made of; only of
a current that is no number the spike is the largest level.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from sj_online import host
from sj_online.layer.integer import bytes_of
from sj_online.neuron import EMPFNode, HDLIFNode, OnlineNode
from sj_online.neuron.empf.fold import FoldedEMPFNode
from sj_online.neuron.empf.reference import SPIKE_LEVELS_PER_UNIT

STEP = 1 / SPIKE_LEVELS_PER_UNIT
"""Of HD-LIF's levels."""


@dataclass(frozen=True, eq=False)
class _Numbers:
    """What a step computes with: numbers, or with a folded norm one per channel; v is None without a membrane."""

    decay: Tensor | float | None
    threshold: float
    scale: Tensor | None = None
    shift: Tensor | None = None


class Quick(OnlineNode):
    """Mixed into a neuron by :func:`quicken`. Where gradients are asked for, or it is compiled, it is that neuron.

    Attributes:
        gives_bytes: the levels go out as uint8, in units of 1/4; to be set where all that takes them knows.
        scratch: memory for currents by shape, shared by the neurons of a network.
    """

    spike_bits: int
    gives_bytes = False
    scratch: dict[Any, Tensor]
    _numbers: list[_Numbers] | None = None

    def single_step_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """See the neuron; x [N, ...]."""
        if not self._is_quick(x):
            return super().single_step_forward(x, *args, **kwargs)
        v, t = self._memories["v"], self._memories.get("t", 0)
        fits = isinstance(v, Tensor) and v.shape == x.shape and v.dtype == x.dtype and t < (self.num_steps or 1)
        if not fits:
            (v,), t = self._split(self.materialize_states((x,), tuple(self._memories.values()), "s"))
        s = self._quick_step(x, v, t)
        self._memories["v"] = v
        if self.num_steps is not None:
            self._memories["t"] = t + 1
        return s

    def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """See the neuron; x [T, N, ...]."""
        if not self._is_quick(x_seq):
            return super().multi_step_forward(x_seq, *args, **kwargs)
        return torch.stack([self.single_step_forward(x) for x in x_seq])

    def _is_quick(self, x: Tensor) -> bool:
        return not (
            torch.is_grad_enabled()
            or self.training
            or self.store_v_seq
            or x.dtype != torch.float32
            or x.device.type != "cpu"
            or torch.compiler.is_compiling()
            or torch.jit.is_tracing()
            or host.transformed()
        )

    def _quick_step(self, x: Tensor, v: Tensor, t: int) -> Tensor:
        """The spikes of step t; v changes in place."""
        if self._numbers is None:
            self._numbers = _numbers(self)
        n = self._numbers[t]
        over = self._room(x)
        if n.scale is not None and n.shift is not None:
            channels = (-1, *[1] * (x.dim() - 2))
            x = torch.mul(x, n.scale.view(channels), out=over).sub_(n.shift.view(channels))
        if n.decay is None:
            torch.sub(x, n.threshold, out=over)
        else:
            v.mul_(n.decay.view(channels) if isinstance(n.decay, Tensor) else n.decay).add_(x)
            torch.sub(v, n.threshold, out=over)
            v.clamp_(max=n.threshold)
        if not self.spike_bits:
            return over.clamp(min=0)
        q = torch.quantize_per_tensor(over, STEP, 0, torch.quint8)
        levels = bytes_of(q)
        if self.spike_bits < 8:
            levels.clamp_(max=2**self.spike_bits - 1)
        return levels if self.gives_bytes else q.dequantize()

    def _room(self, x: Tensor) -> Tensor:
        key = (x.shape, x.stride())
        if key not in self.scratch:
            self.scratch[key] = torch.empty_like(x)
        return self.scratch[key]

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self._numbers = None
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._numbers = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"scratch": {}, "_numbers": None}


class QuickEMPFNode(Quick, EMPFNode):
    """EM-PF; made by :func:`quicken`."""


class QuickHDLIFNode(Quick, HDLIFNode):
    """HD-LIF; made by :func:`quicken`."""


class QuickFoldedEMPFNode(Quick, FoldedEMPFNode):
    """Either with its membrane norm folded; made by :func:`quicken`."""


_QUICK = {EMPFNode: QuickEMPFNode, HDLIFNode: QuickHDLIFNode, FoldedEMPFNode: QuickFoldedEMPFNode}


def quicken(net: nn.Module) -> list[str]:
    """Let the EM-PF and HD-LIF neurons of a network take few passes, in place; the names of those that do.

    Left as they are: subclasses, membrane norms that are not folded, and spikes of more than 8 bits.

    Example:
        >>> net = nn.Sequential(HDLIFNode(), HDLIFNode(membrane_norm=3), HDLIFNode(spike_bits=9)).eval()
        >>> quicken(net)
        ['0']
        >>> with torch.no_grad():
        ...     net[0](torch.tensor([0.4, 0.8, 1.4, 9.0])).tolist()
        [0.0, 0.25, 1.0, 3.75]
    """
    scratch: dict[Any, Tensor] = {}
    names = []
    for name, module in net.named_modules():
        node: Any = module
        if type(node) in _QUICK and not getattr(node, "membrane_norm", None) and node.spike_bits <= 8:
            node.__class__ = _QUICK[type(node)]
            node.scratch = scratch
            names.append(name)
    return names


def _numbers(node: Any) -> list[_Numbers]:
    """Of each step, or the same for all."""
    thresholds = node.threshold.tolist()
    if isinstance(node, FoldedEMPFNode):
        parts = zip(node.decay, thresholds, node.scale, node.shift, strict=True)
        numbers = [_Numbers(decay.clone(), threshold, scale, shift) for decay, threshold, scale, shift in parts]
    else:
        decays = [None] * len(thresholds) if node.parallel else node.decay.tolist()
        numbers = [_Numbers(decay, threshold) for decay, threshold in zip(decays, thresholds, strict=True)]
    return numbers
