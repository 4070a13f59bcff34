"""What every tensor comes from: labels that follow it through all that is computed of it, below autograd."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sj_online import host
from sj_online.tree import tensors

EARLIER = -1
aten = torch.ops.aten
# Products of matrices, and where their factors stand: where one of these meets a weight outside of a known call, the
# weight is not traced.
_PRODUCTS = {
    **dict.fromkeys((aten.mm, aten.bmm, aten.mv, aten.convolution), slice(0, 2)),
    **dict.fromkeys((aten.addmm, aten.baddbmm, aten.addmv), slice(1, 3)),
    aten._trilinear: slice(0, 3),
}

# Take a shape, a dtype and a device from a tensor, and no value.
_OF_A_SHAPE = {
    getattr(aten, name)
    for kind in ("empty", "zeros", "ones", "full", "rand", "randn", "randint")
    for name in (f"{kind}_like", f"new_{kind}")
    if hasattr(aten, name)
}


class Sources(TorchDispatchMode):
    """Follows what every tensor comes from, by its memory: views, changes in place and detaching keep it."""

    def __init__(self) -> None:
        super().__init__()
        self.of_storage: dict[Any, frozenset[Any]] = {}
        self.known_call = 0
        self.products: dict[str, None] = {}

    def of(self, tensor: Tensor) -> frozenset[Any]:
        """The labels of a tensor."""
        key = host.storage(tensor)
        return frozenset() if key is None else self.of_storage.get(key, frozenset())

    def set(self, value: Any, labels: frozenset[Any]) -> None:
        """Label every tensor in a value."""
        for tensor in tensors(value):
            key = host.storage(tensor)
            if key is not None:
                self.of_storage[key] = labels

    def new_step(self) -> None:
        """Currents of earlier steps are over, and their spikes count as earlier ones, whichever step they are of."""
        self.of_storage = {
            key: frozenset(
                ("spike", label[1], EARLIER) if label[0] == "spike" else label
                for label in labels
                if label[0] != "current"
            )
            for key, labels in self.of_storage.items()
            if not key.expired()
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if getattr(func, "overloadpacket", None) in _OF_A_SHAPE:
            return output
        given = [self.of(tensor) for tensor in tensors((args, kwargs or {}))]
        labels = frozenset().union(*given)
        self.set(output, labels)
        kind = getattr(func, "overloadpacket", None)
        if not self.known_call and kind in _PRODUCTS:
            factors = [self.of(tensor) for tensor in tensors(args[_PRODUCTS[kind]])]
            weights = [g for g in factors if g and all(label[0] == "weight" for label in g)]
            if any(label[0] != "weight" for g in factors for label in g):
                self.products |= dict.fromkeys(label[1] for g in weights for label in g)
        return output
