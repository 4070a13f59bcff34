"""The sentences about a value that is not allowed, each written once: they name it, show it and say what is allowed."""

import sys
import warnings
from collections.abc import Iterable
from types import FrameType


def one_of(name: str, value: object, allowed: Iterable[object]) -> None:
    """Raise unless ``value`` is one of ``allowed``.

    Example:
        >>> one_of("update", "day", ("step", "sequence"))
        Traceback (most recent call last):
        ValueError: update='day' is not one of 'step', 'sequence'
    """
    allowed = tuple(allowed)
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, allowed))}")


def at_least(name: str, value: object, least: int = 1) -> None:
    """Raise unless ``value`` is a whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r} is not a whole number of at least {least}")


def at_least_or_none(name: str, value: object, least: int = 1) -> None:
    """Raise unless ``value`` is None or a whole number of at least ``least``."""
    if value is not None:
        at_least(name, value, least)


def between(name: str, value: float, low: float, high: float) -> None:
    """Raise unless ``value`` is a number in [low, high]."""
    if not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{name}={value!r} is not in [{low:g}, {high:g}]")


def warn(text: str) -> None:
    """Warn at the line of the user's that led here."""
    level = 1
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("sj_online", "contextlib"):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level if frame is None else level + 1)
