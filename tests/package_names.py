"""The names that this package registers, without those of other packages that are installed beside it.

For tests that give what they make arguments, which they cannot know for a stranger's.
"""

from importlib import metadata

from torch import nn

from sj_online.neuron.leak import is_neuron


def own(group: str) -> list[str]:
    """This package's names in a group, sorted."""
    points = metadata.entry_points(group=f"sj_online.{group}")
    return sorted(point.name for point in points if point.dist is not None and point.dist.name == "sj-online")


def fit_for(name: str, net: nn.Module) -> nn.Module:
    """The network as a rule takes it: RateBP refuses neurons that learn parameters of their own."""
    if name == "rate_bp":
        for module in filter(is_neuron, net.modules()):
            module.requires_grad_(False)
    return net
