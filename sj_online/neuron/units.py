"""Between raw parameters and natural units."""

import math

from torch import Tensor


def logit(p: float) -> float:
    """The inverse of the sigmoid, for p in (0, 1)."""
    return math.log(p / (1 - p))


def first(value: Tensor) -> float:
    """The first number of a parameter [1] or [T]; nan on the meta device, where there are no numbers."""
    return math.nan if value.is_meta else float(value.detach()[0])


def natural(value: Tensor) -> str:
    """A parameter [1] or [T] for a repr, e.g. ``0.5`` or ``[0.5, 0.4]``; on the meta device ``?``."""
    if value.is_meta:
        return "?"
    numbers = [float(f"{v:.4g}") for v in value.tolist()]
    return str(numbers[0] if len(numbers) == 1 else numbers)
