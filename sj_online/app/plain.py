"""Plain values - numbers, strings, truth values, None, lists and tables of those - to dataclasses, and merged.

Everything that a file or the command line says passes here: a value can become a number or a string, never an object of
a class that it names.
"""

import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

DEPTH = 20
_LARGEST = 2**63


def check(value: Any, where: str, depth: int = 0) -> None:
    """Raise unless ``value`` is plain, finite, of a usual size and not nested without end.

    Example:
        >>> check({"lr": float("nan")}, "options of sgd")
        Traceback (most recent call last):
        ValueError: options of sgd: lr=nan is not a finite number of a usual size
    """
    match value:
        case None | bool() | str():
            pass
        case int() | float():
            if not abs(value) <= _LARGEST:  # nan is not either
                raise ValueError(f"{where}={_show(value)} is not a finite number of a usual size")
        case list() | tuple() | dict() if depth >= DEPTH:
            raise ValueError(f"{where} is nested more than {DEPTH} deep")
        case list() | tuple():
            for i, each in enumerate(value):
                check(each, f"{where}[{i}]", depth + 1)
        case dict():
            for key, each in value.items():
                if not isinstance(key, str):
                    raise ValueError(f"{where}: key {_show(key)} is not a string")
                check(each, f"{where}: {key}" if depth == 0 else f"{where}.{key}", depth + 1)
        case _:
            raise ValueError(f"{where} is a {type(value).__name__}: only numbers, strings, lists, tables")


def typed(kind: Any, value: Any, where: str = "") -> Any:
    """``value`` as ``kind``: a dataclass of such kinds, int, float, bool, str, dict, list[...], Literal or a union.

    A string in the place of a dataclass with a name is the name.

    Raises:
        ValueError: one line that names the key, the value and what is allowed.
    """
    if is_dataclass(kind):
        return _made(kind, value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (each for each in arguments if each is not type(None))
        return typed(inner, value, where)
    if origin is typing.Literal:
        if value not in arguments or isinstance(value, bool):
            raise ValueError(f"{where}={_show(value)} is not one of {', '.join(map(str, arguments))}")
        return value
    if origin is list:
        if not isinstance(value, list):
            raise ValueError(f"{where}={_show(value)} is not a list")
        return [typed(arguments[0], each, f"{where}[{i}]") for i, each in enumerate(value)]
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST:
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where}={_show(value)} is not {_NAMES[kind]}")
    check(value, where)
    return value


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", dict: "a table"}


def _made(kind: Any, value: Any, where: str) -> Any:
    given = _table(kind, value, where)
    needed = [each.name for each in fields(kind) if each.default is each.default_factory is MISSING]
    if missing := [name for name in needed if name not in given]:
        raise ValueError(f"{where or 'it'} lacks {', '.join(missing)}")
    kinds = typing.get_type_hints(kind)
    return kind(**{name: typed(kinds[name], each, join(where, name)) for name, each in given.items()})


def _table(kind: Any, value: Any, where: str) -> dict[str, Any]:
    """The keys and values that make a dataclass, checked by name."""
    known = [each.name for each in fields(kind)]
    if isinstance(value, str) and "name" in known:
        return {"name": value}
    if not isinstance(value, dict):
        raise ValueError(f"{where or 'it'}={_show(value)} is not a table of keys and values")
    for key in value:
        if key not in known:
            raise ValueError(f"{join(where, str(key)[:80])} is not a key; {where or 'it'} has {', '.join(known)}")
    return value


def merged(kind: Any, old: Any, new: Any, where: str = "") -> Any:
    """``old`` with what ``new`` says, both plain values of one ``kind``: tables key by key, all else as a whole.

    Something named that gets another name does not inherit the options of the old name.

    Raises:
        ValueError: a key that ``kind`` does not have.
    """
    kind = dataclass_of(kind) or kind
    if new is None or old is None and not is_dataclass(kind):
        return new
    if kind is dict and isinstance(old, dict) and isinstance(new, dict):
        return old | {key: merged(dict, old.get(key), value) for key, value in new.items()}
    if not is_dataclass(kind):
        return new
    old, new = ({} if old is None else _table(kind, old, where)), _table(kind, new, where)
    if "options" in old and new.get("name", old.get("name")) != old.get("name"):
        old = {key: value for key, value in old.items() if key != "options"}
    kinds = typing.get_type_hints(kind)
    return old | {key: merged(kinds[key], old.get(key), value, join(where, key)) for key, value in new.items()}


def leaves(kind: Any, prefix: str = "") -> Iterator[tuple[str, Field[Any], Any]]:
    """The keys below a dataclass, dotted, each with its field and kind; a table with a name is itself one, too."""
    kinds = typing.get_type_hints(kind)
    for each in fields(kind):
        path, inner = join(prefix, each.name), dataclass_of(kinds[each.name])
        if inner is None or "name" in kinds_of(inner):
            yield path, each, kinds[each.name]
        if inner is not None:
            yield from leaves(inner, path)


def dataclass_of(kind: Any) -> Any:
    """The dataclass that ``kind`` is, or is if not None; else None."""
    options = [kind, *(typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else ())]
    return next((each for each in options if is_dataclass(each)), None)


def kinds_of(kind: Any) -> dict[str, Any]:
    """The kinds of the fields of a dataclass."""
    return typing.get_type_hints(kind)


def join(prefix: str, name: str) -> str:
    """The dotted key of ``name`` below ``prefix``."""
    return f"{prefix}.{name}" if prefix else name


def _show(value: Any) -> str:
    """A value in a message, of a length that fits a line."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # tables without end, numbers of thousands of digits
        return f"<{type(value).__name__}>"
    return text if len(text) <= 80 else f"{text[:77]}..."
