"""Choose who computes, for all neurons of a network."""

from torch import nn

from .base import BACKENDS, OnlineNode


def set_backend(net: nn.Module, backend: str, instance: type[OnlineNode] | None = None) -> None:
    """Set the backend of every neuron of this package in ``net``.

    Args:
        net: any network.
        backend: ``'torch'``, ``'cupy'`` or ``'auto'``.
        instance: only neurons of this class; None: all.

    Raises:
        ValueError: a backend that is unknown or not supported by one of the neurons.

    Example:
        >>> from sj_online.neuron import EMPFNode
        >>> net = nn.Sequential(nn.Linear(2, 3), EMPFNode())
        >>> set_backend(net, "auto")
        >>> net[1].backend
        'auto'
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is not one of {', '.join(map(repr, BACKENDS))}")
    for module in net.modules():
        if isinstance(module, instance or OnlineNode):
            module.backend = backend
