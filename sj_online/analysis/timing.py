"""Timing for ratios: things that are compared run in turn, in one process, and the fastest run of each counts."""

import time
from collections.abc import Callable, Mapping

import torch


def interleaved(functions: Mapping[str, Callable[[], object]], rounds: int = 20, warmup: int = 2) -> dict[str, float]:
    """The least seconds that each function took, all of them called once per round.

    Give the same function under two names to see what a ratio of a thing to itself is on this machine.

    Args:
        functions: what to time, by name; work on a CUDA device is waited for.
        rounds: timed rounds.
        warmup: rounds before them.

    Example:
        >>> sorted(interleaved({"a": lambda: None, "again": lambda: None}, rounds=2))
        ['a', 'again']
    """
    seconds = dict.fromkeys(functions, float("inf"))
    for turn in range(warmup + rounds):
        for name, function in functions.items():
            _wait()
            start = time.perf_counter()
            function()
            _wait()
            if turn >= warmup:
                seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
