"""Batch normalisation that means the same step by step and over a sequence."""

import torch
from spikingjelly.activation_based import layer
from torch import Tensor


class StepBatchNorm2d(layer.BatchNorm2d):
    """Batch norm with the statistics of each time step, in both step modes.

    The host's layer normalises a sequence over T and N together, so in training its 's' and 'm' differ. Here 'm' is
    the loop over 's', hence what an online rule trains: one normalisation and one update of the running statistics
    per step. Parameters and running statistics are shared by the steps. (Batch norm of the membrane, with parameters
    of its own per step, is the neurons' ``membrane_norm``.)

    Args and shapes are those of the host's ``layer.BatchNorm2d``.

    Example:
        >>> x = torch.rand(4, 2, 3, 5, 5)
        >>> steps = StepBatchNorm2d(3)(x[0])
        >>> bool((StepBatchNorm2d(3, step_mode="m")(x)[0] == steps).all())
        True
    """

    paper = "SLTT (Meng et al. 2023); LM-H"

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[N, C, H, W]``, or step by step ``[T, N, C, H, W]`` in multi-step mode."""
        if self.step_mode == "s" or not self.training:
            return super().forward(x)
        return torch.stack([torch.nn.BatchNorm2d.forward(self, x_t) for x_t in x])
