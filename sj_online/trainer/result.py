"""What the loop gives back."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sj_online import check
from sj_online.tree import tree_map


@dataclass(frozen=True)
class Window:
    """What one window of the loop did: its steps, mean loss (unscaled), outputs ``[k, N, classes]``, both detached."""

    steps: range
    loss: Tensor
    output: Any
    learned: bool


@dataclass(frozen=True)
class Result:
    """What a training step did, detached: the mean loss over the steps run, and the mean output ``[N, classes]``.

    Attributes:
        loss: a scalar. It is not finite where the input or the weights are not, even if spikes hide it.
        output: with ``per_step_targets`` that of each step, ``[T, N, classes]``; of networks that give dicts, tuples or
            dataclasses, those.
    """

    loss: Tensor
    output: Any


class Total:
    """Running means over windows of different lengths.

    Args:
        keep_steps: keep the output of each step in the place of the mean.
    """

    def __init__(self, keep_steps: bool = False) -> None:
        self.keep_steps = keep_steps
        self.steps = 0
        self.loss: Tensor | float = 0.0
        self.outputs: list[Any] = []

    def add(self, window: Window) -> None:
        """Count a window in."""
        k = len(window.steps)
        self.steps += k
        self.loss = self.loss + window.loss * k
        if self.keep_steps or not self.outputs:
            self.outputs.append(window.output if self.keep_steps else tree_map(_sum, window.output))
        else:
            self.outputs[0] = tree_map(lambda total, o: total + _sum(o), self.outputs[0], window.output)

    def result(self, poison: Tensor | float) -> Result:
        """The means.

        Args:
            poison: added to the loss.
        """
        assert isinstance(self.loss, Tensor)
        if self.keep_steps:
            output = tree_map(lambda *parts: torch.cat(parts), *self.outputs)
        else:
            output = tree_map(lambda total: total / self.steps, self.outputs[0])
        return Result(self.loss / self.steps + poison, output)


def _sum(output: Tensor) -> Tensor:
    return output.sum(0)


class Begun:
    """Whether a sequence has begun."""

    def __init__(self) -> None:
        self.yes = False


class Gradients(Iterator[Window]):
    """The windows of a sequence that have left gradients; nothing happens before they are asked for."""

    def __init__(self, windows: Iterator[Window]) -> None:
        self._windows: Any = windows
        self.begun = Begun()

    def __next__(self) -> Window:
        """Run to the next window that learns."""
        self.begun.yes = True
        return next(window for window in self._windows if window.learned)

    def close(self) -> None:
        """End the sequence where it is."""
        self.begun.yes = True
        self._windows.close()

    def __del__(self) -> None:
        if not self.begun.yes:
            check.warn("gradients() was not iterated, so it did nothing: for window in rule.gradients(x, y)")
