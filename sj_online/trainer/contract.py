"""What a rule says of itself: all that one may override, each with what it is for most."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sj_online.frames import Frames
from sj_online.install import replaced_forwards
from sj_online.layer import is_synapse
from sj_online.loss import Loss, Targets, window_loss
from sj_online.trainer.signal import Feedback
from sj_online.trainer.table import Way, table
from sj_online.unroll import Unroll


class Contract:
    """What :class:`~sj_online.trainer.base.Rule` asks of a rule; the loop itself is there."""

    net: nn.Module
    loss_fn: Loss
    step_scale: str
    update: str
    learn_last: int | None
    feedback: Feedback | None
    generator: torch.Generator | None
    backward: Callable[[Tensor], None]

    paper: ClassVar[str]
    exact: ClassVar[bool]
    """Whether the gradient of a sequence is that of backpropagation through time, or has at least its direction."""
    exact_in_one_step: ClassVar[bool] = True
    """Whether the gradient of a single step is that of backpropagation; not in feedback alignment, for instance."""
    paper_update: ClassVar[str] = "sequence"
    paper_step_scale: ClassVar[str] = "mean"
    streams: ClassVar[bool] = True
    """Whether it can learn without knowing the number of steps."""
    takes_feedback: ClassVar[bool] = True
    """Whether it has signals that ``feedback`` can replace; the rules of one step have."""
    looks_at_all_steps: ClassVar[bool] = False
    """Whether what it must know of a network shows at any step."""
    horizon: int | None = 1
    """The number of steps in one graph; None for all of them."""
    stride: int | None = 1
    """The number of steps by which the window moves, and of outputs with a loss in it; None for all of them."""

    def windows(self, T: int) -> Iterator[tuple[range, bool]]:
        """The windows of steps in their order, and whether each learns."""
        k = self.stride or T
        for start in range(0, T, k):
            yield range(start, min(start + k, T)), True

    def first(self, T: int) -> int:
        """The first step that learns, with ``learn_last``.

        Raises:
            ValueError: there are fewer steps.
        """
        if self.learn_last is not None and self.learn_last > T:
            raise ValueError(f"learn_last={self.learn_last}, but the sequence has T={T} steps")
        return 0 if self.learn_last is None else T - self.learn_last

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

    def forwards(self) -> dict[nn.Module, Callable[..., Any]]:
        """What stands in the place of modules' forwards for the time of a sequence."""
        return {}

    def installed(self) -> AbstractContextManager[Any]:
        """What the rule puts into the network for the time of a sequence: its :meth:`forwards` and the feedback."""
        forwards = self.forwards()
        return replaced_forwards(forwards if self.feedback is None else self.feedback.around(forwards))

    def propagate(self, loss: Tensor) -> None:
        """The backward pass of a window."""
        self.backward(loss)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the network's and the optimizer's states."""
        drawn = {} if self.generator is None else {"generator": self.generator.get_state()}
        return drawn if self.feedback is None else {**drawn, "feedback": dict(self.feedback.matrices)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        if self.generator is not None:
            self.generator.set_state(state["generator"])
        if self.feedback is not None:
            self.feedback.matrices = dict(state["feedback"])

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
