"""What reaches what in a network: which neurons a synapse's current enters, and which feed it.

A network runs once, in a sandbox, without gradients, as it is trained, and what every tensor comes from is followed
below autograd, through memories, containers and custom functions. A synapse is a module that :func:`is_synapse` knows,
or any call that is linear in one input with a weight (``F.linear(x, other.weight)``, ``x @ W``), by its parameter.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sj_online import contraction, host
from sj_online.contraction import Weights
from sj_online.frames import Frames
from sj_online.install import replaced_forwards
from sj_online.layer import is_synapse
from sj_online.neuron.leak import is_neuron
from sj_online.state import looked_at
from sj_online.tree import tensors
from sj_online.unroll import Unroll

EARLIER = -1
aten = torch.ops.aten
# Products of matrices: where one of these meets a weight outside of a known call, the weight is not traced.
_PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.mv, aten.addmv, aten.convolution, aten._trilinear}

# Take a shape, a dtype and a device from a tensor, and no value.
_OF_A_SHAPE = {
    getattr(aten, name)
    for kind in ("empty", "zeros", "ones", "full", "rand", "randn", "randint")
    for name in (f"{kind}_like", f"new_{kind}")
    if hasattr(aten, name)
}


@dataclass(frozen=True)
class Place:
    """Where a synapse sits.

    Attributes:
        role: ``'input'``: no neuron feeds it; ``'readout'``: it reaches no neuron; ``'feedback'``: what feeds it is of
            an earlier step; else ``'hidden'``.
        neurons: the names of those whose membrane takes its current; of a readout, those that feed it.
    """

    role: str
    neurons: tuple[str, ...]


@dataclass
class Found:
    """What a run of a network has shown.

    Attributes:
        places: the place of every synapse that was called, by name, in the order of the calls.
        parameters: the parameters of each.
        functional: the names of the synapses that are calls of no synapse's module.
        products: parameters that met data in a product which is none of the known calls.
        called: modules that were called, with the most calls in one step.
        reset: modules that were reset inside a forward.
        of_weights: memories that are made of weights alone.
    """

    places: dict[str, Place] = field(default_factory=dict)
    parameters: dict[str, tuple[str, ...]] = field(default_factory=dict)
    functional: set[str] = field(default_factory=set)
    products: dict[str, None] = field(default_factory=dict)
    called: dict[str, int] = field(default_factory=dict)
    reset: dict[str, None] = field(default_factory=dict)
    of_weights: list[str] = field(default_factory=list)


@dataclass
class _Call:
    """A synapse's call: its step, and the neurons (with their steps) and whether the input that its own comes from."""

    step: int
    spikes: frozenset[tuple[str, int]]
    raw: bool


class _Sources(TorchDispatchMode):
    """Follows what every tensor comes from, by its memory: views, changes in place and detaching keep it."""

    def __init__(self) -> None:
        super().__init__()
        self.of_storage: dict[Any, frozenset[Any]] = {}
        self.known_call = 0
        self.products: dict[str, None] = {}

    def of(self, tensor: Tensor) -> frozenset[Any]:
        """The labels of a tensor."""
        key = host.storage(tensor)
        return frozenset() if key is None else self.of_storage.get(key, frozenset())

    def set(self, value: Any, labels: frozenset[Any]) -> None:
        """Label every tensor in a value."""
        for tensor in tensors(value):
            key = host.storage(tensor)
            if key is not None:
                self.of_storage[key] = labels

    def new_step(self) -> None:
        """Currents of earlier steps are over, and their spikes count as earlier ones, whichever step they are of."""
        self.of_storage = {
            key: frozenset(
                ("spike", label[1], EARLIER) if label[0] == "spike" else label
                for label in labels
                if label[0] != "current"
            )
            for key, labels in self.of_storage.items()
            if not key.expired()
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if getattr(func, "overloadpacket", None) in _OF_A_SHAPE:
            return output
        given = [self.of(tensor) for tensor in tensors((args, kwargs or {}))]
        labels = frozenset().union(*given)
        self.set(output, labels)
        if not self.known_call and getattr(func, "overloadpacket", None) in _PRODUCTS:
            weights = [g for g in given if g and all(label[0] == "weight" for label in g)]
            if any(label[0] != "weight" for label in labels):
                self.products |= dict.fromkeys(label[1] for g in weights for label in g)
        return output


class _Probe(TorchFunctionMode):
    """Notes the calls of synapses."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.sources = _Sources()
        self.weights = Weights(net)
        self.step = 0
        self.module: list[str] = []
        self.calls: dict[str, list[_Call]] = {}
        self.behind: dict[str, dict[str, None]] = {}
        self.found = Found()
        self.in_step: dict[str, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in contraction.COMPOSITES:
            with self:
                return contraction.inside(func)(*args, **kwargs)
        pair = next(contraction.operands(func, args, kwargs, self.weights), None) if func in contraction.CALLS else None
        if pair is None and self.module and (both := contraction.slots(func, args, kwargs)):
            pair = both
        if pair is None:
            output = func(*args, **kwargs)
            self.weights.follow(args, kwargs, output)
            return output
        self.sources.known_call += 1
        output = func(*args, **kwargs)
        self.sources.known_call -= 1
        self._note(*pair, output)
        return output

    def _note(self, data: Tensor, weight: Tensor, output: Tensor) -> None:
        names = self.weights.names(weight)
        name = self.module[-1] if self.module else display_name(names[0])
        if not self.module:
            self.found.functional.add(name)
        known = self.found.parameters.get(name, ())
        self.found.parameters[name] = tuple(dict.fromkeys([*known, *names]))
        labels = self.sources.of(data)
        spikes = frozenset(label[1:] for label in labels if label[0] == "spike")
        self.calls.setdefault(name, []).append(_Call(self.step, spikes, ("input",) in labels))
        self.sources.set(output, self.sources.of(output) | {("current", name)})

    def neuron(self, name: str, x: Any, s: Any) -> None:
        """A neuron has fired."""
        for tensor in tensors(x):
            for label in self.sources.of(tensor):
                if label[0] == "current":
                    self.behind.setdefault(label[1], {})[name] = None
        self.sources.set(s, frozenset({("spike", name, self.step)}))

    def place(self, name: str) -> Place:
        """The place of a synapse."""
        calls, behind = self.calls[name], self.behind.get(name, {})
        fed = sorted((of, at) for call in calls for of, at in call.spikes)
        before = dict.fromkeys(of for of, _ in fed)
        if any(at == call.step for call in calls for _, at in call.spikes):
            role = "hidden" if behind else "readout"
        else:
            role = "feedback" if fed or not calls[0].raw else "input"
        return Place(role, tuple(before if role == "readout" else behind))


def find(net: nn.Module, frames: Frames, k: int = 1) -> Found:
    """Run a network over its frames, and tell the place of every synapse that it calls.

    The network's state, modes and random numbers are afterwards what they were; gradients are untouched.

    Args:
        net: a SpikingJelly network.
        frames: its input.
        k: how many steps it runs at a time.

    Example:
        >>> from spikingjelly.activation_based import layer, neuron
        >>> net = nn.Sequential(layer.Linear(8, 4), neuron.LIFNode(), layer.Linear(4, 3))
        >>> find(net, Frames(torch.rand(2, 8), num_steps=6)).places
        {'0': Place(role='input', neurons=('1',)), '2': Place(role='readout', neurons=('1',))}
    """
    probe = _Probe(net)
    with looked_at(net), torch.no_grad():
        host.reset(net)
        run = Unroll(net, frames)
        if run.mode == "m" and frames.N in (1, k):
            run.gives_steps()  # looked up below, where everything that the network does is noted
        names = [(name, p) for name, p in net.named_parameters()]
        with probe.sources, _probed(net, probe):
            for name, p in names:
                probe.sources.set(p, frozenset({("weight", name)}))
            probe.sources.set(frames.x, frozenset({("input",)}))
            for t in range(0, frames.T, k):
                probe.step, probe.in_step = t, {}
                probe.sources.new_step()
                with probe:
                    run(range(t, min(t + k, frames.T)))
            probe.found.of_weights = list(_made_of_weights(net, probe.sources))
    probe.found.places = {name: probe.place(name) for name in probe.calls}
    probe.found.products = probe.sources.products
    return probe.found


def _made_of_weights(net: nn.Module, sources: _Sources) -> Iterator[str]:
    for name, module in net.named_modules():
        for memory, value in host.memories(module).items():
            kinds = {label[0] for tensor in tensors(value) for label in sources.of(tensor)}
            if kinds == {"weight"}:
                yield f"{name}.{memory}".lstrip(".")


def display_name(parameter: str) -> str:
    """The name of a synapse after its parameter: the module's, if it is that module's ``weight``.

    Example:
        >>> display_name("m.weight"), display_name("attn.in_proj_weight"), display_name("W")
        ('m', 'attn.in_proj_weight', 'W')
    """
    module, _, last = parameter.rpartition(".")
    if ".parametrizations.weight." in f".{parameter}":
        return f".{parameter}".partition(".parametrizations.weight.")[0].lstrip(".")
    return module if last == "weight" and module else parameter


@contextmanager
def _probed(net: nn.Module, probe: _Probe) -> Iterator[None]:
    """Note the calls of neurons and synapses, and resets inside a forward."""

    def forward_of(name: str, module: nn.Module) -> Callable[..., Any]:
        inner, synapse, neuron = module.forward, is_synapse(module), is_neuron(module)

        def forward(*args: Any, **kwargs: Any) -> Any:
            probe.in_step[name] = probe.in_step.get(name, 0) + 1
            probe.found.called[name] = max(probe.found.called.get(name, 0), probe.in_step[name])
            if synapse:
                probe.module.append(name)
            try:
                output = inner(*args, **kwargs)
            finally:
                if synapse:
                    probe.module.pop()
            if neuron:
                probe.neuron(name, (args, kwargs), output)
            return output

        return forward

    watched = {m: forward_of(n, m) for n, m in net.named_modules() if is_synapse(m) or is_neuron(m)}
    names = {m: n for n, m in net.named_modules()}
    kept = host.watch_resets(net, lambda module: probe.found.reset.setdefault(names[module]))
    try:
        with replaced_forwards(watched):
            yield
    finally:
        kept()
