"""The one loop behind every training rule.

A rule is this loop with five choices: how many steps share a graph (``horizon``), by how many the window moves
(``stride``), which steps learn (``windows``), what the weight gradient is made of, and when the weights are updated.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from typing import Any, cast
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sj_online import check, host, state
from sj_online.frames import Frames
from sj_online.install import restore_all
from sj_online.layer.quantized import forget
from sj_online.loss import Loss
from sj_online.prediction import check_free, in_sequence, predict
from sj_online.trainer import finite, parallel, signal
from sj_online.trainer.compress import compressed
from sj_online.trainer.contract import Contract
from sj_online.trainer.inspection import Inspection, check_network, check_optimizer
from sj_online.trainer.result import Begun, Gradients, Result, Total, Window
from sj_online.trainer.stream import stream
from sj_online.tree import tree_map
from sj_online.unroll import Unroll


class Rule(Contract):
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
        learn_last: k: only the last k steps have a loss; None: all.
        feedback: what a neuron gets in the place of the gradient of its spikes: ``'symmetric'``, that gradient;
            ``'random'`` or ``{neuron: B}``, see :class:`~sj_online.trainer.signal.Feedback`. Of rules of one step.
        generator: of what the rule draws, its state in :meth:`state_dict`; None: torch's default one for steps, and
            for the matrices of a neuron one seeded by its place.
    """

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
        learn_last: int | None = None,
        feedback: str | Mapping[str, Tensor] = "symmetric",
        generator: torch.Generator | None = None,
    ) -> None:
        update = self.paper_update if update is None else update
        step_scale = self.paper_step_scale if step_scale is None else step_scale
        check.one_of("update", update, ("step", "sequence"))
        check.one_of("step_scale", step_scale, ("mean", "sum"))
        check.at_least_or_none("num_steps", num_steps)
        check.at_least_or_none("learn_last", learn_last)
        check_optimizer(optimizer)
        if feedback != "symmetric" and not self.takes_feedback:
            raise ValueError(f"feedback={feedback!r}, but {type(self).__name__} has only 'symmetric'")
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
        self.learn_last = learn_last
        self.generator = generator
        self.feedback = signal.of(net, feedback, generator)
        self.inspection = Inspection(self)
        self._gradients: Callable[[], Gradients | None] = lambda: None
        self._begun: Begun | None = None
        check_network(net, self.horizon, self.stride)
        parallel.broadcast(net)

    def run(self, x: Tensor, y: Any, mask: Tensor | None = None) -> Iterator[Window]:
        """The loop: reset, then per window forward, loss, backward, detach."""
        frames = Frames(x, y, self.num_steps, mask=mask, per_step_targets=self.per_step_targets)
        with self.sequence(frames):
            host.reset(self.net)
            unroll, poison = Unroll(self.net, frames), finite.poison(x) + finite.poison_of_all(self.net)
            counts = parallel.any_rank(frames.counts())
            first = self.first(frames.T)
            for steps, learns in self.windows(frames.T):
                counted = range(max(steps.start, first), steps.stop)
                learns = learns and any(counts[counted.start : counted.stop])
                scale = self.scale(len(counted), frames.T)
                yield self.window(unroll, steps, learns, scale, poison, counted or steps)

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

    def window(
        self,
        unroll: Unroll,
        steps: range,
        learns: bool,
        scale: float,
        poison: Tensor | float,
        counted: range | None = None,
    ) -> Window:
        """One window: forward, loss, backward, detach.

        Args:
            unroll: runs the network.
            steps: the window.
            learns: whether it does.
            scale: of its loss.
            poison: added to the loss that it tells.
            counted: the last of its steps, those that the loss is of; None: all.
        """
        counted = counted or steps
        with compressed([unroll.frames.x]) if self.compress and learns else nullcontext():
            with torch.set_grad_enabled(learns):
                outputs = self._outputs(unroll, steps)
                last = tree_map(lambda output: output[-len(counted) :], outputs) if counted != steps else outputs
                loss = self.objective(last, unroll.frames.targets(counted), counted)
            if learns:
                self.propagate(loss * scale + self.penalty())
        state.detach(self.net)
        # Inside autocast the casts of the weights are cached, with their graph, until the weights change.
        torch.clear_autocast_cache()
        return Window(steps, loss.detach() + poison, tree_map(Tensor.detach, outputs), learns)

    def _outputs(self, unroll: Unroll, steps: range) -> Any:
        if self.feedback is None:
            return self.forward(unroll, steps)
        with torch.compiler.set_stance("force_eager"):  # a compiled network would not see the signals
            outputs = self.forward(unroll, steps)
        return self.feedback.caught(outputs) if torch.is_grad_enabled() else outputs

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
        if self.learn_last is not None:
            raise ValueError(f"learn_last={self.learn_last}: a stream has no last steps")
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
