"""Timing for ratios: things that are compared run in turn, in one process, and the fastest run of each counts."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

Functions = Mapping[str, Callable[[], object]]


def rounds_of(functions: Functions, rounds: int = 20, warmup: int = 2) -> dict[str, list[float]]:
    """The seconds that each function took in each round, all of them called once per round.

    Args:
        functions: what to time, by name; work on a CUDA device is waited for.
        rounds: timed rounds.
        warmup: rounds before them.

    Example:
        >>> {name: len(seconds) for name, seconds in rounds_of({"a": lambda: None}, rounds=3).items()}
        {'a': 3}
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warmup + rounds):
        for name, function in functions.items():
            _wait()
            start = time.perf_counter()
            function()
            _wait()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def interleaved(functions: Functions, rounds: int = 20, warmup: int = 2) -> dict[str, float]:
    """The least seconds that each function took, all of them called once per round.

    Give the same function under two names to see what a ratio of a thing to itself is on this machine.

    Args:
        functions: as of :func:`rounds_of`, like the others.
        rounds: see there.
        warmup: see there.

    Example:
        >>> sorted(interleaved({"a": lambda: None, "again": lambda: None}, rounds=2))
        ['a', 'again']
    """
    return {name: min(seconds) for name, seconds in rounds_of(functions, rounds, warmup).items()}


def quartiles(values: list[float]) -> tuple[float, float]:
    """The first and the third quartile; of one value, itself twice.

    Example:
        >>> quartiles([1.0, 2.0, 3.0])
        (1.5, 2.5)
    """
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return low, high


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
