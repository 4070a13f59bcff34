"""``print(rule)``: the way in which every parameter that learns gets its gradient."""

import textwrap
from dataclasses import dataclass

from torch import nn

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


def table(net: nn.Module, ways: dict[str, Way]) -> str:
    """A line for each synapse, and one for the other parameters that learn."""
    modules = dict(net.named_modules())
    rows = [(name, type(modules[name]).__name__ if name in modules else "parameter", way) for name, way in ways.items()]
    roles = any(way.role for _, _, way in rows)
    cells = [(name, kind, *([way.role] if roles else [])) for name, kind, way in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  " + "  ".join([*map(str.ljust, row, widths), way.how]) for row, (_, _, way) in zip(cells, rows, strict=True)
    ]
    others = _others(net, ways)
    if others:
        text = "by the spikes of the step: " + ", ".join(others)
        lines += textwrap.wrap(text, 116, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(lines)


def _others(net: nn.Module, ways: dict[str, Way]) -> list[str]:
    """The parameters that learn and belong to no synapse: by module where all of a module's are of that kind."""
    modules, names = dict(net.named_modules()), {}
    for name, p in net.named_parameters():
        module, _, last = name.rpartition(".")
        if not p.requires_grad or module in ways or display_name(name) in ways:
            continue
        if f".{module}.".find(".parametrizations.") >= 0 and display_name(name) in ways:
            continue
        names[module or name] = type(modules[module]).__name__ if module else "parameter"
    return [f"{name} ({kind})" for name, kind in names.items()]
