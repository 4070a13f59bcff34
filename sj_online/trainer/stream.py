"""Learning from an endless stream."""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sj_online.frames import Frames
from sj_online.trainer import finite, parallel
from sj_online.trainer.result import Result, Total
from sj_online.unroll import Unroll

if TYPE_CHECKING:
    from sj_online.trainer.base import Rule


def stream(rule: "Rule", steps: Iterable[tuple[Tensor, Any]], stride: int) -> Iterator[Result]:
    """Learn from an endless stream: nothing is reset, and memory does not grow however long it is.

    As ``train_step`` with ``update='step', step_scale='sum'``: an update at each step with a target, of time slices at
    the end of each slice.

    Args:
        rule: the rule.
        steps: pairs of ``x_t [N, ...]`` and ``y_t``, which may be None.
        stride: how many steps it takes at a time.

    Yields:
        The result of each window: its mean loss and its mean output ``[N, ...]``.

    Example:
        >>> import torch
        >>> from spikingjelly.activation_based import layer, neuron
        >>> from sj_online.trainer import SLTT
        >>> net = torch.nn.Sequential(layer.Linear(8, 4), neuron.LIFNode(), layer.Linear(4, 3))
        >>> rule = SLTT(net, torch.optim.SGD(net.parameters(), lr=0.1))
        >>> steps = ((torch.rand(2, 8), torch.tensor([0, 2]) if t % 2 else None) for t in range(3))
        >>> [result.output.shape for result in rule.stream(steps)]
        [torch.Size([2, 3]), torch.Size([2, 3]), torch.Size([2, 3])]
    """
    windows = Frames.of_stream(steps, stride)
    first = next(windows, None)
    if first is None:
        return
    # One window tells nothing of how steps hang together: it is looked at a longer sequence of the first input.
    with rule.sequence(Frames(first[0], num_steps=2 * first.T + 1)):
        for frames in chain([first], windows):
            window = range(frames.start, frames.start + frames.T)
            learns = any(parallel.any_rank(frames.counts()))
            rule.optimizer.zero_grad()
            total, unroll, scale = Total(), Unroll(rule.net, frames), rule.scale(frames.T, frames.T)
            total.add(rule.window(unroll, window, learns, scale, finite.poison(frames.x)))
            if learns:
                rule.update_weights()
            yield total.result(finite.poison_of_all(rule.net) if learns else 0.0)
