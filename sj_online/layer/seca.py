"""Spiking efficient channel attention."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SECA(nn.Module):
    r"""Channel attention with six parameters, shared over time (EM-PF, Eq. 9; HD-LIF).

    :math:`y = \sigma(\mathrm{Conv1d}_K(\mathrm{GAP}(I))) \odot I`, the convolution along the channels. Its weights are
    not a synapse's: they scale currents, and no training rule traces them.

    Args:
        kernel_size: K, odd.
        sign: take the sign of the pooled current, as EM-PF's Eq. 9 prints; then no gradient flows through the scores
            to ``I``. HD-LIF does without.

    Shape:
        ``[N, C, H, W]`` or ``[T, N, C, H, W]``, in any step mode, to the same.

    Raises:
        ValueError: an even or non-positive kernel size.

    Example:
        >>> sum(p.numel() for p in SECA().parameters())
        6
        >>> SECA()(torch.rand(2, 8, 4, 4)).shape
        torch.Size([2, 8, 4, 4])
    """

    paper = "EM-PF, Eq. 9"

    def __init__(self, kernel_size: int = 5, *, sign: bool = False) -> None:
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size!r} is not an odd number of at least 1")
        super().__init__()
        self.sign = sign
        bound = 1 / math.sqrt(kernel_size)  # as torch's Conv1d of one channel
        self.weight = nn.Parameter(torch.empty(1, 1, kernel_size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(1).uniform_(-bound, bound))

    def forward(self, I: Tensor) -> Tensor:
        """Scale each channel of the current ``I`` by its score."""
        pooled = I.mean(dim=(-2, -1))
        if self.sign:
            pooled = pooled.sign()
        scores = F.conv1d(pooled.flatten(0, -2)[:, None], self.weight, self.bias, padding=self.weight.shape[-1] // 2)
        return scores.sigmoid().view(*pooled.shape, 1, 1) * I

    def extra_repr(self) -> str:
        """Kernel size and sign."""
        return f"kernel_size={self.weight.shape[-1]}, sign={self.sign}"
