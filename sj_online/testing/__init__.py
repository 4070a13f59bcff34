"""Public conformance checks: run them over your own neuron or rule."""

from typing import Any

__all__ = ["check_node", "check_rule"]


def __getattr__(name: str) -> Any:
    """Import a check on its first use, so that checking a neuron needs no trainer."""
    if name == "check_node":
        from .node import check_node

        return check_node
    if name == "check_rule":
        from .rule import check_rule

        return check_rule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
