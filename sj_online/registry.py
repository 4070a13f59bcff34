"""Names to objects by entry point, this package's and third parties' alike.

A package adds its own neuron to ``sj_online`` with three lines in its ``pyproject.toml``::

    [project.entry-points."sj_online.neurons"]
    my_neuron = "my_package:MyNode"
"""

from collections.abc import Callable
from importlib import metadata
from typing import Any, TypeVar

Factory = TypeVar("Factory", bound=Callable[..., Any])

GROUPS = ("neurons", "layers", "trainers", "models")


def _entry_points(group: str) -> dict[str, metadata.EntryPoint]:
    if group not in GROUPS:
        raise ValueError(f"group={group!r} is not one of {', '.join(GROUPS)}")
    return {point.name: point for point in metadata.entry_points(group=f"sj_online.{group}")}


def names(group: str) -> list[str]:
    """The registered names of a group, sorted; nothing is imported.

    Args:
        group: ``'neurons'``, ``'layers'``, ``'trainers'`` or ``'models'``.

    Raises:
        ValueError: an unknown group.

    Example:
        >>> "empf" in names("neurons")
        True
    """
    return sorted(_entry_points(group))


def get(group: str, name: str) -> Any:
    """Import and return what is registered as ``name`` in ``group``.

    Raises:
        ValueError: an unknown group or name (the message lists the known ones), or one that cannot be imported.

    Example:
        >>> get("neurons", "empf").__name__
        'EMPFNode'
    """
    points = _entry_points(group)
    if name not in points:
        raise ValueError(f"{name!r} is not a registered name of {group}; known: {', '.join(sorted(points))}")
    try:
        return points[name].load()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name!r} of {group} is registered as {points[name].value}: {error}") from error


def cite(paper: str) -> Callable[[Factory], Factory]:
    """Give a factory its ``paper``, which ``sj-online list`` shows; a class has it as an attribute.

    Example:
        >>> get("neurons", "ottt_lif").paper
        'OTTT (Xiao et al. 2022)'
    """

    def decorate(factory: Factory) -> Factory:
        factory.paper = paper  # type: ignore[attr-defined]
        return factory

    return decorate
