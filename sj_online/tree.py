"""Tensors inside lists, tuples, dicts, deques and dataclasses, however nested: outputs, targets and memories."""

import copy
import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor


def tree_map(fn: Callable[..., Any], value: Any, *others: Any, of: type | tuple[type, ...] = Tensor) -> Any:
    """The same structure with ``fn`` of every tensor; what is no tensor stays, what holds no tensor too.

    Args:
        fn: gets the tensor, and what stands in its place in each of ``others``.
        value: a tensor or a nested container.
        others: of the same structure.
        of: what ``fn`` is applied to.

    Example:
        >>> import torch
        >>> tree_map(lambda t: t.tolist(), {"a": [torch.ones(2), 3]})
        {'a': [[1.0, 1.0], 3]}
    """
    if isinstance(value, of):
        return fn(value, *others)
    made: Any
    if isinstance(value, dict):
        made = copy.copy(value)
        for key in value:
            made[key] = tree_map(fn, value[key], *(other[key] for other in others), of=of)
        return made
    if isinstance(value, list | tuple | deque):
        items = [tree_map(fn, *items, of=of) for items in zip(value, *others, strict=True)]
        if isinstance(value, deque):
            return deque(items, value.maxlen)
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        made = copy.copy(value)
        for field in dataclasses.fields(value):
            rest = (getattr(other, field.name) for other in others)
            object.__setattr__(made, field.name, tree_map(fn, getattr(value, field.name), *rest, of=of))
        return made
    return value


def at(value: Any, index: Any) -> Any:
    """``[index]`` of every tensor: a step of a window, or rows of a batch.

    Example:
        >>> import torch
        >>> at({"a": torch.arange(3)}, 2)
        {'a': tensor(2)}
    """
    return tree_map(lambda tensor: tensor[index], value)


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in a nested container, in order.

    Example:
        >>> import torch
        >>> [t.item() for t in tensors((torch.tensor(1), {"b": torch.tensor(2)}))]
        [1, 2]
    """
    found: list[Tensor] = []
    tree_map(lambda tensor: found.append(tensor), value)
    yield from found
