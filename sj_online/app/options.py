"""The keys of a recipe as options of the command line, by their whole names."""

import argparse
import inspect
import re
import typing
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any

from sj_online.app import plain, yamltext
from sj_online.app.recipe import Recipe


class Parser(argparse.ArgumentParser):
    """An argument parser that takes no abbreviations and raises where others exit."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> typing.NoReturn:
        """Raise a ValueError."""
        raise ValueError(message)


class Once(argparse.Action):
    """An option that is given at most once."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Keep the value; a second one is an error."""
        if getattr(namespace, self.dest) != self.default:
            raise ValueError(f"{option_string} is given twice")
        setattr(namespace, self.dest, values)


def add(parser: argparse.ArgumentParser) -> None:
    """Add an option for each key of a recipe, such as ``--train.epochs``.

    What is named, such as ``--train.rule``, also takes ``--train.rule.options.KEY VALUE``.
    """
    group = parser.add_argument_group("keys of the recipe", "others are as in the recipe; null stands for None")
    helps = _helps(Recipe)
    for path, kind in _keys():
        text = argparse.SUPPRESS if path.endswith((".name", ".options")) else helps[path]
        metavar = "NAME" if _named(kind) else path.rsplit(".", 1)[-1].upper()
        group.add_argument(f"--{path}", action=Once, metavar=metavar, help=text)


def changes(args: argparse.Namespace, dynamic: Sequence[tuple[str, str]] = ()) -> list[dict[str, Any]]:
    """What the options change of a recipe, one after the other, as plain values.

    Args:
        args: parsed by a parser that :func:`add` has extended.
        dynamic: keys below ``options`` and their values, from :func:`split`.

    Raises:
        ValueError: a value that cannot be read.
    """
    given = [(path, kind, getattr(args, path)) for path, kind in _keys() if getattr(args, path) is not None]
    static = [_nested(path, _value(kind, text, path)) for path, kind, text in given]
    return static + [_nested(path, _value(dict, text, path)) for path, text in dynamic]


def split(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Take the options of options out of the arguments: ``--train.rule.options.update step``.

    Example:
        >>> split(["train", "--train.rule.options.update=step", "--seed", "1"])
        (['train', '--seed', '1'], [('train.rule.options.update', 'step')])
    """
    tables = tuple(f"--{path}." for path, _ in _keys() if path.endswith("options"))
    rest, found, words = [], [], iter(argv)
    for word in words:
        if not word.startswith(tables):
            rest.append(word)
            continue
        path, equals, text = word[2:].partition("=")
        if not equals:
            text = next(words, "--")
            if text.startswith("--"):
                raise ValueError(f"--{path} needs a value")
        found.append((path, text))
    return rest, found


def _keys() -> list[tuple[str, Any]]:
    return [(path, kind) for path, _, kind in plain.leaves(Recipe)]


def _named(kind: Any) -> bool:
    inner = plain.dataclass_of(kind)
    return inner is not None and "name" in plain.kinds_of(inner)


def _value(kind: Any, text: str, path: str) -> Any:
    """The plain value of an option; a string needs no quotes."""
    kinds = set(typing.get_args(kind)) | {kind}
    try:
        if text == "null" and type(None) in kinds:
            return None
        if str in kinds or typing.get_origin(kind) is typing.Literal or (_named(kind) and not text.startswith("{")):
            return text
        return yamltext.parse(text)
    except ValueError as error:
        raise ValueError(f"--{path}: {error}") from error


def _nested(path: str, value: Any) -> dict[str, Any]:
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def _helps(kind: Any, prefix: str = "") -> dict[str, str]:
    """The descriptions of the keys, from the docstrings of their dataclasses."""
    found = {}
    described = re.findall(r"^    (\w+): (.*(?:\n      .*)*)", inspect.cleandoc(kind.__doc__ or ""), re.M)
    for name, text in described:
        found[plain.join(prefix, name)] = " ".join(text.split()).replace("%", "%%")
    for name, inner in plain.kinds_of(kind).items():
        if is_dataclass(below := plain.dataclass_of(inner)):
            found |= _helps(below, plain.join(prefix, name))
    return found
