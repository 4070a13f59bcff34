"""Losses of the papers, per step or over a window of steps; targets are labels ``[N]`` or soft ``[N, classes]``.

The cross entropy of each step, TET's loss, needs no name of its own: it is ``torch.nn.functional.cross_entropy``, whose
mean over the steps :func:`window_loss` takes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def over_window(fn: Loss) -> Loss:
    """Mark ``fn`` as a loss of a whole window: it gets ``[k, N, classes]`` where others get ``[N, classes]`` k times.

    Example:
        >>> sum_ce = over_window(lambda outputs, y: F.cross_entropy(outputs.sum(0), y))
        >>> round(window_loss(sum_ce, torch.zeros(4, 2, 10), torch.tensor([3, 7])).item(), 4)
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


@over_window
def rate_cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of the mean output of a window, CE(mean_t o[t], y) (LM-H).

    Args:
        outputs: ``[k, N, classes]``.
        y: labels ``[N]`` or soft targets ``[N, classes]``.
    """
    return F.cross_entropy(outputs.mean(0), y)


@dataclass(frozen=True)
class CrossEntropyMSE:
    """The loss of a step, ``(1 - a) CE(o, y) + a MSE(o, target)`` (OTTT and SLTT; STOL, Eq. 11).

    Args:
        a: the weight of the mean squared error: 0.05 on static images, 0.001 for OTTT on events.
        target: of the squared error: ``'one_hot'``, the targets themselves (OTTT), or ``'ones'``, 1 for every class,
            which keeps the outputs small (SLTT, as in TET).
        ce: the weight of the cross entropy; 1 - a if None. STOL's code has 1 on events.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> loss_fn = CrossEntropyMSE(0.05)
        >>> round(loss_fn(torch.zeros(2, 10), torch.tensor([3, 7])).item(), 4)
        2.1925
    """

    a: float = 0.05
    target: str = "one_hot"
    ce: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.a <= 1:
            raise ValueError(f"a={self.a!r} is not in [0, 1]")
        if self.target not in ("one_hot", "ones"):
            raise ValueError(f"target={self.target!r} is not one of 'one_hot', 'ones'")

    def __call__(self, output: Tensor, y: Tensor) -> Tensor:
        """The loss of outputs ``[N, classes]`` for labels ``[N]`` or soft targets ``[N, classes]``."""
        target = torch.ones_like(output) if self.target == "ones" else soft(y, output)
        ce = 1 - self.a if self.ce is None else self.ce
        return ce * F.cross_entropy(output, y) + self.a * F.mse_loss(output, target)


def soft(y: Tensor, output: Tensor) -> Tensor:
    """Targets ``[N, classes]`` in the dtype of the output: labels become one-hot, soft targets stay as they are."""
    return (y if y.is_floating_point() else F.one_hot(y, output.shape[-1])).to(output.dtype)
