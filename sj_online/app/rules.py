"""The rules that measurements compare, by the names that tables and figures give them."""

from collections.abc import Sequence
from typing import Any

from sj_online import registry
from sj_online.app.recipe import Named

LABELS = {
    "bptt": "BPTT",
    "sltt": "SLTT",
    "ottt": "OTTT",
    "ndot": "NDOT",
    "stol": "STOL",
    "time_slicing": "time slicing",
    "random_bp": "random BP",
    "fptt": "FPTT",
    "rate_bp": "rate BP",
    "eprop": "e-prop",
    "decolle": "DECOLLE",
}
OPTIONS: dict[str, dict[str, Any]] = {"time_slicing": {"k": 2}, "random_bp": {"k": 1}, "stol": {"horizon": 2}}


def compared(names: Sequence[str] = ()) -> tuple[dict[str, Named], list[str]]:
    """The rules by label, and a line about each that is left out.

    Args:
        names: registered names; none: all that are registered, SLTT first.

    Raises:
        ValueError: a name that is neither registered nor one of this package's rules.

    Example:
        >>> rules, left_out = compared(["stol"])
        >>> rules
        {'STOL': Named(name='stol', options={'horizon': 2})}
    """
    there = registry.names("trainers")
    if unknown := [name for name in names if name not in there and name not in LABELS]:
        raise ValueError(f"rule {unknown[0][:80]!r} is not registered; known: {', '.join(there)}")
    asked = list(names) or ["sltt", *(name for name in dict.fromkeys([*LABELS, *there]) if name != "sltt")]
    found = {label(name): Named(name, dict(OPTIONS.get(name, {}))) for name in asked if name in there}
    return found, [f"{label(name)} is left out: no rule {name} is registered" for name in asked if name not in there]


def label(name: str) -> str:
    """How a rule is called in tables and figures."""
    return LABELS.get(name, name)
