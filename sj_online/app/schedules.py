"""Learning rates over a run's epochs, besides those of ``torch.optim.lr_scheduler``."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def cosine(optimizer: Optimizer, epochs: int, *, warmup: int = 0, final: float = 0.0) -> LambdaLR:
    """Half a cosine from the optimizer's learning rate to a part of it, after a linear warm-up.

    In epoch e = 0, 1, ... the learning rate is multiplied by ``final + (1 - final) (1 + cos(pi e' / E')) / 2`` with e'
    and E' counted from the end of the warm-up, and during the warm-up by ``(e + 1) / warmup``.

    Args:
        optimizer: whose learning rates are changed.
        epochs: of the whole run, E.
        warmup: epochs before the cosine begins.
        final: the part of the learning rate at E.

    Raises:
        ValueError: a warm-up that does not end before the run, or a part out of [0, 1].

    Example:
        >>> import torch
        >>> sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule = cosine(sgd, epochs=4, warmup=2)
        >>> rates = []
        >>> for _ in range(4):
        ...     rates.append(round(sgd.param_groups[0]["lr"], 4))
        ...     sgd.step()
        ...     schedule.step()
        >>> rates
        [0.5, 1.0, 1.0, 0.5]
    """
    if not 0 <= warmup < epochs:
        raise ValueError(f"warmup={warmup} must be from 0 to less than the {epochs} epochs")
    if not 0 <= final <= 1:
        raise ValueError(f"final={final} must be from 0 to 1")

    def factor(epoch: int) -> float:
        if epoch < warmup:
            return (epoch + 1) / warmup
        return final + (1 - final) * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup))) / 2

    return LambdaLR(optimizer, factor)
