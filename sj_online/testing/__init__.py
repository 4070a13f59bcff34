"""Public conformance checks to run over your own neuron or rule, and the oracle for tests of your own."""

from importlib import import_module
from typing import Any

_HOMES = {
    "assert_differ": "oracle",
    "assert_live": "oracle",
    "bptt_gradient": "oracle",
    "check_node": "node",
    "check_rule": "rule",
    "rule_gradient": "oracle",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    """Import what is asked for on its first use, so that checking a neuron needs no trainer."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
