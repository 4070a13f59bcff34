"""Spikes that autograd saves for backward, kept as bytes."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from sj_online import host

Hooks = tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]

# The integers of the same size: equal as those is equal bit for bit, -0.0 and 0.0 are not.
BITS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}
# What a spike is a multiple of: one over it. HD-LIF's levels and spikes averaged over 2 x 2 are multiples of 1/4.
SCALES = (1, 4)
MIN_ELEMENTS = 256  # below, bytes saved are fewer than those of the objects that keep them
SAMPLE = 64


@contextmanager
def compressed(exclude: Iterable[Tensor] = ()) -> Iterator[None]:
    """While active, what autograd saves for backward is kept in bytes where it can be: losslessly, bit for bit.

    A floating point tensor whose values are all multiples of 1 or of 1/4 that fit into a byte (spikes, HD-LIF's levels,
    sums and 2 x 2 means of them) is saved as uint8, and restored in backward with its dtype and strides. All else is
    saved as it is, so gradients are the same bits. Finding out costs a pass over what is saved, and on a GPU a
    synchronisation.

    Hooks of :class:`torch.autograd.graph.saved_tensors_hooks` that were active around the context (saving on the CPU,
    :class:`sj_online.analysis.SavedBytes`) get the bytes; hooks inside it get the tensors, and it does not see them.

    Args:
        exclude: tensors that live on anyway, so that bytes would be a second copy: the input of the network.

    Example:
        >>> from sj_online.analysis import SavedBytes
        >>> spikes, weight = torch.rand(4, 256).round(), torch.rand(3, 256, requires_grad=True)
        >>> with SavedBytes(exclude=[weight]) as saved, compressed():
        ...     output = torch.nn.functional.linear(spikes, weight)
        >>> saved.peak
        1024
    """
    outer = host.saving_hooks() or (_hold, _held)
    packer = _Packer(outer, exclude)
    with saved_tensors_hooks(packer.pack, packer.unpack):
        yield


def _hold(tensor: Tensor) -> tuple[Tensor, int]:
    return tensor.detach(), tensor._version  # a saved output would hold its own graph


def _held(held: tuple[Tensor, int]) -> Tensor:
    tensor, version = held
    if tensor._version != version:  # under hooks autograd leaves this check to them
        raise RuntimeError(
            f"a tensor {tuple(tensor.shape)} needed for backward has been modified by an inplace operation: "
            f"it is at version {tensor._version}, saved was version {version}"
        )
    return tensor


class _Bytes:
    """Bytes that the graph holds, for as long as it does."""

    def __init__(self, saved: Any) -> None:
        self.saved = saved


@dataclass
class _Packed:
    """A tensor of which only bytes are held."""

    bytes: _Bytes
    scale: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]


class _Packer:
    """The two hooks."""

    def __init__(self, outer: Hooks, exclude: Iterable[Tensor]) -> None:
        self.save, self.restore = outer
        self.excluded = {tensor.untyped_storage().data_ptr() for tensor in exclude}
        self.known: weakref.WeakValueDictionary[tuple[Any, ...], _Bytes] = weakref.WeakValueDictionary()

    def pack(self, tensor: Tensor) -> Any:
        if not _may_be_spikes(tensor) or tensor.data_ptr() in self.excluded:
            return self.save(tensor)
        flat = tensor.detach().as_strided((tensor.numel(),), (1,))
        sample = flat[:: max(1, len(flat) // SAMPLE)]
        for scale in SCALES:
            if _bytes(sample, scale) is not None and (found := _bytes(flat, scale)) is not None:
                return _Packed(self._once(tensor, found), scale, tensor.dtype, tensor.shape, tensor.stride())
        return self.save(tensor)

    def unpack(self, saved: Any) -> Tensor:
        if not isinstance(saved, _Packed):
            return self.restore(saved)
        flat = _values(self.restore(saved.bytes.saved), saved.scale, saved.dtype)
        return flat.as_strided(saved.shape, saved.stride)

    def _once(self, tensor: Tensor, found: Tensor) -> _Bytes:
        """Hold the bytes of a tensor once, however many operations save it."""
        key = tensor.device, tensor.data_ptr(), len(found)
        known = self.known.get(key)
        # By value too: the address may have been given to another tensor since, or written to.
        if known is None or not torch.equal(self.restore(known.saved), found):
            known = self.known[key] = _Bytes(self.save(found))
        return known


def _may_be_spikes(tensor: Tensor) -> bool:
    """Whether a tensor is of a kind that is looked into: the whole of its storage, and no parameter."""
    plain = type(tensor) is Tensor and tensor.layout == torch.strided and tensor.device.type != "meta"
    if not plain or tensor.dtype not in BITS or tensor.numel() < MIN_ELEMENTS:
        return False
    if tensor.is_neg() or tensor._is_zerotensor():
        return False
    base = tensor._base if tensor._base is not None else tensor
    learns = isinstance(base, nn.Parameter) or (base.is_leaf and base.requires_grad)
    # Part of a storage is kept alive by the rest of it, and bytes would come on top. Dense and whole is one condition.
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    whole = tensor.numel() == span and span * tensor.element_size() == tensor.untyped_storage().nbytes()
    return not learns and whole


def _bytes(flat: Tensor, scale: int) -> Tensor | None:
    """The values as bytes, or None if they are not the same bits again."""
    found = (flat if scale == 1 else flat * scale).to(torch.uint8)
    again = _values(found, scale, flat.dtype)
    return found if torch.equal(again.view(BITS[flat.dtype]), flat.view(BITS[flat.dtype])) else None


def _values(found: Tensor, scale: int, dtype: torch.dtype) -> Tensor:
    values = found.to(dtype)
    return values if scale == 1 else values.div_(scale)
