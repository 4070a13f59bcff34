"""Calls that are linear in one input: which they are, and which of their operands is a weight."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sj_online import host
from sj_online.tree import tensors

LINEAR = {F.linear}
CONV = {F.conv1d, F.conv2d, F.conv3d}
CONV_TRANSPOSE = {F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
_SLOTS = LINEAR | CONV | CONV_TRANSPOSE
# Where the two operands stand among the positional arguments.
_PRODUCTS = {
    **dict.fromkeys((torch.matmul, Tensor.matmul, torch.mm, Tensor.mm, torch.bmm, Tensor.bmm, torch.mv, Tensor.mv), 0),
    **dict.fromkeys((torch.inner, Tensor.inner, torch.tensordot, torch.einsum), 0),
}
_SUMS: dict[Any, Any] = {
    torch.addmm: torch.mm,
    Tensor.addmm: torch.mm,
    torch.baddbmm: torch.bmm,
    Tensor.baddbmm: torch.bmm,
    torch.addmv: torch.mv,
    Tensor.addmv: torch.mv,
}
# Functions that torch writes in Python around calls of these.
COMPOSITES = {F.multi_head_attention_forward}
CALLS = frozenset({*_SLOTS, *_PRODUCTS, *_SUMS})


@dataclass
class Product:
    """A product of two tensors, one of which may be a weight.

    Attributes:
        a: the first operand.
        b: the second.
        fn: ``fn(a, b)`` computes it.
        rest: what is added to it, or None.
    """

    a: Tensor
    b: Tensor
    fn: Callable[[Tensor, Tensor], Tensor]
    rest: Tensor | None = None


def product(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Product | None:
    """A call of a product as its two operands; None if it is not one of exactly two tensors."""
    if func is torch.einsum:
        operands = args[1] if len(args) == 2 and isinstance(args[1], list | tuple) else args[1:]
        if len(operands) != 2 or not isinstance(args[0], str):
            return None
        return Product(operands[0], operands[1], lambda a, b: torch.einsum(args[0], a, b))
    if func in _PRODUCTS:
        rest = {name: value for name, value in kwargs.items() if name not in ("other", "mat2", "b", "vec2")}
        operands = [*args[:2], *(value for name, value in kwargs.items() if name not in rest)]
        if len(operands) != 2 or "out" in kwargs:
            return None
        return Product(operands[0], operands[1], lambda a, b: func(a, b, *args[2:], **rest))
    if func in _SUMS and len(args) == 3 and "out" not in kwargs:
        alpha, beta = kwargs.get("alpha", 1), kwargs.get("beta", 1)
        return Product(args[1], args[2], lambda a, b: alpha * _SUMS[func](a, b), beta * args[0])
    return None


def slots(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Input and weight of ``F.linear`` and the convolutions; None for other functions."""
    if func not in _SLOTS:
        return None
    x = args[0] if args else kwargs["input"]
    return x, args[1] if len(args) > 1 else kwargs["weight"]


class Weights:
    """Which tensors of a step are weights: parameters, and what is computed of parameters and buffers alone.

    Example:
        >>> fc = nn.Linear(2, 3)
        >>> weights = Weights(fc)
        >>> weights.names(fc.weight), weights.names(torch.rand(3, 2))
        (('weight',), ())
        >>> half = fc.weight / 2
        >>> weights.follow((fc.weight, 2), {}, half)
        >>> weights.names(half)
        ('weight',)
    """

    def __init__(self, net: nn.Module) -> None:
        self._of: dict[int, tuple[Tensor, tuple[str, ...]]] = {
            id(p): (p, (name,)) for name, p in net.named_parameters()
        }
        self._buffers = {id(buffer) for buffer in net.buffers()}

    def names(self, tensor: Tensor) -> tuple[str, ...]:
        """The parameters that a weight is made of; none for other tensors."""
        kept = self._of.get(id(tensor))
        return kept[1] if kept is not None and kept[0] is tensor else ()

    def follow(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Note the output of a function of weights alone."""
        names: dict[str, None] = {}
        for tensor in tensors((args, kwargs)):
            found = self.names(tensor)
            if not found and id(tensor) not in self._buffers:
                return
            names |= dict.fromkeys(found)
        if names:
            for tensor in tensors(output):
                self._of[id(tensor)] = (tensor, tuple(names))


def inside(func: Any) -> Callable[..., Any]:
    """A composite opened, so that the calls inside it are seen; any other function as it is."""
    return host.opened(func) if func in COMPOSITES else func


def operands(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], weights: Weights
) -> Iterator[tuple[Tensor, Tensor]]:
    """(data, weight) of a call in which exactly one operand is a weight."""
    pair = slots(func, args, kwargs)
    if pair is None:
        made = product(func, args, kwargs)
        pair = (made.a, made.b) if made else None
    if pair is not None and all(isinstance(each, Tensor) for each in pair):
        is_weight = [bool(weights.names(each)) for each in pair]
        if is_weight == [False, True]:
            yield pair
        elif is_weight == [True, False] and func not in _SLOTS:
            yield pair[1], pair[0]
