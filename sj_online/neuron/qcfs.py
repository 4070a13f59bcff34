"""The QCFS activation: an ANN unit that equals the rate of an IF neuron exactly."""

import torch
from torch import Tensor, nn

from .units import natural


class QCFS(nn.Module):
    """Quantised clip-floor-shift activation (LM-H, Section 3, for its hybrid training).

    Forward: a = threshold clip(q, 0, 1), q = floor(levels x / threshold + 1/2) / levels: the mean output over levels
    steps of an IF neuron that starts at threshold / 2 and gets the constant input x.

    Gradient, with the floor passed straight through: da/dx = 1 where 0 <= q <= 1, both bounds included, else 0;
    da/dthreshold = clip(q, 0, 1) - da/dx x / threshold. The mask is explicit because torch 2.15 changed the derivative
    of clamp at its bounds, where QCFS has its outermost levels.

    Args:
        levels: number of levels above 0.
        threshold: trainable upper bound, at the start (the authors: 8 to train an ANN from scratch, else 1).

    Raises:
        ValueError: levels below 1 or a threshold that is not above 0.

    Example:
        >>> QCFS(levels=4, threshold=1.0)(torch.tensor([-1.0, 0.1, 0.3, 2.0])).tolist()
        [0.0, 0.0, 0.25, 1.0]
    """

    paper = "LM-H (Hao et al. 2024); QCFS (Bu et al. 2022)"

    def __init__(self, levels: int = 4, threshold: float = 8.0) -> None:
        if not isinstance(levels, int) or levels < 1:
            raise ValueError(f"levels={levels!r} is not an integer of at least 1")
        if not threshold > 0:
            raise ValueError(f"threshold={threshold!r} is not above 0")
        super().__init__()
        self.levels = levels
        self.threshold = nn.Parameter(torch.tensor(float(threshold)))

    def forward(self, x: Tensor) -> Tensor:
        """The activation of x, of any shape."""
        u = x / self.threshold
        q = (self.levels * x.detach() / self.threshold.detach() + 0.5).floor() / self.levels
        inside = (q >= 0) & (q <= 1)
        return self.threshold * (q.clamp(0, 1) + (u - u.detach()) * inside)

    def extra_repr(self) -> str:
        """Levels and threshold."""
        return f"levels={self.levels}, threshold={natural(self.threshold[None])}"
