"""The neurons of a network in the place of others."""

import inspect
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from .. import registry, trial
from ..layer.replace import out_of_reach, replace_modules
from ..neuron import EMPFNode, OnlineNode
from ..neuron.leak import of_neuron

NODES = (neuron.BaseNode, neuron.SimpleBaseNode)
REACH = 1000
"""A neuron with a threshold from here on is a readout: what counts is its membrane."""


class Swap(NamedTuple):
    """A row of what a conversion returns."""

    name: str
    """Of the module in the network."""
    old: str
    new: str
    carried_over: dict[str, float]
    """What the new neuron took from the old module."""


def swap_neurons(
    net: nn.Module,
    name: str | Callable[..., neuron.BaseNode],
    where: Callable[[str, neuron.BaseNode], bool] | None = None,
    example_input: Tensor | None = None,
    **kwargs: Any,
) -> list[Swap]:
    """Replace the neurons of any SpikingJelly network in place.

    The step mode and store_v_seq of each neuron are kept. A leak is carried over if it lies inside the open range of
    the new neuron's parameter: (0, 1) for EM-PF's and HD-LIF's decay, (0.5, 1.5) for LM-H's lambda_s; else the default
    stands. LM-H takes the threshold over; EM-PF and HD-LIF never do, as their spikes are no longer of height 1.

    A warning names readouts, which are left alone unless ``where`` picks them: neurons with a threshold beyond reach,
    infinite or at least 1000. Another names neurons in plain lists, tuples and dicts, where they cannot be swapped.

    Args:
        net: a network with neurons; everything else in it, its state_dict too, stays as it is, and if anything fails
            the neurons too.
        name: ``'empf'``, ``'hdlif'``, ``'lmh'``, ``'stol_lif'`` or any other registered neuron; or a factory that
            returns a neuron.
        where: ``where(name, module)`` picks the neurons to replace; None: all but readouts.
        example_input: a batch that ``net`` takes. With it the network is run when its neurons are swapped, and a
            warning names those that neither fire nor pass a gradient. Needed for options given as ``'channels'``.
        kwargs: arguments of each new neuron. The value ``'channels'`` stands for the number of channels of the input of
            the neuron that is replaced, e.g. ``membrane_norm='channels'``.

    Returns:
        One row per neuron, in which a readout that is left alone has the new type of the old.

    Raises:
        ValueError: an unknown name, no neuron to replace, a net that is itself a neuron, or ``'channels'`` without
            example_input.

    Example:
        >>> from spikingjelly.activation_based import layer
        >>> net = nn.Sequential(layer.Linear(8, 4), neuron.LIFNode(tau=4.0))
        >>> swap_neurons(net, "empf", num_steps=4)
        [Swap(name='1', old='LIFNode', new='EMPFNode', carried_over={'leak': 0.75})]
    """
    factory = registry.get("neurons", name) if isinstance(name, str) else name
    nodes = {n: m for n, m in net.named_modules() if isinstance(m, NODES)}
    readouts = {n: m for n, m in nodes.items() if where is None and _is_readout(m)}
    olds = {n: m for n, m in nodes.items() if n not in readouts and (where is None or where(n, m))}
    channels: dict[nn.Module, int] = {}
    if "channels" in kwargs.values():
        if example_input is None:
            raise ValueError("example_input=None: an option is 'channels', which needs an example_input to learn them")
        channels = trial.channels(net, olds.values(), example_input)
    replacements: dict[nn.Module, nn.Module] = {}
    rows = []
    for n, old in nodes.items():
        if n in olds:
            arguments = {key: channels[old] if value == "channels" else value for key, value in kwargs.items()}
            replacements[old], carried_over = _successor(old, factory, arguments)
            rows.append(Swap(n, type(old).__name__, type(replacements[old]).__name__, carried_over))
        elif n in readouts:
            rows.append(Swap(n, type(old).__name__, type(old).__name__, {}))
    _warn_of_what_stays(net, nodes, readouts, replacements)
    replace_in(net, replacements)
    if example_input is not None:
        try:
            _warn_of_silence(net, {n: replacements[old] for n, old in olds.items()}, example_input)
        except BaseException:
            replace_modules(net, {new: old for old, new in replacements.items()})
            raise
    return rows


def _successor(
    old: neuron.BaseNode, factory: Callable[..., neuron.BaseNode], arguments: dict[str, Any]
) -> tuple[neuron.BaseNode, dict[str, float]]:
    """The neuron that follows ``old``, and what it took over."""
    carried_over = {}
    accepted = inspect.signature(factory).parameters
    takes = "v_threshold" in accepted and "threshold" not in accepted  # not EM-PF, which has its own
    if takes and "v_threshold" not in arguments and not isinstance(old, EMPFNode):
        carried_over["v_threshold"] = old.v_threshold
    new = factory(**carried_over, **arguments)
    with torch.no_grad():
        leak = None if getattr(old, "num_steps", None) else of_neuron(old, 0)
    given = {"decay", "tau"} & arguments.keys()
    if leak is not None and not given and isinstance(new, OnlineNode) and new.adopt_leak(float(leak)):
        carried_over["leak"] = float(leak)
    new.step_mode, new.store_v_seq = old.step_mode, getattr(old, "store_v_seq", False)
    return new.train(old.training), carried_over


def _is_readout(node: neuron.BaseNode) -> bool:
    return bool((torch.as_tensor(node.v_threshold) >= REACH).all())


def _warn_of_what_stays(
    net: nn.Module,
    nodes: Mapping[str, neuron.BaseNode],
    readouts: Mapping[str, neuron.BaseNode],
    olds: Collection[nn.Module],
) -> None:
    if readouts:
        named = ", ".join(f"{n!r} (v_threshold={node.v_threshold})" for n, node in readouts.items())
        warnings.warn(f"left alone as readouts: {named}; where=... swaps them too", stacklevel=3)
    known = set(nodes.values())
    lost = [n for n, m in out_of_reach(net) if isinstance(m, NODES) and (m in olds or m not in known)]
    if lost:
        warnings.warn(
            f"not swapped, as they sit in plain lists or dicts, where no reset finds them either: {', '.join(lost)};"
            " hold them in nn.ModuleList or nn.ModuleDict",
            stacklevel=3,
        )


def _warn_of_silence(net: nn.Module, nodes: Mapping[str, nn.Module], example_input: Tensor) -> None:
    calls = trial.steps(net, nodes)
    silent = trial.silent(net, nodes, lambda: [net(example_input) for _ in range(calls)]) if example_input.any() else []
    if silent:
        warnings.warn(
            f"silent: with this example_input {', '.join(silent)} neither fire nor pass a gradient, so that nothing"
            " before them learns; put a batch norm in front of them or give a lower threshold",
            stacklevel=3,
        )


def replace_in(net: nn.Module, replacements: dict[nn.Module, nn.Module]) -> None:
    """Replace modules in place by others, which get the device and the type of the network's parameters."""
    like = next((p for p in net.parameters() if p.is_floating_point()), None)
    if like is not None:
        for new in replacements.values():
            new.to(device=like.device, dtype=like.dtype)
    replace_modules(net, replacements)
