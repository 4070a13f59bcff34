"""The integer synapse: exact products of spikes or levels with weights of -1, 0 and 1, on the CPU.

Spikes and the levels of HD-LIF are small multiples of a power of two, so a convolution of them by binary or ternary
weights is one of integers: uint8 by int8, summed exactly, times one scale per channel. oneDNN has it, several times as
fast as in float32. The gradients are those of the float convolution.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from sj_online import host

STEPS = (1 / 4, 1 / 16)
"""What an input may be a multiple of: HD-LIF's levels and spikes, and the means of four of them (an average pool)."""
_FIRST = 256
_INSTRUCTIONS = ("avx512_vnni", "avx_vnni", "amx_int8")


@dataclass(frozen=True, eq=False)
class Geometry:
    """How a convolution is laid out, with a number per dimension."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


@dataclass(frozen=True, eq=False)
class Integers:
    """Weights made ready for the integer synapse.

    Attributes:
        made: the levels as int8, in the library's own layout.
        scale: one per output channel, float32.
        zero: the library's zero points.
        geometry: of a convolution; None for a linear layer.
    """

    made: Tensor
    scale: Tensor
    zero: Tensor
    geometry: Geometry | None


@cache
def why_not() -> str | None:
    """Why the integer synapse cannot run on this machine; None: it can.

    Example:
        >>> why_not() is None or isinstance(why_not(), str)
        True
    """
    if not hasattr(torch.ops.onednn, "qconv_pointwise"):
        return f"torch {torch.__version__} has no onednn.qconv_pointwise"
    if not torch.backends.mkldnn.is_available():
        return "torch is built without oneDNN"
    capabilities = torch.cpu.get_capabilities()
    if not any(capabilities.get(name) for name in _INSTRUCTIONS):
        return f"the CPU has none of {', '.join(_INSTRUCTIONS)}"
    try:
        with torch.device("cpu"):  # for the answer is kept
            right = _first_try()
    except (RuntimeError, NotImplementedError) as error:
        return f"oneDNN's integer convolution does not run: {' '.join(str(error).split())[:200]}"
    return None if right else "oneDNN's integer convolution gives wrong sums"


def _first_try() -> bool:
    levels, q = torch.tensor([1, -1, 0, 1]).view(1, 1, 2, 2), torch.tensor([255, 254, 3, 2], dtype=torch.uint8)
    ready = prepare(levels, torch.ones(1), Geometry((1, 1), (0, 0), (1, 1), 1))
    return run(q.view(1, 1, 2, 2), 0.25, ready).item() == 0.75


def usable() -> bool:
    """Whether it can run here and now, where nobody watches the calls of float synapses that stand in its place."""
    return not host.watched() and not torch.is_autocast_enabled("cpu") and why_not() is None


def laid_out(synapse: nn.Module) -> tuple[Geometry | None, tuple[list[int], str] | None]:
    """The geometry of a convolution (of a linear layer None), and how to pad its input before, if that is needed.

    oneDNN pads with zeros, as much on either side.
    """
    if not isinstance(synapse, nn.Conv1d | nn.Conv2d):
        return None, None
    stride, dilation, groups = synapse.stride, synapse.dilation, synapse.groups
    sides: list[tuple[int, int]] = [(0, 0)] * len(stride)
    if synapse.padding == "same":
        extra = [d * (k - 1) for d, k in zip(dilation, synapse.kernel_size, strict=True)]
        sides = [(n // 2, n - n // 2) for n in extra]
    elif not isinstance(synapse.padding, str):
        sides = [(n, n) for n in synapse.padding]
    if synapse.padding_mode == "zeros" and all(before == after for before, after in sides):
        return Geometry(stride, tuple(before for before, _ in sides), dilation, groups), None
    mode = "constant" if synapse.padding_mode == "zeros" else synapse.padding_mode
    both = [n for side in reversed(sides) for n in side]
    return Geometry(stride, (0,) * len(stride), dilation, groups), (both, mode)


def padded(x: Tensor, padding: tuple[list[int], str] | None) -> Tensor:
    """``x``, padded as :func:`laid_out` says."""
    return x if padding is None else F.pad(x, padding[0], mode=padding[1])


def prepare(levels: Tensor, scale: Tensor, geometry: Geometry | None = None) -> Integers:
    """Make weights ready.

    Args:
        levels: -1, 0 and 1, ``[C_out, C_in / groups, ...]`` with one or two more dimensions, or ``[C_out, C_in]``.
        scale: one for all channels or one for each, with ``numel()`` 1 or C_out.
        geometry: of the convolution; None: a linear layer.
    """
    levels, scale = levels.detach().to(torch.int8), scale.detach().float().flatten().expand(len(levels)).contiguous()
    zero = torch.zeros(len(levels), dtype=torch.int32)
    if geometry is None:
        return Integers(torch.ops.onednn.qlinear_prepack(levels, None), scale, zero, None)
    g = geometry
    made = torch.ops.onednn.qconv_prepack(levels, scale, 1.0, 0, g.stride, g.padding, g.dilation, g.groups, None)
    return Integers(made, scale, zero, geometry)


def run(q: Tensor, step: float, weight: Integers, bias: Tensor | None = None) -> Tensor:
    """The synapse's output in float32: ``scale * (levels applied to step * q) + bias``.

    Args:
        q: uint8, ``[N, C, ...]`` or ``[..., C_in]``.
        step: what one unit of q stands for.
        weight: see :func:`prepare`.
        bias: ``[C_out]``.

    Returns:
        Of a convolution in channels-last layout.

    Example:
        >>> levels = torch.tensor([[1, -1]])
        >>> if why_not() is None:
        ...     y = run(torch.tensor([[8, 2]], dtype=torch.uint8), 0.25, prepare(levels, torch.tensor(0.5)))
        ...     assert y.tolist() == [[0.75]]
    """
    how: tuple[Any, ...] = (1.0, 0, torch.float32, "none", [], "")
    g = weight.geometry
    if g is None:
        flat = q.reshape(-1, q.shape[-1])
        y = torch.ops.onednn.qlinear_pointwise(flat, step, 0, weight.made, weight.scale, weight.zero, bias, *how)
        return y.view(*q.shape[:-1], -1)
    layout = (g.stride, g.padding, g.dilation, g.groups)
    return torch.ops.onednn.qconv_pointwise(q, step, 0, weight.made, weight.scale, weight.zero, bias, *layout, *how)


def quantised(x: Tensor, step: float) -> Tensor:
    """``x / step`` rounded, half to even, and clamped to 0 .. 255, as uint8, in one pass; of NaN 255.

    Example:
        >>> quantised(torch.tensor([-1.0, 0.125, 0.75, 99.0]), 0.25)
        tensor([  0,   0,   3, 255], dtype=torch.uint8)
    """
    return bytes_of(torch.quantize_per_tensor(x, step, 0, torch.quint8))


def levels_of(x: Tensor) -> tuple[Tensor, float] | None:
    """``q`` and ``step`` where ``x == step * q`` everywhere, with q in uint8; None where there is no such step.

    What is no spike or level is mostly told by its first few values.

    Example:
        >>> levels_of(torch.tensor([0.0, 1.0, 0.25]))
        (tensor([0, 4, 1], dtype=torch.uint8), 0.25)
        >>> levels_of(torch.tensor([0.0, 1.0, 0.3])) is None
        True
    """
    x = x.detach()
    if not x.numel() or x.dtype != torch.float32 or x.device.type != "cpu":
        return None
    first = x
    while first.dim() > 1 and first.numel() > _FIRST:
        first = first[0]
    first = first.flatten()[:_FIRST]
    for step in STEPS:
        if _multiples(first, step) is not None:
            q = _multiples(x, step)
            if q is not None:
                return q, step
    return None


def _multiples(x: Tensor, step: float) -> Tensor | None:
    q = torch.quantize_per_tensor(x, step, 0, torch.quint8)
    rest = q.dequantize().sub_(x)
    low, high = torch.aminmax(rest)
    return bytes_of(q) if low == 0 == high else None  # NaN is not 0


def bytes_of(q: Tensor) -> Tensor:
    """The bytes of a tensor of dtype quint8, in its memory (int_repr() copies)."""
    return torch.empty(0, dtype=torch.uint8).set_(q.untyped_storage(), 0, q.shape, q.stride())


class _Synapse(Function):
    """The integer product forward, the float one's gradients backward; the input is kept as uint8."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, q: Tensor, step: float, ready: Integers
    ) -> Tensor:
        ctx.save_for_backward(q, weight)
        ctx.step, ctx.geometry = step, ready.geometry
        return run(q, step, ready, None if bias is None else bias.detach())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (q, weight), g = ctx.saved_tensors, ctx.geometry
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        x = q * ctx.step if need_weight else q.new_empty(1, dtype=grad.dtype).expand(q.shape)  # only its shape
        if g is None:
            flat = grad.reshape(-1, grad.shape[-1])
            grads = (
                grad @ weight if need_x else None,
                flat.T @ x.reshape(-1, x.shape[-1]) if need_weight else None,
                flat.sum(0) if need_bias else None,
            )
        else:
            layout = (g.stride, g.padding, g.dilation, False, [0] * len(g.stride), g.groups)
            needed = [need_x, need_weight, need_bias]
            grads = torch.ops.aten.convolution_backward(grad, x, weight, [len(weight)], *layout, needed)
        return (*grads, None, None, None)


def synapse(x: Tensor, weight: Tensor, bias: Tensor | None, q: Tensor, step: float, ready: Integers) -> Tensor:
    """:func:`run` on the levels ``q`` of ``x``, with the gradients that the float synapse has.

    Args:
        x: the input, ``step * q``; the gradient goes to it.
        weight: the quantised weight in float32, which ``ready`` was made of; its gradient is that of the float synapse.
        bias: ``[C_out]``.
        q: see :func:`levels_of`.
        step: likewise.
        ready: see :func:`prepare`.
    """
    if torch.is_grad_enabled():
        return _Synapse.apply(x, weight, bias, q, step, ready)
    return run(q, step, ready, bias)
