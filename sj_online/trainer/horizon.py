"""The last steps of a network, kept so that they can be run again with the weights of the present.

Kept of each step are its input, the state before it, random generators included, and the input current of every neuron.
Run again, a neuron is fed the value that was kept with the gradient of the one computed anew: potentials and spikes are
those of the past, and the gradient goes to the present weights (STOL, Alg. 1).
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sj_online import host
from sj_online.frames import Frames
from sj_online.install import replaced_forwards
from sj_online.neuron.leak import is_neuron
from sj_online.state import State, as_replay, buffers_as_before, looked_at
from sj_online.tree import tensors
from sj_online.unroll import Unroll


@dataclass
class Step:
    """A step: its input, the state with which it ran, and the currents of each neuron in the order of its calls."""

    unroll: Unroll
    steps: range
    state: State
    currents: list[list[Tensor]] = field(default_factory=list)


class _Kept(torch.autograd.Function):
    """A value that was kept, with the gradient of the one computed anew; neither costs a pass over memory."""

    @staticmethod
    def forward(ctx: Any, computed: Tensor, value: Tensor) -> Tensor:
        return value.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _with_gradient_of(computed: Any, value: Tensor) -> Tensor:
    if not isinstance(computed, Tensor) or not computed.requires_grad or computed.shape != value.shape:
        return value
    return _Kept.apply(computed, value)


class History:
    """The last steps of one sequence.

    Args:
        net: the network.
        length: how many steps are kept.
        first: before the first step comes one of zero input and zero currents.
        statistics: norms count the steps that are run again into their running statistics.
        spatial: the spikes of past steps carry gradient to the layers before; else only the potentials do.
    """

    def __init__(self, net: nn.Module, length: int, *, first: bool, statistics: bool, spatial: bool) -> None:
        self.net = net
        self.nodes = [module for module in net.modules() if is_neuron(module)]
        self.steps: deque[Step] = deque(maxlen=length)
        self.first = first
        self.statistics = statistics
        self.spatial = spatial
        self.end = buffers_as_before(net)
        """Moves the buffers' values to where they were before the sequence."""

    def run(self, unroll: Unroll, steps: range) -> Any:
        """Run one step, the kept ones before it in its graph, and keep it; returns ``[1, N, ...]``."""
        now = Step(unroll, steps, State(self.net), [[] for _ in self.nodes])
        if self.steps.maxlen and self.first and not self.steps:
            zeros = Frames(torch.zeros_like(unroll.frames[steps.start]), num_steps=1)
            self.steps.append(Step(Unroll(self.net, zeros), range(1), now.state, [[] for _ in self.nodes]))
        output = self._behind_the_past(now) if self.steps else self._forward(now, self._recording)
        self.steps.append(now)
        return output

    def _behind_the_past(self, now: Step) -> Any:
        with as_replay():
            for past in self.steps:
                self._put(past.state)
                self._forward(past, self._fed)
        self._put(now.state)
        return self._forward(now, self._recording)

    def _put(self, state: State) -> None:
        counted = _statistics(self.net) if self.statistics else {}
        state.put(_with_gradient_of)
        for (module, name), value in counted.items():
            module._buffers[name] = value

    def _forward(self, step: Step, made: Callable[..., Callable[..., Any]]) -> Any:
        nodes = zip(self.nodes, step.currents, strict=True)
        with replaced_forwards({node: made(node, currents) for node, currents in nodes}):
            return step.unroll(step.steps)

    def _recording(self, node: nn.Module, currents: list[Tensor]) -> Callable[..., Any]:
        inner = node.forward

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            currents.append(x.detach().clone())  # the network may go on to change x in place
            return inner(x, *args, **kwargs)

        return forward

    def _fed(self, node: nn.Module, currents: list[Tensor]) -> Callable[..., Any]:
        inner, left, spatial = node.forward, list(currents), self.spatial

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            kept = left.pop(0) if left else torch.zeros_like(x)
            s = inner(_with_gradient_of(x, kept), *args, **kwargs)
            return s if spatial else s.detach()

        return forward


def _statistics(net: nn.Module) -> dict[tuple[nn.Module, str], Tensor]:
    """The running statistics of norms."""
    norms = [module for module in net.modules() if isinstance(module, host.BATCH_NORMS) and module.training]
    return {(norm, name): value for norm in norms for name, value in norm._buffers.items() if value is not None}


def check_replay(history: Callable[[], History], frames: Frames) -> None:
    """Raise unless the network does the same with its past steps run again as without.

    Args:
        history: makes a history of the network.
        frames: an input; its first steps are tried.

    Raises:
        ValueError: names the first state, or the output, that differs.
    """
    frames, runs = frames.first(3), []
    net = history().net
    for replays in (False, True):
        with looked_at(net), torch.no_grad():
            host.reset(net)
            unroll, kept = Unroll(net, frames), history()
            kept.first = kept.statistics = False
            run = kept.run if replays else lambda unroll, steps: unroll(steps)
            outputs = [run(unroll, range(t, t + 1)) for t in range(frames.T)]
            runs.append((list(tensors(outputs)) + list(_remembered(net)), dict(_named_state(net))))
    (plain, state), (again, state_again) = runs
    for name, value in state.items():
        if not _equal(value, state_again.get(name)):
            raise ValueError(
                f"running a past step again leaves {name!r} other than it was, which this rule cannot put back: keep"
                " such state in a memory, a buffer or a plain attribute"
            )
    if len(plain) != len(again) or not all(map(_equal, plain, again)):
        raise ValueError(
            "running a past step again changes the network's output: it has a state that this rule cannot put back"
            " (keep it in a memory, a buffer or a plain attribute), or randomness of its own"
        )


def _remembered(net: nn.Module) -> Iterator[Tensor]:
    """The host's memories, which are always put back: where they differ, something else did."""
    for module in net.modules():
        yield from tensors(list(host.memories(module).values()))


def _named_state(net: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in net.named_modules():
        for key, value in {**dict(host.attributes(module)), **module._buffers}.items():
            if isinstance(value, Tensor | int | float | list | tuple):
                yield f"{name}.{key}".lstrip("."), value


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return (
            isinstance(b, Tensor) and a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)
        )
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(_equal, a, b))
    return not isinstance(a, int | float) or a == b
