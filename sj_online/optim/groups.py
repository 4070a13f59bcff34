"""Parameter groups of an optimizer."""

from typing import Any

from spikingjelly.activation_based.neuron import BaseNode
from torch import nn


def param_groups(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: the neurons' parameters without weight decay, all others with it.

    A rule that updates at each step would apply the decay T times a batch, and pull the leaks and thresholds to the
    middle of their ranges.

    Example:
        >>> from spikingjelly.activation_based import neuron
        >>> net = nn.Sequential(nn.Linear(8, 4), neuron.ParametricLIFNode())
        >>> [(len(group["params"]), group["weight_decay"]) for group in param_groups(net, 5e-4)]
        [(2, 0.0005), (1, 0.0)]
    """
    of_neurons = {id(p) for node in net.modules() if isinstance(node, BaseNode) for p in node.parameters()}
    return [
        {"params": [p for p in net.parameters() if id(p) not in of_neurons], "weight_decay": weight_decay},
        {"params": [p for p in net.parameters() if id(p) in of_neurons], "weight_decay": 0.0},
    ]
