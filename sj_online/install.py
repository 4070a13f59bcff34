"""Other forwards in the place of modules' own, for a while, seen by ``torch.compile`` and unknown to copies."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def replaced_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Replace the ``forward`` of modules.

    The class of the instance changes, not the instance: compiled code is guarded by the class of a module, while it
    ignores hooks that come later, and a copy or a pickle made meanwhile is of the plain class.

    Example:
        >>> import copy
        >>> fc = nn.Identity()
        >>> with replaced_forwards({fc: lambda x: -x}):
        ...     fc(3), copy.deepcopy(fc)(3)
        (-3, 3)
        >>> fc(3)
        3
    """
    try:
        for module, forward in forwards.items():
            restore(module)  # what an interrupt may have left
            module.__class__ = _specialised(module, forward)
            vars(module).pop("forward", None)
        yield
    finally:
        for module in forwards:
            restore(module)


def restore(module: nn.Module) -> None:
    """Take a replaced forward out of a module again."""
    special: Any = type(module)
    if plain(module) is not special:
        if special._sj_online_own is not None:
            module.forward = special._sj_online_own
        module.__class__ = special._sj_online_plain


def restore_all(net: nn.Module) -> None:
    """Take every replaced forward out of a network."""
    for module in net.modules():
        restore(module)


def plain(module: nn.Module) -> type:
    """The class that a module has without replaced forwards."""
    return getattr(type(module), "_sj_online_plain", type(module))


def _specialised(module: nn.Module, forward: Callable[..., Any]) -> type:
    """The class of a module with another forward, for this one instance."""
    cls: Any = type(module)
    own = vars(module).get("forward")

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    def reduce_ex(self: nn.Module, protocol: Any) -> Any:
        reduced = cls.__reduce_ex__(self, protocol)
        if isinstance(reduced, str):
            return reduced
        make, args, *rest = reduced
        if own is not None and rest and isinstance(rest[0], dict):
            rest[0] = {**rest[0], "forward": own}
        return (make, tuple(cls if arg is special else arg for arg in args), *rest)

    def deepcopy(self: nn.Module, memo: Any) -> Any:
        made = cls.__deepcopy__(self, memo)
        if type(made) is special:
            restore(made)
        return made

    members = {"forward": call, "__reduce_ex__": reduce_ex, "_sj_online_plain": cls, "_sj_online_own": own}
    if hasattr(cls, "__deepcopy__"):
        members["__deepcopy__"] = deepcopy
    special = type(cls.__name__, (cls,), {"__module__": cls.__module__, "__doc__": cls.__doc__, **members})
    return special
