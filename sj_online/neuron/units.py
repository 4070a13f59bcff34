"""Between raw parameters and natural units."""

import math

from torch import Tensor


def logit(p: float) -> float:
    """The inverse of the sigmoid, for p in (0, 1)."""
    return math.log(p / (1 - p))


def natural(value: Tensor) -> str:
    """A parameter [1] or [T] for a repr, e.g. ``0.5`` or ``[0.5, 0.4]``."""
    numbers = [float(f"{v:.4g}") for v in value.tolist()]
    return str(numbers[0] if len(numbers) == 1 else numbers)
