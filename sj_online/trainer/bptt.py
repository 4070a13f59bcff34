"""Backpropagation through time, the oracle of every other rule."""

from typing import Unpack

import torch
from torch import nn

from sj_online.trainer.base import Rule
from sj_online.trainer.options import Common, only


class _Options(Common, total=False):
    step_scale: str | None


class BPTT(Rule):
    """All T steps in one graph: the exact gradient, with memory that grows with T (EM-PF, Eq. 2: STBP).

    The loss is the mean over the steps of the per-step loss (``step_scale='sum'``: their sum), or one loss of the
    whole sequence if ``loss_fn`` is made by :func:`sj_online.loss.over_window`. Other arguments as in
    :class:`~sj_online.trainer.base.Rule`.

    Example:
        >>> from spikingjelly.activation_based import layer, neuron
        >>> net = nn.Sequential(layer.Linear(8, 4), neuron.LIFNode(), layer.Linear(4, 3))
        >>> rule = BPTT(net, torch.optim.SGD(net.parameters(), lr=0.1), num_steps=6)
        >>> result = rule.train_step(torch.rand(2, 8), torch.tensor([0, 2]))
        >>> result.output.shape
        torch.Size([2, 3])
    """

    paper = "STBP (Wu et al. 2018)"
    exact = True
    takes_feedback = False
    streams = False
    horizon = None
    stride = None

    def __init__(self, net: nn.Module, optimizer: torch.optim.Optimizer, **options: Unpack[_Options]) -> None:
        only(type(self), options, _Options)
        super().__init__(net, optimizer, **options)
