"""Backpropagation through time in slices of k steps."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sj_online.loss import Loss
from sj_online.trainer import check
from sj_online.trainer.base import Rule


class TimeSlicing(Rule):
    """The sequence in slices of k steps: exact inside a slice, nothing carried back from one to the next (LM-H).

    The loss of a slice is the mean over its steps. Where k does not divide T the last slice is shorter. With ``k=1``
    this is ``SLTT(update='step', step_scale='sum')``, with ``k=T`` it is BPTT.

    Args:
        net: see :class:`~sj_online.trainer.base.Rule`, as the arguments not named here.
        optimizer: see there.
        k: the number of steps of a slice. A network in step mode 'm' gets a slice in one call, and may hold layers
            that mix time, such as tdBN.

    Example:
        >>> from spikingjelly.activation_based import layer, neuron
        >>> net = nn.Sequential(layer.Linear(8, 4), neuron.LIFNode(), layer.Linear(4, 3))
        >>> rule = TimeSlicing(net, torch.optim.SGD(net.parameters(), lr=0.1), k=4, num_steps=6)
        >>> [window.steps for window in rule.gradients(torch.rand(2, 8), torch.tensor([0, 2]))]
        [range(0, 4), range(4, 6)]
    """

    paper = "LM-H (Hao et al. 2024)"
    exact = False

    def __init__(
        self,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        k: int = 2,
        *,
        loss_fn: Loss = F.cross_entropy,
        num_steps: int | None = None,
        update: str = "step",
        backward: Callable[[Tensor], None] | None = None,
        before_step: Callable[[], bool | None] | None = None,
    ) -> None:
        check.at_least_one("k", k)
        self.k = k
        super().__init__(
            net,
            optimizer,
            loss_fn=loss_fn,
            num_steps=num_steps,
            update=update,
            backward=backward,
            before_step=before_step,
        )

    @property
    def horizon(self) -> int:
        """The steps of a slice."""
        return self.k

    def scale(self, k: int, T: int) -> float:
        """The mean over the slice."""
        return 1.0
