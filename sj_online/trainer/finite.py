"""Numbers that are not finite reach the loss that a rule reports: a spike would hide them.

Nothing here waits for the device: the loss is the one number that the caller reads anyway.
"""

import torch
from torch import Tensor, nn


@torch.no_grad()
def poison(x: Tensor) -> Tensor | float:
    """0, or NaN where x holds a number that is not finite.

    Example:
        >>> float(poison(torch.tensor([1.0, 2.0]))), float(poison(torch.tensor([1.0, torch.inf])))
        (0.0, nan)
    """
    return torch.linalg.vector_norm(x, float("inf")) * 0 if x.is_floating_point() else 0.0


@torch.no_grad()
def poison_of_all(net: nn.Module) -> Tensor | float:
    """0, or NaN where a parameter of the network is not finite."""
    parameters: list[Tensor] = [p for p in net.parameters() if p.is_floating_point() and p.numel()]
    if not parameters:
        return 0.0
    # The largest magnitude, because sums of squares overflow; NaN and infinity come through it.
    largest = torch._foreach_norm(parameters, float("inf"))
    return torch.stack([value.float().to(largest[0].device) for value in largest]).sum() * 0
