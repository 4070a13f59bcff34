"""``print(rule)``: the way in which every parameter that learns gets its gradient."""

import textwrap
from dataclasses import dataclass

from torch import nn

from sj_online import host
from sj_online.topology import display_name


@dataclass(frozen=True)
class Way:
    """How the gradient of a synapse comes about.

    Attributes:
        role: its place, if it is known.
        how: ``'spike'``, ``'traced, ...'``, ``'opted out'``.
    """

    role: str
    how: str


def table(net: nn.Module, ways: dict[str, Way], graph: str) -> str:
    """A line for each synapse, and below them the other parameters that learn, by the kind of their module.

    Args:
        net: the network.
        ways: of its synapses, by name.
        graph: what autograd sees at once, e.g. ``'one step'``.
    """
    modules = {host.shown(name): module for name, module in net.named_modules()}
    ways = {host.shown(name): way for name, way in ways.items()}
    kinds = [type(modules[name]).__name__ if name in modules else "parameter" for name in ways]
    roles = any(way.role for way in ways.values())
    cells = [
        (name, kind, *([way.role] if roles else [])) for kind, (name, way) in zip(kinds, ways.items(), strict=True)
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  " + "  ".join([*map(str.ljust, row, widths), way.how]) for row, way in zip(cells, ways.values(), strict=True)
    ]
    others = _others(net, modules, ways)
    if others:
        lines.append(f"  the others by autograd within {graph}:")
    width = max(map(len, others), default=0)
    for kind, names in others.items():
        start, rest = f"    {kind.ljust(width)}  ", " " * (width + 6)
        lines += textwrap.wrap(", ".join(names), 116, initial_indent=start, subsequent_indent=rest)
    return "\n".join(lines)


def _others(net: nn.Module, modules: dict[str, nn.Module], ways: dict[str, Way]) -> dict[str, list[str]]:
    """The parameters that learn and belong to no synapse, by kind: a module, where all of its parameters do."""
    learn = [host.shown(name) for name, p in net.named_parameters() if p.requires_grad]
    partly = {name.rpartition(".")[0] for name in learn if display_name(name) in ways}
    found: dict[str, dict[str, None]] = {}
    for name in learn:
        module = name.rpartition(".")[0]
        if module in ways or display_name(name) in ways:
            continue
        whole = module in modules and module and module not in partly
        kind = type(modules[module]).__name__ if whole else "parameter"
        found.setdefault(kind, {})[module if whole else name] = None
    return {kind: list(names) for kind, names in found.items()}
