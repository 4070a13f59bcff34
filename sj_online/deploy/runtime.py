"""Layers that hold their weights as bits and run.

Nothing here is needed to train, and nothing that trains is imported here.
"""

from typing import Any

import torch
from spikingjelly.activation_based import layer
from torch import Tensor, nn

from sj_online.deploy.pack import packed_size, unpack


class Packed(nn.Module):
    """The weight of a host layer, held as bits. It is unpacked at each call: memory stays small for one more pass."""

    packed: Tensor
    scale: Tensor
    bits: int
    shape: torch.Size

    @property
    def weight(self) -> Tensor:
        """The quantised weight ``scale * levels``, the value that the network was trained with."""
        return self.scale * unpack(self.packed, self.shape, self.bits, self.scale.dtype)


class _PackedConv(Packed):
    """Mixed into a convolution of the host, which has ``_conv_forward``."""

    bias: nn.Parameter | None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve as the layer did that was trained: ``[N, C, ...]`` in any step mode, or ``[T, N, C, ...]``."""
        if x.dim() == len(self.shape):
            return self._conv_forward(x, self.weight, self.bias)  # type: ignore[operator]
        return super().forward(x)


class PackedConv1d(_PackedConv, layer.Conv1d):
    """The host's ``Conv1d`` with packed weights; made by :func:`pack_synapse`."""


class PackedConv2d(_PackedConv, layer.Conv2d):
    """The host's ``Conv2d`` with packed weights; made by :func:`pack_synapse`."""


class PackedLinear(Packed, layer.Linear):
    """The host's ``Linear`` with packed weights; made by :func:`pack_synapse`."""


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
