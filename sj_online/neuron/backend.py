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
    nodes = {name: node for name, node in net.named_modules() if isinstance(node, instance or OnlineNode)}
    for name, node in nodes.items():
        if backend not in node.supported_backends:
            raise ValueError(
                f"backend={backend!r}: {name!r} ({type(node).__name__}) supports {node.supported_backends}"
            )
    for node in nodes.values():
        node.backend = backend
