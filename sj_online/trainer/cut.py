"""Cuts in space: spikes that go on without the graph that made them, for losses of single layers."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from sj_online import host
from sj_online.neuron.leak import is_neuron


def cut(
    net: nn.Module, behind: Callable[[str, Tensor], Any], names: Iterable[str] | None = None
) -> dict[nn.Module, Callable[..., Any]]:
    """The forwards of neurons whose spikes go on detached, to be put into the network by ``Rule.forwards``.

    Args:
        net: the network.
        behind: called with the name of each neuron and its spikes, with their graph, before the network goes on.
        names: of the neurons; None: all.

    Raises:
        ValueError: a name that is no neuron's, or a network that the host's memopt has treated.

    Example:
        >>> from spikingjelly.activation_based import neuron
        >>> net = nn.Sequential(nn.Linear(2, 3), neuron.IFNode())
        >>> [type(module).__name__ for module in cut(net, print)]
        ['IFNode']
    """
    nodes = {name: module for name, module in net.named_modules() if is_neuron(module)}
    for inner in host.checkpointed(net).values():
        shown = {module: host.shown(name) for name, module in net.named_modules()}
        raise ValueError(f"{shown[inner]!r} is run again in backward (memopt), which a cut graph has no use for")
    for name in names or ():
        if name not in nodes:
            raise ValueError(f"{name!r} is none of the neurons {', '.join(nodes)}")

    def forward_of(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            s = inner(*args, **kwargs)
            behind(name, s)
            return s.detach()

        return forward

    return {nodes[name]: forward_of(name, nodes[name].forward) for name in (nodes if names is None else names)}
