"""The leak of a presynaptic trace: that of the neurons whose membrane the trace follows."""

from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from sj_online.trainer.topology import Place

Leak = Tensor | float


def of_neuron(node: nn.Module, t: int) -> Leak | None:
    """du[t] / du[t-1] of a neuron below threshold, at step t from 0; None if it is not one number, or not known.

    A neuron of a third party tells it by a method ``leak(t)``.
    """
    if callable(getattr(node, "leak", None)):
        return node.leak(t)
    if isinstance(node, (neuron.IFNode, neuron.SimpleIFNode, neuron.HalfThresholdIFNode, neuron.TernaryIFNode)):
        return 1.0
    if isinstance(node, (neuron.LIFNode, neuron.SimpleLIFNode, neuron.TernaryLIFNode)):
        return 1.0 - 1.0 / node.tau
    if isinstance(node, neuron.ParametricLIFNode):
        return 1.0 - node.w.sigmoid()
    return None


def of_place(net: nn.Module, place: Place, t: int) -> Leak:
    """The one leak of a synapse at step t; the mean, where leaks that were one at first have been learnt apart."""
    leaks = [leak for name in place.neurons if (leak := of_neuron(net.get_submodule(name), t)) is not None]
    return leaks[0] if isinstance(leaks[0], float) else sum(leaks[1:], leaks[0]) / len(leaks)


def check_one(net: nn.Module, name: str, place: Place, T: int) -> None:
    """Raise, naming the synapse, unless all its neurons have one leak at each of T steps."""
    kinds, leaks = [], set()
    for node_name in place.neurons:
        node = net.get_submodule(node_name)
        at = [of_neuron(node, t) for t in range(T)]
        known = [float(value) for value in at if value is not None]
        leaks.add(tuple(known) if len(known) == T else None)
        kinds.append(f"{node_name!r} ({type(node).__name__}, leak {f'{known[0]:.4g}' if known else 'unknown'})")
    if len(leaks) != 1 or None in leaks:
        what = "is fed by" if place.role == "readout" else "sends its current to"
        raise ValueError(
            f"the trace of synapse {name!r} needs one leak, but it {what} {', '.join(kinds) or 'no neuron'}: "
            f"give trace_decay={{{name!r}: value}}"
        )
