"""Losses of the papers, per step or over a window of steps."""

from collections.abc import Callable

from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def over_window(fn: Loss) -> Loss:
    """Mark ``fn`` as a loss of a whole window: it gets ``[k, N, classes]`` where others get ``[N, classes]`` k times.

    Example:
        >>> import torch, torch.nn.functional as F
        >>> rate_ce = over_window(lambda outputs, y: F.cross_entropy(outputs.mean(0), y))
        >>> round(window_loss(rate_ce, torch.zeros(4, 2, 10), torch.tensor([3, 7])).item(), 4)
        2.3026
    """
    fn.over_window = True  # type: ignore[attr-defined]
    return fn


def window_loss(fn: Loss, outputs: Tensor, y: Tensor) -> Tensor:
    """The loss of a window: ``fn`` of the whole if it is marked so, else the mean of ``fn`` over the steps.

    Args:
        fn: ``fn([N, classes], y)``, or a loss marked by :func:`over_window`.
        outputs: ``[k, N, classes]``.
        y: labels ``[N]`` or soft targets ``[N, classes]``.
    """
    if getattr(fn, "over_window", False):
        return fn(outputs, y)
    losses = [fn(output, y) for output in outputs]
    return sum(losses[1:], losses[0]) / len(losses)
