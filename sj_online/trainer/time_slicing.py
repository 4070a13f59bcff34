"""Backpropagation through time in slices of k steps."""

from typing import Unpack

import torch
from torch import nn

from sj_online import check
from sj_online.trainer.base import Rule
from sj_online.trainer.options import Common, only


class _Options(Common, total=False):
    update: str | None


class TimeSlicing(Rule):
    """The sequence in slices of k steps: exact inside a slice, nothing carried back from one to the next (LM-H).

    The loss of a slice is the mean over its steps. Where k does not divide T the last slice is shorter. With ``k=1``
    this is ``SLTT(update='step', step_scale='sum')``, with ``k=T`` it is BPTT.

    Args:
        net: see :class:`~sj_online.trainer.base.Rule`, as the arguments not named here.
        optimizer: see there.
        k: the number of steps of a slice. A network in step mode 'm' gets a slice in one call, and may hold layers
            that mix time, such as tdBN.
        options: see there.

    Example:
        >>> from spikingjelly.activation_based import layer, neuron
        >>> net = nn.Sequential(layer.Linear(8, 4), neuron.LIFNode(), layer.Linear(4, 3))
        >>> rule = TimeSlicing(net, torch.optim.SGD(net.parameters(), lr=0.1), k=4, num_steps=6)
        >>> [window.steps for window in rule.gradients(torch.rand(2, 8), torch.tensor([0, 2]))]
        [range(0, 4), range(4, 6)]
    """

    paper = "LM-H (Hao et al. 2024)"
    exact = False
    takes_feedback = False
    paper_update = "step"

    def __init__(
        self, net: nn.Module, optimizer: torch.optim.Optimizer, k: int = 2, **options: Unpack[_Options]
    ) -> None:
        check.at_least("k", k)
        self.k = self.horizon = self.stride = k
        only(type(self), options, _Options)
        super().__init__(net, optimizer, **options)

    def scale(self, k: int, T: int) -> float:
        """The mean over the slice."""
        return 1.0
