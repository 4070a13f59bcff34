"""Layers that hold their weights as bits and run.

Nothing here is needed to train, and nothing that trains is imported here.
"""

from collections.abc import Callable
from typing import Any

import torch
from spikingjelly.activation_based import layer
from torch import Tensor, nn

from sj_online.deploy.pack import packed_size, unpack
from sj_online.layer import integer
from sj_online.layer.integer import Integers
from sj_online.layer.quantized import Quantized


class Packed(nn.Module):
    """The weight of a host layer, held as bits.

    Attributes:
        runtime: ``'packed'``: unpacked at each call, so that memory stays small for one more pass; ``'unpacked'``:
            once; ``'int8'``: spikes and levels are computed with as integers, see :mod:`sj_online.layer.integer`.
        step: what a unit of an input stands for that comes as uint8.
        channels_last: the layout of the unpacked weight.
    """

    packed: Tensor
    scale: Tensor
    bias: Tensor | None
    bits: int
    shape: torch.Size
    runtime = "packed"
    step = 1.0
    channels_last = False
    _made: tuple[Any, Any] | None = None

    @property
    def weight(self) -> Tensor:
        """The quantised weight ``scale * levels``, the value that the network was trained with."""
        return self._once(self._unpacked) if self.runtime == "unpacked" else self._unpacked()

    def _unpacked(self) -> Tensor:
        weight = self.scale * unpack(self.packed, self.shape, self.bits, self.scale.dtype)
        return weight.contiguous(memory_format=torch.channels_last) if self.channels_last else weight

    def _as_prepared(self) -> tuple[Integers, Any]:
        """The weight for the integer synapse, and how to pad before."""
        geometry, padding = integer.laid_out(self)
        levels = unpack(self.packed, self.shape, self.bits, torch.float32)
        return integer.prepare(levels, self.scale, geometry), padding

    def _once(self, make: Callable[[], Any]) -> Any:
        """What was made of bits and scale, as long as they are the same."""
        tensors = (self.packed, self.scale)
        state = [(t, 0 if t.is_inference() else t._version, t.data_ptr()) for t in tensors]
        if self._made is None or not _same(self._made[0], state):
            self._made = (state, make())
        return self._made[1]

    def _as_integers(self, x: Tensor) -> Tensor | None:
        """The output for spikes and levels; None for what has to be computed in floating point."""
        if x.dtype != torch.uint8 and (torch.is_grad_enabled() or not integer.usable()):
            return None
        ready, padding = self._once(self._as_prepared)
        x = integer.padded(x, padding)
        found = (x, self.step) if x.dtype == torch.uint8 else integer.levels_of(x)
        return None if found is None else integer.run(*found, ready, self.bias)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_made": None}  # a copy has other tensors


class _PackedConv(Packed):
    """Mixed into a convolution of the host, which has ``_conv_forward``."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve as the layer did that was trained: ``[N, C, ...]`` in any step mode, or ``[T, N, C, ...]``."""
        samples = x if x.dim() == len(self.shape) else x.flatten(0, 1)
        y = self._as_integers(samples) if self.runtime == "int8" and samples.dim() == len(self.shape) else None
        if y is not None:
            return y if samples is x else y.unflatten(0, x.shape[:2])
        if samples is x:
            return self._conv_forward(x, self.weight, self.bias)  # type: ignore[operator]
        return super().forward(x)


class PackedConv1d(_PackedConv, layer.Conv1d):
    """The host's ``Conv1d`` with packed weights; made by :func:`pack_synapse`."""


class PackedConv2d(_PackedConv, layer.Conv2d):
    """The host's ``Conv2d`` with packed weights; made by :func:`pack_synapse`."""


class PackedLinear(Packed, layer.Linear):
    """The host's ``Linear`` with packed weights; made by :func:`pack_synapse`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., in_features]`` to ``[..., out_features]``."""
        y = self._as_integers(x) if self.runtime == "int8" else None
        return super().forward(x) if y is None else y


def _same(before: list[tuple[Any, ...]], now: list[tuple[Any, ...]]) -> bool:
    return all(a[0] is b[0] and a[1:] == b[1:] for a, b in zip(before, now, strict=True))


_PACKED = {nn.Conv1d: PackedConv1d, nn.Conv2d: PackedConv2d, nn.Linear: PackedLinear}


def check_packable(synapse: nn.Module, bits: int) -> None:
    """Raise unless :func:`pack_synapse` can pack it."""
    if not isinstance(synapse, tuple(_PACKED)) or bits not in (1, 2):
        raise ValueError(
            f"cannot pack a {type(synapse).__name__} at bits={bits!r};"
            " packed are Conv1d, Conv2d and Linear, bits=1 or 2"
        )


def pack_synapse(synapse: Any, bits: int) -> None:
    """Turn a convolution or linear layer into its packed form, in place; the bits are yet to be loaded.

    The class of the instance changes, as in ``torch.nn.utils.parametrize``: shape, step mode, bias and hooks stay.
    ``packed`` (uint8) and ``scale`` become buffers, so ``load_state_dict`` fills them.

    Args:
        synapse: a ``Conv1d``, ``Conv2d`` or ``Linear`` of torch or of the host, or a subclass; a parametrised or a
            packed one too.
        bits: 1 (one scale per output channel) or 2 (one scale).

    Raises:
        ValueError: not such a layer, or other bits.

    Example:
        >>> linear = layer.Linear(16, 4, bias=False)
        >>> pack_synapse(linear, bits=1)
        >>> {name: tuple(tensor.shape) for name, tensor in linear.state_dict().items()}
        {'packed': (8,), 'scale': (4, 1)}
    """
    check_packable(synapse, bits)
    if isinstance(synapse, Quantized):
        synapse._forget()
    step_mode = getattr(synapse, "step_mode", "s")
    weight = synapse.weight
    made = {name: getattr(synapse, name) for name in getattr(synapse, "parametrizations", ())}  # from other tensors
    scale_shape = (weight.shape[0], *[1] * (weight.dim() - 1)) if bits == 1 else ()
    if made:
        del synapse.parametrizations
    if "weight" in synapse._parameters:
        del synapse.weight
    synapse.__class__ = next(packed for base, packed in _PACKED.items() if isinstance(synapse, base))
    for name in made.keys() - {"weight"}:
        synapse.register_parameter(name, nn.Parameter(made[name].detach(), requires_grad=False))
    synapse.step_mode, synapse.bits, synapse.shape = step_mode, bits, weight.shape
    synapse.register_buffer(
        "packed", torch.zeros(packed_size(weight.numel(), bits), dtype=torch.uint8, device=weight.device)
    )
    synapse.register_buffer("scale", torch.ones(scale_shape, dtype=weight.dtype, device=weight.device))
