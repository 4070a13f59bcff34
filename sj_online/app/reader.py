"""The one reader of recipes: from a file or a name, with ``base`` below and what the command line says above.

Files are taken to be hostile, and paths literally: no ``~``, no patterns, no protocols.
"""

from collections.abc import Sequence
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sj_online import recipes, registry
from sj_online.app import plain, yamltext
from sj_online.app.recipe import Recipe


def read(path: Path) -> dict[str, Any]:
    """The keys and values in a file, unchecked.

    Raises:
        ValueError: one line that names the file and what is wrong with it.
    """
    try:
        if not path.is_file():  # a device or a pipe could go on without end
            raise ValueError("there is no such file")
        with path.open("rb") as file:
            content = file.read(yamltext.SIZE + 1)
        if len(content) > yamltext.SIZE:
            raise ValueError(f"it has more than {yamltext.SIZE} bytes")
        values = yamltext.parse(content.decode())
        if not isinstance(values, dict):
            raise ValueError("it holds no keys and values")
        return values
    except (ValueError, OSError) as error:
        raise ValueError(f"recipe {path}: {error}") from error


def names() -> list[str]:
    """The recipes that come with this package and others.

    Example:
        >>> "digits" in names()
        True
    """
    return sorted({*recipes.files(), *registry.names("recipes")})


def source(name_or_file: str) -> dict[str, Any]:
    """The keys and values of a recipe, given by name or as a YAML file.

    Raises:
        ValueError: neither a known name nor a file.
    """
    if name_or_file in (files := recipes.files()):
        return read(files[name_or_file])
    if name_or_file in registry.names("recipes"):
        values = registry.get("recipes", name_or_file)
        if not isinstance(values, dict):
            raise ValueError(f"recipe {name_or_file} is registered as something other than a table of keys and values")
        return dict(values)
    if Path(name_or_file).exists():
        return read(Path(name_or_file))
    raise ValueError(f"recipe {name_or_file[:200]!r} is neither a file nor {_known(name_or_file)}")


def _known(name: str) -> str:
    """What a name is not, and names that it may have been meant for: there are too many to list them all."""
    close = get_close_matches(name[:80], names(), 5)
    return "one of the known recipes" + (
        f"; close to it: {', '.join(close)}" if close else ": see sj-online list recipes"
    )


def build(values: dict[str, Any], changes: Sequence[dict[str, Any]] = (), origin: str = "") -> Recipe:
    """The recipe of plain values: its ``base`` below, ``changes`` above, all of it checked.

    Raises:
        ValueError: one line that names ``origin`` and what is wrong.

    Example:
        >>> recipe = build({"base": "digits", "seed": 3, "train": {"rule": "bptt"}})
        >>> recipe.seed, recipe.train.rule, recipe.train.epochs
        (3, Named(name='bptt', options={}), 12)
    """
    try:
        below = _base(values)
        layers = [asdict(Recipe()), *below, {key: each for key, each in values.items() if key != "base"}]
        merged: Any = {}
        for layer in layers:
            merged = plain.merged(Recipe, merged, layer)
        recipe = plain.typed(Recipe, merged) if not changes else None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{origin}: {error}" if origin else str(error)) from error
    for change in changes:
        merged = plain.merged(Recipe, merged, change)
    return recipe or plain.typed(Recipe, merged)


def _base(values: dict[str, Any]) -> list[dict[str, Any]]:
    """What a recipe is based on; the row of the paper's table is not inherited."""
    if "base" not in values:
        return []
    base = values["base"]
    if not isinstance(base, str) or base not in names():
        raise ValueError(f"base={str(base)[:80]!r} is not {_known(str(base))}")
    below = source(base)
    if "base" in below:
        raise ValueError(f"base={base} has a base itself; one level is read")
    return [below if values.get("paper") else {key: each for key, each in below.items() if key != "paper"}]


def load(path: Path) -> Recipe:
    """The recipe in a file.

    Raises:
        ValueError: one line that names the file and what is wrong.
    """
    return build(read(path), origin=f"recipe {path}")
