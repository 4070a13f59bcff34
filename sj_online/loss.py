"""Losses of the papers, per step or over a window of steps; targets are labels ``[N]`` or soft ``[N, classes]``.

The cross entropy of each step, TET's loss, needs no name of its own: it is ``torch.nn.functional.cross_entropy``, whose
mean over the steps :func:`window_loss` takes.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sj_online.tree import at, tensors, tree_map

Loss = Callable[[Any, Any], Tensor]


class OverWindow:
    """A loss of a whole window; see :func:`over_window`."""

    def __init__(self, fn: Loss) -> None:
        self.fn = fn
        self.__doc__ = fn.__doc__
        self.__wrapped__ = fn  # whose signature it has
        self.__name__ = getattr(fn, "__name__", type(fn).__name__)
        self.__module__ = getattr(fn, "__module__", __name__)

    def __reduce__(self) -> Any:
        """As the name of what :func:`over_window` decorated, or by the function in it."""
        named = getattr(sys.modules.get(self.__module__), self.__name__, None)
        return self.__name__ if named is self else (OverWindow, (self.fn,))

    def __call__(self, outputs: Any, y: Any) -> Tensor:
        """The loss of outputs ``[k, N, classes]``."""
        return self.fn(outputs, y)


def over_window(fn: Loss) -> OverWindow:
    """``fn`` as a loss of a whole window: it gets ``[k, N, classes]`` where others get ``[N, classes]`` k times.

    Example:
        >>> sum_ce = over_window(lambda outputs, y: F.cross_entropy(outputs.sum(0), y))
        >>> round(window_loss(sum_ce, torch.zeros(4, 2, 10), torch.tensor([3, 7])).item(), 4)
        2.3026
    """
    return OverWindow(fn)


@dataclass
class Targets:
    """The targets of the steps of a window.

    Attributes:
        each: what the loss takes, for each of the k steps.
        mask: ``[k, N]`` of bools, which rows of each step count; None: all.
        per_step: the steps have targets of their own; one that is None has no target.
    """

    each: list[Any]
    mask: Tensor | None = None
    per_step: bool = False

    def together(self) -> Any:
        """The targets of a loss of the whole window: the one that all steps share, or ``[k, N, ...]``."""
        return tree_map(lambda *parts: torch.stack(parts), *self.each) if self.per_step else self.each[0]

    def without(self, t: int) -> bool:
        """Whether a step has no target."""
        return self.per_step and self.each[t] is None


def window_loss(fn: Loss, outputs: Any, targets: Any) -> Tensor:
    """The loss of a window: ``fn`` of the whole if it is one of a window, else the mean of ``fn`` over the steps.

    Args:
        fn: ``fn([N, classes], y)``, or a loss made by :func:`over_window`.
        outputs: ``[k, N, ...]``, or a dict, tuple or dataclass of such.
        targets: what the loss takes at every step, or :class:`Targets`. A step's loss under a mask is that of the rows
            that count, times their share; steps without a target are left out.

    Raises:
        ValueError: ``fn`` gives no scalar, or is one of a window under a mask.
    """
    k = len(next(tensors(outputs)))
    if not isinstance(targets, Targets):
        targets = Targets([targets] * k)
    if isinstance(fn, OverWindow):
        if targets.mask is not None or any(map(targets.without, range(k))):
            raise ValueError(f"loss_fn={fn.__name__} is one of a whole window, which takes no mask: give one of a step")
        return _scalar(fn, fn(outputs, targets.together()))
    losses = [_step_loss(fn, outputs, targets, t) for t in range(k) if not targets.without(t)]
    if not losses:
        return next(tensors(outputs)).sum() * 0
    return sum(losses[1:], losses[0]) / len(losses)


def _step_loss(fn: Loss, outputs: Any, targets: Targets, t: int) -> Tensor:
    output, y = at(outputs, t), targets.each[t]
    if targets.mask is None or bool(targets.mask[t].all()):
        return _scalar(fn, fn(output, y))
    rows = targets.mask[t].nonzero()[:, 0].to(next(tensors(output)).device)
    if not len(rows):
        return next(tensors(output)).sum() * 0
    part = _scalar(fn, fn(at(output, rows), at(y, rows)))
    return part * (len(rows) / targets.mask.shape[1])


def _scalar(fn: Loss, loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise ValueError(f"loss_fn={getattr(fn, '__name__', fn)} gives {what}, not a scalar: reduce it to its mean")
    return loss.reshape(())


@over_window
def rate_cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of the mean output of a window, CE(mean_t o[t], y) (LM-H).

    Args:
        outputs: ``[k, N, classes]``.
        y: labels ``[N]`` or soft targets ``[N, classes]``.
    """
    return F.cross_entropy(outputs.mean(0), y)


@over_window
def sum_cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of the summed output of a window, CE(sum_t o[t], y) (HD-LIF's baseline under BPTT).

    Args:
        outputs: ``[k, N, classes]``.
        y: labels ``[N]`` or soft targets ``[N, classes]``.
    """
    return F.cross_entropy(outputs.sum(0), y)


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


def one_hot_smooth_l1(output: Tensor, y: Tensor) -> Tensor:
    """The smooth L1 distance of outputs ``[N, classes]`` from the targets, labels as one-hot (DECOLLE).

    Example:
        >>> round(one_hot_smooth_l1(torch.zeros(2, 10), torch.tensor([3, 7])).item(), 4)
        0.05
    """
    return F.smooth_l1_loss(output, soft(y, output))


def soft(y: Tensor, output: Tensor) -> Tensor:
    """Targets ``[N, classes]`` in the dtype of the output: labels become one-hot, soft targets stay as they are."""
    return (y if y.is_floating_point() else F.one_hot(y, output.shape[-1])).to(output.dtype)
