"""The leak of a presynaptic trace: that of the neurons whose membrane the trace follows."""

import torch
from torch import Tensor, nn

from sj_online.neuron.leak import Leak, of_neuron
from sj_online.trainer.topology import Place


def of_place(net: nn.Module, place: Place, t: int) -> Leak:
    """The one leak of a synapse at step t; the mean, where leaks that were one at first have been learnt apart."""
    leaks = [leak for name in place.neurons if (leak := of_neuron(net.get_submodule(name), t)) is not None]
    return leaks[0] if all(isinstance(leak, float) for leak in leaks) else sum(leaks[1:], leaks[0]) / len(leaks)


def check_one(net: nn.Module, name: str, place: Place) -> None:
    """Raise, naming the synapse, unless all its neurons have one leak at the first step."""
    with torch.no_grad():
        leaks = {node: of_neuron(net.get_submodule(node), 0) for node in place.neurons}
        values = {None if value is None else float(value) for value in leaks.values()}
    if len(values) != 1 or None in values:
        what = "is fed by" if place.role == "readout" else "sends its current to"
        of = [f"{node!r} ({type(net.get_submodule(node)).__name__}, {describe(v)})" for node, v in leaks.items()]
        raise ValueError(
            f"the trace of synapse {name!r} needs one leak, but the synapse {what} {', '.join(of) or 'no neuron'}: "
            f"give trace_decay={{{name!r}: value}}"
        )


def describe(leak: Leak | None) -> str:
    """A leak as text, e.g. ``leak 0.5``."""
    value = leak.item() if isinstance(leak, Tensor) else leak
    return "no single leak" if value is None else f"leak {value:.4g}"
