"""The one loop behind every training rule.

A rule is this loop with five choices: how many steps share a graph (``horizon``), by how many the window moves, which
steps learn, what the weight gradient is made of, and when the optimizer steps.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from sj_online.loss import Loss, window_loss
from sj_online.trainer import check, parallel
from sj_online.trainer.network import detach, evaluating, run_steps
from sj_online.trainer.sequence import Sequence


@dataclass(frozen=True)
class Window:
    """What one window of the loop did: its steps, mean loss (unscaled), outputs ``[k, N, classes]``, both detached."""

    steps: range
    loss: Tensor
    output: Tensor
    learned: bool


@dataclass(frozen=True)
class Result:
    """What a training step did: the mean loss over the steps run and the mean output ``[N, classes]``, detached."""

    loss: Tensor
    output: Tensor


class Rule:
    """A training rule: yields gradients, window by window, and steps the optimizer.

    Args:
        net: a SpikingJelly network in step mode 's' or 'm'.
        optimizer: an optimizer over its parameters.
        loss_fn: ``loss_fn(output [N, classes], y)`` of one step, or a loss marked by
            :func:`sj_online.loss.over_window`.
        num_steps: T. With it ``x`` is one static input ``[N, ...]``, fed T times; without it ``x`` is
            ``[T, N, ...]``.
        update: ``'step'``, an optimizer step after every window, or ``'sequence'``, one after the last.
        step_scale: ``'mean'`` divides each step's loss by T, ``'sum'`` does not.
        backward: called with the scaled loss in place of ``loss.backward()`` (``fabric.backward``, a scaler's).
        before_step: called before each optimizer step (clipping, unscaling); if it returns False the step is skipped.
    """

    paper: ClassVar[str]
    exact: ClassVar[bool]

    def __init__(
        self,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        loss_fn: Loss = F.cross_entropy,
        num_steps: int | None = None,
        update: str = "sequence",
        step_scale: str = "mean",
        backward: Callable[[Tensor], None] | None = None,
        before_step: Callable[[], bool | None] | None = None,
    ) -> None:
        check.one_of("update", update, ("step", "sequence"))
        check.one_of("step_scale", step_scale, ("mean", "sum"))
        check.at_least_one("num_steps", num_steps)
        self.net = net
        self.optimizer = optimizer
        self.loss_fn = loss_fn
        self.num_steps = num_steps
        self.update = update
        self.step_scale = step_scale
        self.backward = backward or Tensor.backward
        self.before_step = before_step or (lambda: None)
        check.network(net, self.horizon, self.stride)
        parallel.broadcast(net)

    @property
    def horizon(self) -> int | None:
        """The number of steps in one graph; None for all of them."""
        return 1

    @property
    def stride(self) -> int | None:
        """The number of steps by which the window moves, and of outputs with a loss in it; None for all of them."""
        return self.horizon

    def windows(self, T: int) -> Iterator[tuple[range, bool]]:
        """The windows of steps in their order, and whether each learns."""
        k = self.stride or T
        for start in range(0, T, k):
            yield range(start, min(start + k, T)), True

    def forward(self, x: Sequence, steps: range) -> Tensor:
        """Run the network over ``steps``; returns the outputs ``[k, N, classes]`` that the loss is taken of."""
        return run_steps(self.net, x, steps)

    def scale(self, k: int, T: int) -> float:
        """The weight of the mean loss of k steps."""
        return k / T if self.step_scale == "mean" else float(k)

    def penalty(self) -> Tensor | float:
        """What is added to the scaled loss of every window."""
        return 0.0

    def installed(self) -> AbstractContextManager[Any]:
        """What the rule puts into the network for the time of a sequence."""
        return nullcontext()

    def run(self, x: Tensor, y: Tensor) -> Iterator[Window]:
        """The loop: reset, then per window forward, loss, backward, detach."""
        frames = Sequence(x, y, self.num_steps)
        functional.reset_net(self.net)
        try:
            with self.installed():
                for steps, learns in self.windows(frames.T):
                    with torch.set_grad_enabled(learns):
                        outputs = self.forward(frames, steps)
                        loss = window_loss(self.loss_fn, outputs, y)
                    if learns:
                        self.backward(loss * self.scale(len(outputs), frames.T) + self.penalty())
                    detach(self.net)
                    # Inside autocast the casts of the weights are cached, with their graph, until the weights change.
                    torch.clear_autocast_cache()
                    yield Window(steps, loss.detach(), outputs.detach(), learns)
        finally:
            detach(self.net)

    def gradients(self, x: Tensor, y: Tensor) -> Iterator[Window]:
        """Leave ``.grad`` filled, window by window; gradients are added to what is there and never zeroed.

        To accumulate over batches, run it once per batch and then call :meth:`step`.

        Args:
            x: ``[T, N, ...]``, or with ``num_steps`` one static input ``[N, ...]``.
            y: labels ``[N]`` or soft targets ``[N, classes]``.
        """
        return (window for window in self.run(x, y) if window.learned)

    @parallel.together()
    def train_step(self, x: Tensor, y: Tensor) -> Result:
        """Train on one batch.

        Args:
            x: ``[T, N, ...]``, or with ``num_steps`` one static input ``[N, ...]``.
            y: labels ``[N]`` or soft targets ``[N, classes]``.

        Raises:
            ValueError: shapes that do not fit each other.
        """
        parallel.check_alike("T", len(x) if self.num_steps is None else self.num_steps)
        self.optimizer.zero_grad()
        total = Total()
        for window in self.run(x, y):
            total.add(window)
            if window.learned and self.update == "step":
                self.step()
        if self.update == "sequence":
            self.step()
        parallel.average(self.net.buffers())
        return total.result()

    def step(self) -> None:
        """Average the gradients over the ranks, step the optimizer, zero the gradients."""
        parallel.average_gradients(self.optimizer)
        if parallel.agree(self.before_step() is not False):
            self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """The mean output ``[N, classes]`` over the steps, in eval mode, at constant memory.

        Args:
            x: ``[T, N, ...]``, or with ``num_steps`` one static input ``[N, ...]``.
        """
        frames = Sequence(x, None, self.num_steps)
        functional.reset_net(self.net)
        with evaluating(self.net):
            sums = (run_steps(self.net, frames, steps).sum(0) for steps, _ in Rule.windows(self, frames.T))
            return reduce(torch.add, sums) / frames.T

    def close(self) -> None:
        """Take everything that the rule has put into the network out of it again."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the network's and the optimizer's states."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""

    def table(self) -> str:
        """The synapses of the network, a line each."""
        return check.table(self.net)

    def __repr__(self) -> str:
        """The rule and the synapses that it found."""
        kind = "exact" if self.exact else "approximate"
        horizon = "all steps" if self.horizon is None else f"{self.horizon} step{'s' * (self.horizon > 1)}"
        head = f"{type(self).__name__} ({self.paper}; {kind}; horizon {horizon}; update per {self.update}"
        return f"{head}; loss {self.step_scale} over steps)\n{self.table()}"


class Total:
    """Running means over windows of different lengths."""

    def __init__(self) -> None:
        self.steps = 0
        self.loss: Tensor | float = 0.0
        self.output: Tensor | float = 0.0

    def add(self, window: Window) -> None:
        """Count a window in."""
        k = len(window.output)
        self.steps += k
        self.loss = self.loss + window.loss * k
        self.output = self.output + window.output.sum(0)

    def result(self) -> Result:
        """The means."""
        assert isinstance(self.loss, Tensor) and isinstance(self.output, Tensor)
        return Result(self.loss / self.steps, self.output / self.steps)
