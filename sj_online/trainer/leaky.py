"""A leaky sum of a network's outputs, which a rule may take the loss of."""

from typing import Any

from torch import Tensor

from sj_online.tree import tree_map


class LeakySum:
    """y[t] = decay y[t-1] + gain o[t]; the gradient of a step goes to its own output alone.

    Example:
        >>> import torch
        >>> y = LeakySum(0.5, gain=2.0)
        >>> y(torch.ones(1)).item(), y(torch.ones(1)).item()
        (2.0, 3.0)
    """

    def __init__(self, decay: float, gain: float = 1.0) -> None:
        self.decay = decay
        self.gain = gain
        self.y: Any = None

    def __call__(self, o: Any) -> Any:
        """The sum behind this step, of tensors in any structure."""
        if self.y is None:
            y = tree_map(lambda each: self.gain * each, o)
        else:
            y = tree_map(lambda each, before: self.decay * before + self.gain * each, o, self.y)
        self.y = tree_map(Tensor.detach, y)
        return y
