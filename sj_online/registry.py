"""Names to objects by entry point, this package's and third parties' alike, and torch's own by their own names.

A package adds its own neuron to ``sj_online`` with three lines in its ``pyproject.toml``::

    [project.entry-points."sj_online.neurons"]
    my_neuron = "my_package:MyNode"

Optimizers, schedules and losses of torch and the transforms of torchvision need no entry point. They are in a table
that holds nothing else: no other attribute of a module can be named.
"""

import inspect
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

Factory = TypeVar("Factory", bound=Callable[..., Any])

GROUPS = (
    "neurons",
    "layers",
    "trainers",
    "models",
    "data",
    "losses",
    "optimizers",
    "schedules",
    "augmentations",
    "callbacks",
    "recipes",
)
# Asking for functions, other schedules or transforms, which plain options cannot give.
_NOT_BY_NAME = {
    "ChainedScheduler",
    "Compose",
    "Lambda",
    "LambdaLR",
    "MultiplicativeLR",
    "RandomApply",
    "RandomChoice",
    "RandomOrder",
    "SequentialLR",
}


def _entry_points(group: str) -> dict[str, EntryPoint]:
    if group not in GROUPS:
        raise ValueError(f"group={group!r} is not one of {', '.join(GROUPS)}")
    return _installed(entry_points, group)


@cache
def _installed(find: Callable[..., Iterable[EntryPoint]], group: str) -> dict[str, EntryPoint]:
    """What is installed, looked for once: all packages are read for it, 20 ms that a network pays for each neuron."""
    return {point.name: point for point in find(group=f"sj_online.{group}")}


@cache
def _host(group: str) -> dict[str, Any]:
    """What torch and torchvision have for a group; imported only if it is asked for."""
    if group == "optimizers":
        from torch import optim

        return _classes(optim, optim.Optimizer)
    if group == "schedules":
        from torch.optim import lr_scheduler

        return _classes(lr_scheduler, lr_scheduler.LRScheduler)
    if group == "losses":
        from torch.nn import Module, functional
        from torch.nn.modules import loss

        modules = {n: m for n, m in _classes(loss, Module).items() if n in loss.__all__ and _of_targets(m.forward, 3)}
        return {n: f for n, f in vars(functional).items() if not n.startswith("_") and _of_targets(f, 2)} | modules
    if group == "augmentations":
        from torchvision.transforms import v2

        return _classes(v2, v2.Transform)
    return {}


def _classes(module: Any, base: type) -> dict[str, Any]:
    """The public subclasses of ``base`` in a module that can be made of plain options."""
    found = {n: c for n, c in vars(module).items() if isinstance(c, type) and issubclass(c, base) and c is not base}
    return {name: each for name, each in found.items() if not name.startswith("_") and name not in _NOT_BY_NAME}


def _of_targets(function: Any, arguments: int) -> bool:
    """Whether a function takes outputs and targets, and needs no more."""
    if not inspect.isfunction(function):
        return False
    parameters = list(inspect.signature(function).parameters.values())
    needed = [each for each in parameters if each.default is inspect.Parameter.empty]
    return len(needed) == arguments and [each.name for each in needed[-2:]] == ["input", "target"]


def names(group: str) -> list[str]:
    """The registered names of a group, sorted; nothing of a third party is imported.

    Args:
        group: one of :data:`GROUPS`.

    Raises:
        ValueError: an unknown group.

    Example:
        >>> "empf" in names("neurons"), "AdamW" in names("optimizers")
        (True, True)
    """
    return sorted({*_entry_points(group), *_host(group)})


def get(group: str, name: str) -> Any:
    """Import and return what is registered as ``name`` in ``group``; an entry point wins over torch's name.

    Raises:
        ValueError: an unknown group or name (the message lists the known ones), or one that cannot be imported.

    Example:
        >>> get("neurons", "empf").__name__
        'EMPFNode'
        >>> get("schedules", "StepLR").__name__
        'StepLR'
    """
    points = _entry_points(group)
    if name not in points:
        if name in _host(group):
            return _host(group)[name]
        raise ValueError(f"{name[:80]!r} is not a registered name of {group}; known: {', '.join(names(group))}")
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
