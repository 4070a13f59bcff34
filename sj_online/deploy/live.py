"""A network that runs live: one step at a time, its state kept."""

from collections.abc import Iterable, Iterator
from typing import Any, Self

import torch
from torch import nn

from sj_online import host
from sj_online.tree import tree_map
from sj_online.unroll import step_mode


class Stream(Iterator[Any]):
    """See :func:`stream`.

    Attributes:
        t: steps since the last reset.
    """

    def __init__(self, net: nn.Module, frames: Iterable[Any]) -> None:
        self.net = net
        self.frames = iter(frames)
        self.sequence = step_mode(net) == "m"
        self.reset()

    def reset(self) -> None:
        """Forget: the next frame is the first of a sequence."""
        host.reset(self.net)
        self.t = 0

    def step(self, x: Any) -> Any:
        """The output for one frame more ``[N, ...]``."""
        with torch.no_grad():
            if not self.sequence:
                y = self.net(x)
            else:
                y = tree_map(lambda each: each[0], self.net(tree_map(lambda each: each[None], x)))
        self.t += 1
        return y

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        return self.step(next(self.frames))


def stream(net: nn.Module, frames: Iterable[Any]) -> Stream:
    """Run a network over frames as they come, without end if need be: memory stays the same however many there are.

    It begins with a reset, and resets where it is told to: ``running.reset()`` between two frames.

    Args:
        net: a network in eval mode, as :func:`~sj_online.deploy.load` gives it; in step mode 'm' it gets sequences of
            one step.
        frames: of one step each, ``[N, ...]``; a tensor ``[T, N, ...]`` is T of them.

    Returns:
        An iterator over the outputs of the steps, ``[N, ...]``.

    Raises:
        ValueError: ``net`` is in training mode.

    Example:
        >>> from spikingjelly.activation_based import neuron
        >>> running = stream(neuron.IFNode(v_threshold=1.0).eval(), torch.full((4, 1), 0.5))
        >>> [next(running).item(), next(running).item()]
        [0.0, 1.0]
        >>> running.reset()
        >>> next(running).item()
        0.0
    """
    if net.training:
        raise ValueError("net is in training mode; a stream runs in eval mode: net.eval()")
    return Stream(net, frames)
