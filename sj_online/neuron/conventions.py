"""The host's keyword arguments in the words of our neurons: what can be honoured is, the rest is one line."""

from collections.abc import Mapping
from typing import Any


def refuse(node: str, given: Mapping[str, tuple[Any, Any, str]]) -> None:
    """Raise about every argument of the host that a neuron cannot honour.

    Args:
        node: class of the neuron.
        given: name of the argument to its value, the only value that is honoured, and what the neuron has instead.

    Raises:
        ValueError: one line that names them all.

    Example:
        >>> refuse("EMPFNode", {"detach_reset": (True, False, "its reset is a constant")})
        Traceback (most recent call last):
        ValueError: EMPFNode cannot honour detach_reset=True: its reset is a constant
    """
    lines = [
        f"{name}={' '.join(repr(value).split())}: {instead}"
        for name, (value, honoured, instead) in given.items()
        if value is not honoured
    ]
    if lines:
        raise ValueError(f"{node} cannot honour {'; '.join(lines)}")


def leak_of(tau: float) -> float:
    """The share of v that stays, 1 - 1/tau as in the host's ``LIFNode``.

    Raises:
        ValueError: tau not above 1.

    Example:
        >>> leak_of(4.0)
        0.75
    """
    if not tau > 1:
        raise ValueError(f"tau={tau!r} is not above 1; the leak is 1 - 1/tau")
    return 1 - 1 / tau


def renamed(name: str, value: float, default: float, host_name: str, host_value: float | None) -> float:
    """A value that the host calls by another name.

    Args:
        name: of our argument.
        value: of our argument.
        default: of our argument.
        host_name: of the host's argument.
        host_value: of the host's argument, in our units; None: not given.

    Raises:
        ValueError: both are given.

    Example:
        >>> renamed("threshold", 0.5, 0.5, "v_threshold", 0.3)
        0.3
    """
    if host_value is None:
        return value
    if value not in (default, host_value):
        raise ValueError(f"{name}={value!r} and {host_name} name the same thing: give one of them")
    return host_value
