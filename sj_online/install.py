"""Other forwards in the place of modules' own, for a while, seen by ``torch.compile`` and unknown to copies."""

import copyreg
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def replaced_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Replace the ``forward`` of modules.

    The instance gets a forward, because compiled code is guarded by that, while it ignores hooks that come later; and
    a class whose copies and pickles are without it.

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
            module.__class__ = _specialised(module)
            module.__dict__["forward"] = forward
        yield
    finally:
        for module in forwards:
            restore(module)


def restore(module: nn.Module) -> None:
    """Take a replaced forward out of a module again."""
    special: Any = type(module)
    if plain(module) is not special:
        module.__dict__.pop("forward", None)
        module.__dict__.update(special._sj_online_own)
        module.__class__ = special._sj_online_plain  # last: an interrupted restore() can be repeated


def restore_all(net: nn.Module) -> None:
    """Take every replaced forward out of a network."""
    for module in net.modules():
        restore(module)


def plain(module: nn.Module) -> type:
    """The class that a module has without replaced forwards."""
    return getattr(type(module), "_sj_online_plain", type(module))


def _specialised(module: nn.Module) -> type:
    """The class of one instance whose forward is replaced."""
    cls: Any = type(module)
    own = {name: value for name, value in vars(module).items() if name == "forward"}

    def reduce_ex(self: nn.Module, protocol: Any) -> Any:
        reduced = cls.__reduce_ex__(self, protocol)
        if isinstance(reduced, str):
            return reduced
        make, args, *rest = reduced
        if rest and isinstance(rest[0], dict):
            rest[0] = {name: value for name, value in rest[0].items() if name != "forward"} | own
        args = tuple(cls if arg is special else arg for arg in args)
        # pickle insists that __newobj__ makes the very class of what it is given.
        # The type stubs leave out what copyreg gives to pickle.
        if make is copyreg.__newobj__ and args == (cls,):  # type: ignore[attr-defined]
            make, args = copyreg._reconstructor, (cls, object, None)  # type: ignore[attr-defined]
        return (make, args, *rest)

    def deepcopy(self: nn.Module, memo: Any) -> Any:
        made = cls.__deepcopy__(self, memo)
        restore(made)
        return made

    members = {"__reduce_ex__": reduce_ex, "_sj_online_plain": cls, "_sj_online_own": own}
    if hasattr(cls, "__deepcopy__"):
        members["__deepcopy__"] = deepcopy
    special = type(cls.__name__, (cls,), {"__module__": cls.__module__, "__doc__": cls.__doc__, **members})
    return special
