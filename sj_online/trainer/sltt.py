"""Online training: one step in a graph, nothing carried back in time."""

from sj_online.trainer.base import Rule


class SLTT(Rule):
    """Spatial gradients only: each step's loss is propagated through that step alone (SLTT, Meng et al. 2023).

    With ``update='step', step_scale='sum'`` this is the online training of EM-PF (Alg. 1) and HD-LIF.
    Arguments as in :class:`~sj_online.trainer.base.Rule`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from spikingjelly.activation_based import layer, neuron
        >>> net = nn.Sequential(layer.Linear(8, 4), neuron.LIFNode(), layer.Linear(4, 3))
        >>> rule = SLTT(net, torch.optim.SGD(net.parameters(), lr=0.1))
        >>> rule.train_step(torch.rand(6, 2, 8), torch.tensor([0, 2])).output.shape
        torch.Size([2, 3])
    """

    paper = "SLTT (Meng et al. 2023)"
    exact = False
