"""The one loop behind every training rule.

A rule is this loop with five choices: how many steps share a graph (``horizon``), by how many the window moves
(``stride``), which steps learn (``windows``), what the weight gradient is made of, and when the weights are updated.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from typing import Any, ClassVar, cast
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sj_online import check, host, state
from sj_online.frames import Frames
from sj_online.install import restore_all
from sj_online.layer import is_synapse
from sj_online.layer.quantized import forget
from sj_online.loss import Loss, Targets, window_loss
from sj_online.prediction import check_free, in_sequence, predict
from sj_online.trainer import finite, parallel
from sj_online.trainer.compress import compressed
from sj_online.trainer.inspection import Inspection, check_network, check_optimizer
from sj_online.trainer.result import Begun, Gradients, Result, Total, Window
from sj_online.trainer.stream import stream
from sj_online.trainer.table import Way, table
from sj_online.tree import tree_map
from sj_online.unroll import Unroll


class Rule:
    """A training rule: yields gradients, window by window, and updates the weights.

    Args:
        net: a SpikingJelly network in step mode 's' or 'm'.
        optimizer: an optimizer over its parameters.
        loss_fn: ``loss_fn(output [N, classes], y)`` of one step, or a loss made by
            :func:`sj_online.loss.over_window`.
        num_steps: T. With it ``x`` is one static input ``[N, ...]``, fed T times; without it ``x`` is
            ``[T, N, ...]``.
        update: ``'step'``, an update after every window, or ``'sequence'``, one after the last; None: as in the paper.
        step_scale: ``'mean'`` divides each step's loss by T, ``'sum'`` does not; None: as in the paper.
        backward: called with the scaled loss in place of ``loss.backward()`` (``fabric.backward``, a scaler's).
        before_step: called before each update (clipping, unscaling); if what it returns is false and not None, the
            update is left out.
        per_step_targets: y has the time axis of x, ``[T, N, ...]``.
        compress: keep what autograd saves of spikes and small integers as bytes, without loss.
    """

    paper: ClassVar[str]
    exact: ClassVar[bool]
    """Whether the gradient of a sequence is that of backpropagation through time, or has at least its direction."""
    exact_in_one_step: ClassVar[bool] = True
    """Whether the gradient of a single step is that of backpropagation; not in feedback alignment, for instance."""
    paper_update: ClassVar[str] = "sequence"
    paper_step_scale: ClassVar[str] = "mean"
    streams: ClassVar[bool] = True
    """Whether it can learn without knowing the number of steps."""
    looks_at_all_steps: ClassVar[bool] = False
    """Whether what it must know of a network shows at any step."""
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
        update: str | None = None,
        step_scale: str | None = None,
        backward: Callable[[Tensor], None] | None = None,
        before_step: Callable[[], Any] | None = None,
        per_step_targets: bool = False,
        compress: bool = False,
    ) -> None:
        update = self.paper_update if update is None else update
        step_scale = self.paper_step_scale if step_scale is None else step_scale
        check.one_of("update", update, ("step", "sequence"))
        check.one_of("step_scale", step_scale, ("mean", "sum"))
        check.at_least_or_none("num_steps", num_steps)
        check_optimizer(optimizer)
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
        self._gradients: Callable[[], Gradients | None] = lambda: None
        self._begun: Begun | None = None
        check_network(net, self.horizon, self.stride)
        parallel.broadcast(net)

    def windows(self, T: int) -> Iterator[tuple[range, bool]]:
        """The windows of steps in their order, and whether each learns."""
        k = self.stride or T
        for start in range(0, T, k):
            yield range(start, min(start + k, T)), True

    def looked(self, frames: Frames) -> None:
        """Called when :attr:`inspection` has looked at a network that is new or has changed."""

    def forward(self, unroll: Unroll, steps: range) -> Any:
        """Run the network over ``steps``; returns the outputs ``[k, N, ...]`` that the loss is taken of."""
        return unroll(steps)

    def objective(self, outputs: Any, targets: Targets, steps: range) -> Tensor:
        """What the backward pass of a window starts from, before it is scaled: the mean loss of its steps.

        Args:
            outputs: ``[k, N, ...]``, as :meth:`forward` gave them.
            targets: of the k steps, with the mask.
            steps: the window.
        """
        return window_loss(self.loss_fn, outputs, targets)

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
        with self.sequence(frames):
            host.reset(self.net)
            unroll, poison = Unroll(self.net, frames), finite.poison(x) + finite.poison_of_all(self.net)
            counts = parallel.any_rank(frames.counts())
            for steps, learns in self.windows(frames.T):
                learns = learns and any(counts[steps.start : steps.stop])
                yield self.window(unroll, steps, learns, self.scale(len(steps), frames.T), poison)

    @contextmanager
    def sequence(self, frames: Frames) -> Iterator[None]:
        """What is true from the first step of a sequence to its last."""
        with in_sequence(self.net):
            restore_all(self.net)  # what an interrupt may have left of an earlier sequence
            forget(self.net)
            self.inspection.look(frames)
            try:
                with self.installed():
                    yield
            finally:
                state.detach(self.net)

    def window(self, unroll: Unroll, steps: range, learns: bool, scale: float, poison: Tensor | float) -> Window:
        """One window: forward, loss, backward, detach; ``poison`` is added to the loss that it tells."""
        with compressed([unroll.frames.x]) if self.compress and learns else nullcontext():
            with torch.set_grad_enabled(learns):
                outputs = self.forward(unroll, steps)
                loss = self.objective(outputs, unroll.frames.targets(steps), steps)
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
            mask: as in :meth:`train_step`.
        """
        gradients = Gradients(self.run(x, y, mask))
        self._gradients, self._begun = ref(gradients), gradients.begun
        return gradients

    @parallel.together()
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
        parallel.check_alike("T", self.num_steps or (getattr(x, "shape", None) or [0])[0])
        check_free(self.net)  # before its gradients are zeroed
        self._begun = None
        self.optimizer.zero_grad()
        total = Total(self.per_step_targets)
        with closing(cast(Any, self.run(x, y, mask))) as windows:
            for window in windows:
                total.add(window)
                if window.learned and self.update == "step":
                    self.update_weights()
        if self.update == "sequence":
            self.update_weights()
        parallel.average(self.net.buffers())
        self.inspection.after(x, y)
        return total.result(finite.poison_of_all(self.net))

    def stream(self, steps: Iterable[tuple[Tensor, Any]]) -> Iterator[Result]:
        """Learn from an endless iterable of ``(x_t [N, ...], y_t or None)``; see :mod:`sj_online.trainer.stream`.

        Raises:
            ValueError: the rule must know the number of steps.
        """
        if not self.streams or self.stride is None:
            raise ValueError(f"{type(self).__name__} must know the number of steps, which a stream does not tell")
        self._begun = None
        return stream(self, steps, self.stride)

    def update_weights(self) -> None:
        """Average the gradients over the ranks, step the optimizer, zero the gradients.

        Raises:
            RuntimeError: the last :meth:`gradients` was never iterated.
        """
        if self._begun is not None and not self._begun.yes:
            raise RuntimeError(
                "gradients() was not iterated, so it has left no gradient: for window in gradients(x, y)"
            )
        parallel.average_gradients(self.optimizer)
        proceed = self.before_step()
        if parallel.agree(proceed is None or bool(proceed)):
            self.optimizer.step()
        self.optimizer.zero_grad()

    def predict(self, x: Tensor, reduce: str = "mean") -> Any:
        """See :func:`sj_online.prediction.predict`; ``num_steps`` is the rule's."""
        return predict(self.net, x, self.num_steps, reduce)

    def close(self) -> None:
        """Take everything that the rule has put into the network out of it again."""
        if (gradients := self._gradients()) is not None:
            gradients.close()
        restore_all(self.net)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the network's and the optimizer's states."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""

    def ways(self) -> dict[str, Way]:
        """How the gradient of each synapse comes about, by its name."""
        how = "spike" if self.horizon == 1 else f"autograd within {self._graph()}"
        return {name: Way("", how) for name, module in self.net.named_modules() if is_synapse(module)}

    def _graph(self) -> str:
        return {None: "all steps", 1: "one step"}.get(self.horizon, f"{self.horizon} steps")

    def __repr__(self) -> str:
        """The rule, and the way in which every parameter that learns gets its gradient."""
        kind = "exact" if self.exact else "approximate"
        horizon = "all steps" if self.horizon is None else f"{self.horizon} step{'s' * (self.horizon > 1)}"
        head = f"{type(self).__name__} ({self.paper}; {kind}; horizon {horizon}; update per {self.update}"
        return f"{head}; loss {self.step_scale} over steps)\n{table(self.net, self.ways(), self._graph())}"
