"""Change a network in place: its neurons, its activations, its synapses."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from spikingjelly.activation_based import base, functional, neuron
from torch import Tensor, nn

from . import registry
from .layer.replace import quantize_synapses, replace_modules
from .neuron import QCFS, EMPFNode, LMHNode, OnlineNode
from .neuron.leak import of_neuron

__all__ = ["Swap", "qcfs_to_lmh", "quantize_synapses", "swap_neurons"]


class Swap(NamedTuple):
    """A row of what :func:`swap_neurons` and :func:`qcfs_to_lmh` return."""

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

    Args:
        net: a network with neurons; everything else in it, its state_dict too, stays as it is.
        name: ``'empf'``, ``'hdlif'``, ``'lmh'``, ``'stol_lif'`` or any other registered neuron; or a factory that
            returns a neuron.
        where: ``where(name, module)`` picks the neurons to replace; None: every ``BaseNode``.
        example_input: input of ``net``, needed to learn the channels for options given as ``'channels'``.
        kwargs: arguments of each new neuron. The value ``'channels'`` stands for the number of channels of the input of
            the neuron that is replaced, e.g. ``membrane_norm='channels'``.

    Returns:
        One row per replaced neuron.

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
    nodes = {n: m for n, m in net.named_modules() if isinstance(m, neuron.BaseNode)}
    olds = {n: m for n, m in nodes.items() if where is None or where(n, m)}
    channels = _channels(net, olds.values(), example_input) if "channels" in kwargs.values() else {}
    replacements: dict[nn.Module, nn.Module] = {}
    rows = []
    for n, old in olds.items():
        arguments = {key: channels[old] if value == "channels" else value for key, value in kwargs.items()}
        new, carried_over = _successor(old, factory, arguments)
        replacements[old] = new
        rows.append(Swap(n, type(old).__name__, type(new).__name__, carried_over))
    _replace(net, replacements)
    return rows


def qcfs_to_lmh(net: nn.Module, num_steps: int | None = None, **kwargs: Any) -> list[Swap]:
    """Replace every QCFS activation of an ANN by an LM-H neuron, in place: the start of LM-H's hybrid training.

    The trained threshold becomes the neuron's constant one and the soma starts at half of it. Before further training,
    for a constant input over as many steps as QCFS has levels, each neuron's mean output is what QCFS gave.

    Args:
        net: an ANN with :class:`sj_online.neuron.QCFS` activations.
        num_steps: of :class:`sj_online.neuron.LMHNode`.
        kwargs: other arguments of :class:`sj_online.neuron.LMHNode`.

    Returns:
        One row per replaced activation.

    Raises:
        ValueError: no QCFS in net, or a threshold that has become 0 or less.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 4), QCFS(levels=4, threshold=2.0))
        >>> qcfs_to_lmh(net)
        [Swap(name='1', old='QCFS', new='LMHNode', carried_over={'v_threshold': 2.0})]
    """
    replacements: dict[nn.Module, nn.Module] = {}
    rows = []
    for n, old in net.named_modules():
        if isinstance(old, QCFS):
            threshold = old.threshold.item()
            replacements[old] = LMHNode(num_steps, v_threshold=threshold, **kwargs).train(old.training)
            rows.append(Swap(n, "QCFS", "LMHNode", {"v_threshold": threshold}))
    _replace(net, replacements)
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
    new.step_mode, new.store_v_seq = old.step_mode, old.store_v_seq
    return new.train(old.training), carried_over


def _channels(net: nn.Module, nodes: Iterable[nn.Module], example_input: Tensor | None) -> dict[nn.Module, int]:
    """The channels of each node's input, from one run in eval mode that leaves the network as it was."""
    if example_input is None:
        raise ValueError("example_input=None: an option is 'channels', which needs an example_input to learn them from")
    channels: dict[nn.Module, int] = {}

    def record(node: Any, inputs: tuple[Tensor, ...]) -> None:
        channels[node] = inputs[0].shape[2 if node.step_mode == "m" else 1]

    hooks = [node.register_forward_pre_hook(record) for node in nodes]
    training = {module: module.training for module in net.modules()}
    memories = base.extract_memories(net)
    try:
        net.eval()
        functional.reset_net(net)
        with torch.no_grad():
            net(example_input)
    finally:
        functional.reset_net(net)
        base.load_memories(net, memories)
        for module, mode in training.items():
            module.training = mode
        for hook in hooks:
            hook.remove()
    return channels


def _replace(net: nn.Module, replacements: dict[nn.Module, nn.Module]) -> None:
    like = next((p for p in net.parameters() if p.is_floating_point()), None)
    replace_modules(net, replacements)
    if like is not None:
        for new in replacements.values():
            new.to(device=like.device, dtype=like.dtype)
