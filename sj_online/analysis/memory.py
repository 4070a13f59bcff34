"""Memory of training, counted in bytes saved for backward: deterministic, on any device."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class _Saved:
    """A tensor held by the autograd graph; tells its counter when the graph lets go of it."""

    def __init__(self, counter: "SavedBytes", tensor: Tensor) -> None:
        self.counter = counter
        self.tensor = tensor.detach()  # a saved output would hold its own graph
        held = not tensor._is_zerotensor()  # the tangent of a constant holds no memory
        self.storage = tensor.untyped_storage().data_ptr() if held else 0
        span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        start = tensor.storage_offset() * tensor.element_size()
        self.region = (start, start + (span if held and tensor.numel() else 0) * tensor.element_size())

    def __del__(self) -> None:
        self.counter._released(self)


class SavedBytes:
    """Counts the bytes that autograd saves for backward while the context is active.

    Each region of a storage counts once, for as long as any graph holds it.

    Args:
        exclude: tensors whose storages do not count: parameters, the caller's input.

    Attributes:
        now: bytes held at present.
        peak: the largest value of ``now``.

    Example:
        >>> import torch
        >>> x = torch.ones(10, requires_grad=True)
        >>> with SavedBytes() as saved:
        ...     y = (x * 2).exp().sum()
        >>> saved.peak
        40
        >>> y.backward()
        >>> saved.now
        0
    """

    def __init__(self, exclude: Iterable[Tensor] = ()) -> None:
        self._excluded = {tensor.untyped_storage().data_ptr() for tensor in exclude}
        self._held: dict[int, list[tuple[int, int]]] = {}
        self.now = 0
        self.peak = 0
        self._hooks = saved_tensors_hooks(self._pack, lambda saved: saved.tensor)

    def __enter__(self) -> "SavedBytes":
        self._hooks.__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        self._hooks.__exit__(*args)

    def _pack(self, tensor: Tensor) -> _Saved:
        saved = _Saved(self, tensor)
        if saved.storage not in self._excluded:
            self._change(saved.storage, lambda regions: regions.append(saved.region))
            self.peak = max(self.peak, self.now)
        return saved

    def _released(self, saved: _Saved) -> None:
        if saved.storage not in self._excluded:
            self._change(saved.storage, lambda regions: regions.remove(saved.region))

    def _change(self, storage: int, change: Any) -> None:
        regions = self._held.setdefault(storage, [])
        before = _union(regions)
        change(regions)
        self.now += _union(regions) - before
        if not regions:
            del self._held[storage]


def _union(regions: list[tuple[int, int]]) -> int:
    """The bytes covered by at least one of the regions."""
    covered = end = 0
    for start, stop in sorted(regions):
        covered += max(0, stop - max(start, end))
        end = max(end, stop)
    return covered
