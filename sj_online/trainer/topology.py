"""Which neurons a synapse reaches and which feed it: reachability in the autograd graph of a dry run."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from spikingjelly.activation_based import base, functional
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks

from sj_online.trainer import check
from sj_online.trainer.network import evaluating, run_steps
from sj_online.trainer.sequence import Sequence


@dataclass(frozen=True)
class Place:
    """Where a synapse sits.

    Attributes:
        role: ``'input'``: no neuron feeds it; ``'readout'``: it reaches no neuron; ``'feedback'``: what feeds it is of
            the previous step; else ``'hidden'``.
        neurons: the names of those whose membrane takes its current; of a readout, those that feed it.
    """

    role: str
    neurons: tuple[str, ...]


@dataclass
class _Call:
    """A synapse's call in the dry run: its step, and the graph above its input and at its output."""

    step: int
    above: set[Any]
    output: Any
    silent: bool


@dataclass
class _Record:
    """What the dry run saw."""

    step: int = 0
    calls: dict[str, list[_Call]] = field(default_factory=dict)
    currents: list[tuple[str, set[Any]]] = field(default_factory=list)
    spikes: dict[int, tuple[str, int, Tensor]] = field(default_factory=dict)

    def neuron(self, name: str, x: Tensor, s: Tensor) -> Tensor:
        """A neuron has fired: note what its current comes from, and cut the graph at its spikes."""
        self.currents.append((name, _above(x)))
        s = s.detach().requires_grad_()
        self.spikes[id(s)] = (name, self.step, s)
        return s

    def synapse(self, name: str, x: Tensor, y: Tensor) -> None:
        """A synapse was called: note what its input comes from, and where its output is in the graph."""
        output = get_gradient_edge(y).node if y.requires_grad else None
        self.calls.setdefault(name, []).append(_Call(self.step, _above(x), output, not x.any()))

    def place(self, calls: list[_Call]) -> Place:
        """The place of a synapse."""
        behind = {name: None for name, above in self.currents for call in calls if call.output in above}
        fed = [
            (*self.spikes[id(node.variable)][:2], call.step)
            for call in calls
            for node in call.above
            if id(getattr(node, "variable", None)) in self.spikes
        ]
        before = {name: None for name, _, _ in sorted(fed)}
        if any(of == at for _, of, at in fed):
            role = "hidden" if behind else "readout"
        else:
            role = "feedback" if fed or calls[0].step > 0 or calls[0].silent else "input"
        return Place(role, tuple(before if role == "readout" else behind))


def find(net: nn.Module, x: Sequence) -> dict[str, Place]:
    """The place of every synapse that a network calls, by name, in the order of the calls.

    The network runs dry: one random sample, two steps so that feedback is seen (one if T is 1), eager, in eval mode,
    without its hooks, the random state kept; it is reset before and after.

    Args:
        net: a SpikingJelly network.
        x: an input of the shape that it takes.

    Example:
        >>> from spikingjelly.activation_based import layer, neuron
        >>> net = nn.Sequential(layer.Linear(8, 4), neuron.LIFNode(), layer.Linear(4, 3))
        >>> find(net, Sequence(torch.rand(2, 8), None, num_steps=6))
        {'0': Place(role='input', neurons=('1',)), '2': Place(role='readout', neurons=('1',))}
    """
    record = _Record()
    sample = torch.ones_like(x[0][:1])
    functional.reset_net(net)
    with evaluating(net), _probed(net, record), _structure_only(sample.device), torch.enable_grad():
        if sample.is_floating_point():
            sample.uniform_().requires_grad_()  # not a constant, which a norm would turn into silence
        dry = Sequence(sample, None, min(2, x.T))
        for t in range(dry.T):
            record.step = t
            run_steps(net, dry, range(t, t + 1))
    functional.reset_net(net)
    torch.clear_autocast_cache()  # it holds this graph
    return {name: record.place(calls) for name, calls in record.calls.items()}


def synapses(net: nn.Module) -> dict[str, nn.Module]:
    """The synapses of a network by name, whether it calls them or not."""
    return {name: module for name, module in net.named_modules() if isinstance(module, check.SYNAPSES)}


def is_neuron(module: nn.Module) -> bool:
    """Whether a module is a spiking neuron, of the host or a third party."""
    return isinstance(module, base.MemoryModule) and hasattr(module, "v_threshold")


def _above(x: Tensor) -> set[Any]:
    """The nodes of the graph that a tensor comes from."""
    seen: set[Any] = set()
    todo: list[Any] = [get_gradient_edge(x).node] if x.requires_grad else []
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    return seen


@contextmanager
def _probed(net: nn.Module, record: _Record) -> Iterator[None]:
    """Note the calls of neurons and synapses; other hooks, such as a monitor's, are left out."""
    kept = [(module, module._forward_hooks, module._forward_pre_hooks) for module in net.modules()]
    for name, module in net.named_modules():
        module._forward_hooks, module._forward_pre_hooks = OrderedDict(), OrderedDict()
        if is_neuron(module):
            module.register_forward_hook(lambda _, args, s, name=name: record.neuron(name, args[0], s))
        elif isinstance(module, check.SYNAPSES):
            module.register_forward_hook(lambda _, args, y, name=name: record.synapse(name, args[0], y))
    try:
        yield
    finally:
        for module, hooks, pre_hooks in kept:
            module._forward_hooks, module._forward_pre_hooks = hooks, pre_hooks


@contextmanager
def _structure_only(device: torch.device) -> Iterator[None]:
    """Build an autograd graph that keeps no tensors, eager, and put the random state back."""
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        saved_tensors_hooks(_nothing, _nothing),
        torch.compiler.set_stance("force_eager"),
    ):
        yield


def _nothing(_: Any) -> Any:
    return None
