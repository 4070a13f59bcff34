"""What a training step costs in time, saved bytes and peak live memory, as a function of T."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sj_online.analysis.live import peak_live_bytes
from sj_online.analysis.memory import SavedBytes
from sj_online.analysis.timing import quartiles, rounds_of

Step = Callable[[], Any]
WARMUP = 3
"""Steps before any is measured: at its second batch a rule looks at the network once more, which costs memory."""


@dataclass(frozen=True)
class Made:
    """A training step and what it is of.

    Args:
        step: trains on one batch.
        net: whose parameters are not counted.
        x: the batch, which is not counted either.
    """

    step: Step
    net: nn.Module
    x: Tensor


@dataclass(frozen=True)
class TrainingCost:
    """What one training step costs.

    Attributes:
        name: of the rule.
        steps: T.
        seconds: the least over the rounds; nan if none was timed.
        ratio: ``seconds`` over that of the first one at the same T.
        ratio_low: first quartile of the ratio round by round.
        ratio_high: third quartile.
        saved_bytes: peak of what autograd holds for backward.
        peak_bytes: peak of all that is allocated beyond what was there before the step.
    """

    name: str
    steps: int
    seconds: float
    ratio: float
    ratio_low: float
    ratio_high: float
    saved_bytes: int
    peak_bytes: int


def training_cost(
    makers: Mapping[str, Callable[[int], Made]],
    steps: Iterable[int],
    *,
    rounds: int = 20,
    progress: Callable[[str], None] = lambda _: None,
) -> list[TrainingCost]:
    """Measure training steps at several T; at each T all of them run in turn, in one process.

    Give the first one under a second name to see what a ratio of a thing to itself is on this machine.

    Args:
        makers: by name, called with T; the first is what ratios are to.
        steps: the T.
        rounds: timed rounds; 0 measures memory alone.
        progress: told what is being measured.

    Example:
        >>> import torch
        >>> from sj_online.trainer import SLTT
        >>> def sltt(T):
        ...     net = nn.Linear(8, 3)
        ...     rule = SLTT(net, torch.optim.SGD(net.parameters(), lr=0.1), num_steps=T)
        ...     x, y = torch.rand(2, 8), torch.tensor([0, 2])
        ...     return Made(lambda: rule.train_step(x, y), net, x)
        >>> [row.saved_bytes for row in training_cost({"SLTT": sltt}, (2, 8), rounds=1)]
        [44, 44]
    """
    rows = []
    for T in steps:
        made, memory = {}, {}
        for name, maker in makers.items():
            progress(f"{name}, T={T}: memory")
            made[name] = maker(T)
            memory[name] = _memory(made[name])
        progress(f"all, T={T}: time")
        seconds = rounds_of({name: each.step for name, each in made.items()}, rounds, warmup=1) if rounds else {}
        first = next(iter(makers))
        for name, (saved, peak) in memory.items():
            rows.append(TrainingCost(name, T, *_times(seconds.get(name), seconds.get(first)), saved, peak))
    return rows


def _memory(made: Made) -> tuple[int, int]:
    for _ in range(WARMUP):
        made.step()
    with SavedBytes([made.x, *made.net.parameters()]) as saved:
        made.step()
    return saved.peak, peak_live_bytes(made.step, made.x.device)


def _times(own: list[float] | None, first: list[float] | None) -> tuple[float, float, float, float]:
    """Least seconds, their ratio to the first one's, and the quartiles of the ratio in each round."""
    if own is None or first is None:
        return math.nan, math.nan, math.nan, math.nan
    return min(own), min(own) / min(first), *quartiles([a / b for a, b in zip(own, first, strict=True)])
