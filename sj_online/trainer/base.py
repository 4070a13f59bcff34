"""The one loop behind every training rule.

A rule is this loop with five choices: how many steps share a graph (``horizon``), by how many the window moves
(``stride``), which steps learn (``windows``), what the weight gradient is made of, and when the weights are updated.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any, ClassVar, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sj_online import check, host, state
from sj_online.frames import Frames
from sj_online.loss import Loss, window_loss
from sj_online.prediction import in_sequence, predict
from sj_online.trainer import boundary, finite, parallel
from sj_online.trainer.inspection import Inspection
from sj_online.trainer.result import Gradients, Result, Total, Window
from sj_online.tree import tree_map
from sj_online.unroll import Unroll


class Common(TypedDict, total=False):
    """The options that every rule takes by keyword; see :class:`Rule`."""

    loss_fn: Loss
    num_steps: int | None
    backward: Callable[[Tensor], None] | None
    before_step: Callable[[], Any] | None
    per_step_targets: bool
    compress: bool


class Options(Common, total=False):
    """Those, and the ones of rules whose paper leaves the choice."""

    update: str
    step_scale: str


class Rule:
    """A training rule: yields gradients, window by window, and updates the weights.

    Args:
        net: a SpikingJelly network in step mode 's' or 'm'.
        optimizer: an optimizer over its parameters.
        loss_fn: ``loss_fn(output [N, classes], y)`` of one step, or a loss marked by
            :func:`sj_online.loss.over_window`.
        num_steps: T. With it ``x`` is one static input ``[N, ...]``, fed T times; without it ``x`` is
            ``[T, N, ...]``.
        update: ``'step'``, an update after every window, or ``'sequence'``, one after the last.
        step_scale: ``'mean'`` divides each step's loss by T, ``'sum'`` does not.
        backward: called with the scaled loss in place of ``loss.backward()`` (``fabric.backward``, a scaler's).
        before_step: called before each update (clipping, unscaling); if what it returns is false and not None, the
            update is left out.
        per_step_targets: y has the time axis of x, ``[T, N, ...]``.
        compress: keep what autograd saves of spikes and small integers as bytes, without loss.
    """

    paper: ClassVar[str]
    exact: ClassVar[bool]
    horizon: int | None = 1
    """The number of steps in one graph; None for all of them."""
    stride: int | None = 1
    """The number of steps by which the window moves, and of outputs with a loss in it; None for all of them."""

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
        before_step: Callable[[], Any] | None = None,
        per_step_targets: bool = False,
        compress: bool = False,
    ) -> None:
        check.one_of("update", update, ("step", "sequence"))
        check.one_of("step_scale", step_scale, ("mean", "sum"))
        check.at_least_or_none("num_steps", num_steps)
        boundary.optimizer(optimizer)
        self.net = net
        self.optimizer = optimizer
        self.loss_fn = loss_fn
        self.num_steps = num_steps
        self.update = update
        self.step_scale = step_scale
        self.backward = backward or Tensor.backward
        self.before_step = before_step or (lambda: None)
        self.per_step_targets = per_step_targets
        self.compress = compress
        self.inspection = Inspection(self)
        self._waiting: Gradients | None = None
        boundary.network(net, self.horizon, self.stride)
        parallel.broadcast(net)

    def windows(self, T: int) -> Iterator[tuple[range, bool]]:
        """The windows of steps in their order, and whether each learns."""
        k = self.stride or T
        for start in range(0, T, k):
            yield range(start, min(start + k, T)), True

    def forward(self, run: Unroll, steps: range) -> Any:
        """Run the network over ``steps``; returns the outputs ``[k, N, ...]`` that the loss is taken of."""
        return run(steps)

    def objective(self, outputs: Any, targets: Any, steps: range, mask: Tensor | None = None) -> Tensor:
        """What the backward pass of a window starts from, before it is scaled: the mean loss of its steps.

        Args:
            outputs: ``[k, N, ...]``, as :meth:`forward` gave them.
            targets: y, or with ``per_step_targets`` ``[k, N, ...]`` of it.
            steps: the window.
            mask: ``[k, N]``: what counts; None: all.
        """
        return window_loss(self.loss_fn, outputs, targets, per_step=self.per_step_targets, mask=mask)

    def scale(self, k: int, T: int) -> float:
        """The weight of the mean loss of k steps."""
        return k / T if self.step_scale == "mean" else float(k)

    def penalty(self) -> Tensor | float:
        """What is added to the scaled loss of every window."""
        return 0.0

    def installed(self) -> AbstractContextManager[Any]:
        """What the rule puts into the network for the time of a sequence."""
        return nullcontext()

    def propagate(self, loss: Tensor) -> None:
        """The backward pass of a window."""
        self.backward(loss)

    def run(self, x: Tensor, y: Any, mask: Tensor | None = None) -> Iterator[Window]:
        """The loop: reset, then per window forward, loss, backward, detach."""
        frames = Frames(x, y, self.num_steps, mask=mask, per_step_targets=self.per_step_targets)
        poison = finite.poison(frames.x)
        with self._sequence(frames):
            host.reset(self.net)
            run, learnable = Unroll(self.net, frames), parallel.any_rank(boundary.learnable(frames))
            for steps, learns in self.windows(frames.T):
                learns = learns and any(learnable[t] for t in steps)
                yield self._window(run, steps, learns, self.scale(len(steps), frames.T), poison)

    def _sequence(self, frames: Frames) -> AbstractContextManager[Any]:
        """What is true from the first step of a sequence to its last."""
        return boundary.sequence(self.net, lambda: self.inspection.look(frames), self.installed, in_sequence)

    def _window(self, run: Unroll, steps: range, learns: bool, scale: float, poison: Tensor | float) -> Window:
        frames = run.frames
        with torch.set_grad_enabled(learns), boundary.compressing(self.compress and learns):
            outputs = self.forward(run, steps)
            loss = self.objective(outputs, frames.targets(steps), steps, frames.kept(steps))
        boundary.scalar(loss)
        if learns:
            self.propagate(loss * scale + self.penalty())
        state.detach(self.net)
        # Inside autocast the casts of the weights are cached, with their graph, until the weights change.
        torch.clear_autocast_cache()
        return Window(steps, loss.detach() + poison, tree_map(Tensor.detach, outputs), learns)

    def gradients(self, x: Tensor, y: Any, mask: Tensor | None = None) -> Gradients:
        """Leave ``.grad`` filled, window by window; gradients are added to what is there and never zeroed.

        Nothing happens before it is iterated. To accumulate over batches, iterate it once per batch and then call
        :meth:`update_weights`.

        Args:
            x: ``[T, N, ...]``, or with ``num_steps`` one static input ``[N, ...]``.
            y: labels ``[N]`` or soft targets ``[N, classes]``; with ``per_step_targets`` ``[T, N, ...]``.
            mask: ``[T, N]``: which steps of which samples count; None: all.
        """
        self._waiting = Gradients(self.run(x, y, mask))
        return self._waiting

    def train_step(self, x: Tensor, y: Any, mask: Tensor | None = None) -> Result:
        """Train on one batch.

        Args:
            x: ``[T, N, ...]``, or with ``num_steps`` one static input ``[N, ...]``.
            y: labels ``[N]`` or soft targets ``[N, classes]``; with ``per_step_targets`` ``[T, N, ...]``.
            mask: ``[T, N]``: which steps of which samples count; None: all. A step's loss is that of the rows that
                count, times their share; a step without any does not learn.

        Raises:
            ValueError: shapes that do not fit each other.
            RuntimeError: another sequence of this network is in progress.
        """
        total = Total(keep_steps=self.per_step_targets)
        with closing(self.run(x, y, mask)) as windows:
            for window in windows:
                if not total.steps:
                    self.optimizer.zero_grad()
                total.add(window)
                if window.learned and self.update == "step":
                    self.update_weights()
        if self.update == "sequence":
            self.update_weights()
        parallel.average(self.net.buffers())
        self.inspection.after_batch(x, y, mask)
        return total.result(finite.poison_of_all(self.net))

    def stream(self, steps: Iterable[tuple[Tensor, Any]]) -> Iterator[Result]:
        """Learn from an endless stream: nothing is reset, and memory does not grow however long it is.

        As ``train_step`` with ``update='step', step_scale='sum'``: an update at each step with a target, of time slices
        at the end of each slice.

        Args:
            steps: pairs of ``x_t [N, ...]`` and ``y_t``, which may be None.

        Yields:
            The result of each window: its mean loss, and its output ``[N, ...]`` (of slices the mean).

        Raises:
            ValueError: the rule must know the number of steps.
        """
        if self.stride is None or self.windows.__func__ is not Rule.windows:  # type: ignore[attr-defined]
            raise ValueError(f"{type(self).__name__} must know the number of steps, which a stream does not tell")
        return self._stream(iter(steps), self.stride)

    def _stream(self, steps: Iterator[tuple[Tensor, Any]], k: int) -> Iterator[Result]:
        windows = boundary.windows_of_stream(steps, k)
        first = next(windows, None)
        if first is None:
            return
        with self._sequence(first.frames):
            for each in (first, *()) if False else boundary.chain(first, windows):
                run = Unroll(self.net, each.frames)
                self.optimizer.zero_grad()
                window = self._stream_window(run, each)
                if window.learned:
                    self.update_weights()
                total = Total()
                total.add(window)
                yield total.result(0.0)

    def update_weights(self) -> None:
        """Average the gradients over the ranks, step the optimizer, zero the gradients."""
        if self._waiting is not None and not self._waiting.begun:
            raise RuntimeError("gradients() was not iterated, so there is no gradient: for window in rule.gradients(x, y)")
        parallel.average_gradients(self.optimizer)
        proceed = self.before_step()
        if parallel.agree(proceed is None or bool(proceed)):
            self.optimizer.step()
        self.optimizer.zero_grad()
