"""The leak of a presynaptic trace: that of the neurons whose membrane the trace follows."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sj_online.neuron.leak import Leak, is_neuron, of_neuron
from sj_online.topology import Place

LEARNT_APART = 0.1
"""How far learnt leaks behind one synapse may be from each other to count by their mean."""


@torch.no_grad()
def _leaks(net: nn.Module, place: Place, t: int) -> list[Leak]:
    return [leak for name in place.neurons if (leak := of_neuron(net.get_submodule(name), t)) is not None]


def of_place(net: nn.Module, place: Place, t: int) -> Leak:
    """The one leak of a synapse at step t; the mean, where leaks that were one at first have been learnt apart."""
    leaks = _leaks(net, place, t)
    if all(isinstance(leak, float) for leak in leaks):
        return leaks[0]
    return sum(leaks[1:], leaks[0]) / len(leaks)


def of_network(net: nn.Module, name: str, t: int) -> Leak:
    """The leak of a synapse that was not seen when the network was looked at: the one that all its neurons have.

    Raises:
        ValueError: they have none, or several.
    """
    place = Place("hidden", tuple(node for node, module in net.named_modules() if is_neuron(module)))
    check_all(net, {name: place}, lambda name: None)
    return of_place(net, place, t)


def check_all(net: nn.Module, places: dict[str, Place], given: Callable[[str], float | None]) -> None:
    """Raise, naming every synapse that has not one leak at the first step and is not given one."""
    wrong, known = {}, []
    for name, place in places.items():
        leaks = {node: None if (value := _leak(net, node)) is None else float(value) for node in place.neurons}
        learnt = any(isinstance(_leak(net, node), Tensor) for node in place.neurons)
        values = [value for value in leaks.values() if value is not None]
        known += values
        near = bool(values) and max(values) - min(values) <= (LEARNT_APART if learnt else 1e-6)
        if given(name) is None and (not near or None in leaks.values()):
            wrong[name] = (place, leaks)
    if wrong:
        name, (place, leaks) = next(iter(wrong.items()))
        what = "is fed by" if place.role == "readout" else "sends its current to"
        of = [f"{node!r} ({type(net.get_submodule(node)).__name__}, {describe(v)})" for node, v in leaks.items()]
        value = round(sum(known) / len(known), 4) if known else 0.5
        line = ", ".join(f"{each!r}: {value}" for each in wrong)
        raise ValueError(
            f"the traces of {', '.join(map(repr, wrong))} need one leak each; {name!r} {what}"
            f" {', '.join(of) or 'no neuron'}: give trace_decay={{{line}}}, with leaks that you choose, or one for all,"
            f" trace_decay={value}"
        )


@torch.no_grad()
def _leak(net: nn.Module, node: str) -> Leak | None:
    return of_neuron(net.get_submodule(node), 0)


def of_place_described(net: nn.Module, place: Place) -> str:
    """The leak of a place as text; of leaks that have been learnt apart, their mean and range."""
    values = [float(leak) for leak in _leaks(net, place, 0)]
    if not values:
        return "no single leak"
    text = describe(sum(values) / len(values))
    spread = max(values) - min(values)
    return text if spread <= 1e-6 else f"mean {text} ({min(values):.4g} to {max(values):.4g})"


def describe(leak: Leak | None) -> str:
    """A leak as text, e.g. ``leak 0.5``."""
    value = leak.item() if isinstance(leak, Tensor) else leak
    return "no single leak" if value is None else f"leak {value:.4g}"
