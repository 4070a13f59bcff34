"""A small YAML for hostile text, and back.

There are no tags, no anchors and no aliases, so nothing is built and nothing expands; scalars are those of JSON, so
that ``no`` and ``12:30`` are strings and ``1e-3`` is a number; a key that comes twice is an error; size and depth are
bounded.
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from sj_online.app import plain

SIZE = 64 * 1024


class _Loader(yaml.SafeLoader):
    """Plain values only."""

    yaml_implicit_resolvers: dict[Any, Any] = {}
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        mark = f"line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise ValueError(f"{mark}: anchors and aliases (&, *) are not read; quote the text if it is one")
        if getattr(event, "tag", None) is not None:
            raise ValueError(f"{mark}: tags such as {event.tag[:60]!r} are not read")
        self.depth += 1
        if self.depth > plain.DEPTH:
            raise ValueError(f"{mark}: nested more than {plain.DEPTH} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        table: dict[Hashable, Any] = {}
        for key_node, value_node in node.value:
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise ValueError(f"line {line}: key {str(key)[:80]} is not a string")
            if key in table:
                raise ValueError(f"line {line}: key {key[:80]!r} comes twice")
            table[key] = self.construct_object(value_node, deep=True)
        return table


def _mapping(loader: _Loader, node: Any) -> dict[Hashable, Any]:
    return loader.construct_mapping(node)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
for _tag, _pattern, _first in (
    ("null", r"null|~|", ["n", "~", ""]),
    ("bool", r"true|false", "tf"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))


def parse(text: str) -> Any:
    """Plain values in YAML.

    Raises:
        ValueError: one line that says what is not read, and where.

    Example:
        >>> parse("{name: sgd, options: {lr: 1e-3, nesterov: true}}")
        {'name': 'sgd', 'options': {'lr': 0.001, 'nesterov': True}}
    """
    if len(text) > SIZE:
        raise ValueError(f"more than {SIZE} characters are no recipe")
    loader: Any = None
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())[:300]) from error


class _Dumper(yaml.SafeDumper):
    """Quotes what :class:`_Loader` would not read as a string."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump(values: dict[str, Any]) -> str:
    """Plain values as :func:`parse` reads them.

    Example:
        >>> print(dump({"lr": 1e-3, "text": "1e-3"}), end="")
        lr: 0.001
        text: '1e-3'
    """
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
