"""From a name and plain options to a call: the options are checked against the signature before anything is built."""

import inspect
import types
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import partial
from typing import Any

from sj_online import convert, registry
from sj_online.app.recipe import Named
from sj_online.loss import OverWindow

ONE = {
    "models": "model",
    "data": "data set",
    "trainers": "training rule",
    "losses": "loss",
    "optimizers": "optimizer",
    "schedules": "schedule",
    "augmentations": "augmentation",
    "callbacks": "callback",
    "converters": "conversion",
}
CONVERTERS = ("qcfs_to_lmh", "quantize_synapses", "relu_to_qcfs", "swap_neurons")


def entry(group: str, name: str) -> Callable[..., Any]:
    """What is registered, or one of this package's conversions."""
    if group != "converters":
        found = registry.get(group, name)
    elif name in CONVERTERS and hasattr(convert, name):
        found = getattr(convert, name)
    else:
        raise ValueError(f"{name[:80]!r} is not one of the conversions {', '.join(CONVERTERS)}")
    if not callable(found):
        raise ValueError(f"{ONE[group]} {name} is registered as a {type(found).__name__}, which cannot be called")
    return found


def check(group: str, named: Named, given: int = 0, reserved: Sequence[str] = ()) -> None:
    """Raise unless the options fit the signature of what is named; it is imported, not called.

    Args:
        group: where it is registered.
        named: the name and its options.
        given: how many arguments come first, before the options.
        reserved: arguments that are not options.

    Raises:
        ValueError: one line that names the option and what is allowed.

    Example:
        >>> check("optimizers", Named("SGD", {"momentun": 0.9}), given=1)
        Traceback (most recent call last):
        ValueError: optimizer SGD: momentun is not an option; it has lr, momentum, dampening, weight_decay, ...
    """
    what = f"{ONE[group]} {named.name}"
    found, anything = parameters(entry(group, named.name), given)
    for name, value in named.options.items():
        if name in reserved:
            raise ValueError(f"{what}: {name} cannot be set here: the recipe does")
        if name in found:
            annotation = found[name].annotation
            if not _may_be(value, annotation):
                raise ValueError(f"{what}: {name}={str(value)[:80]!r} must be {_readable(annotation)}")
        elif not anything:
            allowed = ", ".join(each for each in found if each not in reserved)
            raise ValueError(f"{what}: {name[:80]} is not an option; it has {allowed or 'none'}")


def make(group: str, named: Named, *first: Any, reserved: Mapping[str, Any] | None = None, **offered: Any) -> Any:
    """Call what is named.

    Args:
        group: where it is registered.
        named: the name and its options.
        first: positional arguments.
        reserved: arguments that the options cannot set; what is called gets those that it asks for.
        offered: defaults for arguments that it asks for.

    Raises:
        ValueError: options that it does not take, in one line.
    """
    reserved = reserved or {}
    check(group, named, len(first), list(reserved))
    call = entry(group, named.name)
    found, _ = parameters(call, len(first))
    options = {name: _member(value, found[name].annotation) if name in found else value
               for name, value in named.options.items()}  # fmt: skip
    arguments = asked_for(call, offered | dict(reserved), len(first)) | options
    if group == "losses" and not isinstance(call, type):
        return _loss(call, arguments)
    return run(f"{ONE[group]} {named.name}", partial(call, *first, **arguments))


def asked_for(call: Callable[..., Any], offered: Mapping[str, Any], given: int = 0) -> dict[str, Any]:
    """Those of the offered arguments that a callable has a parameter for."""
    found, _ = parameters(call, given)
    return {name: value for name, value in offered.items() if name in found}


def run(what: str, call: Callable[[], Any]) -> Any:
    """Call with what a user wrote; whatever is wrong with it becomes one line that says with what."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return call()
    except Exception as error:
        raise ValueError(f"{what}: {_line(error)}") from error


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return (
        text if isinstance(error, ValueError | RuntimeError | TypeError) and text else f"{type(error).__name__} {text}"
    )


def _loss(function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    """A loss with its options; one of a window stays one."""
    from sj_online.loss import OverWindow

    if not options:
        return function
    if isinstance(function, OverWindow):
        return OverWindow(partial(function.fn, **options))
    return partial(function, **options)


def parameters(call: Callable[..., Any], given: int) -> tuple[dict[str, inspect.Parameter], bool]:
    """The parameters that can be options, by name, and whether any others are taken too.

    A class that passes on what it does not know has the parameters of its bases as well.
    """
    found: dict[str, inspect.Parameter] = {}
    bases = [each for each in call.__mro__ if "__init__" in vars(each)] if isinstance(call, type) else [call]
    for each in bases:
        own = list(_signature(each).parameters.values())
        found = {p.name: p for p in own[given:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} | found
        if not any(p.kind is p.VAR_KEYWORD for p in own):
            return found, False
    return found, not isinstance(call, type)


def _signature(call: Callable[..., Any]) -> inspect.Signature:
    call = call.fn if isinstance(call, OverWindow) else call
    try:
        return inspect.signature(call, eval_str=True)
    except (NameError, TypeError):  # an annotation that means something to a type checker only
        return inspect.signature(call)


def _may_be(value: Any, annotation: Any) -> bool:
    """Whether a plain value can be what an annotation says; True where it does not tell."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        return any(_may_be(value, each) for each in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is typing.Annotated:
        return _may_be(value, arguments[0])
    kind = origin or annotation
    if not isinstance(kind, type) or kind in (inspect.Parameter.empty, object):
        return True
    if issubclass(kind, Enum):
        return isinstance(_member(value, kind), kind)
    if isinstance(value, list) and issubclass(kind, Sequence | set) and kind is not str:
        return origin is None or not arguments or all(_may_be(each, arguments[0]) for each in value)
    if isinstance(value, str):  # no sequence of letters
        return kind is str
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, kind)


def _member(value: Any, annotation: Any) -> Any:
    """The member of an enumeration that a string stands for, where one is asked for; else the value itself."""
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return next((each for each in annotation if each.value == value), value)
    return value


def _readable(annotation: Any) -> str:
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return f"one of {', '.join(str(each.value) for each in annotation)}"
    return getattr(annotation, "__name__", str(annotation)) if isinstance(annotation, type) else str(annotation)
