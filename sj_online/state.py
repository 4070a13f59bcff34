"""Every kind of state of a network: kept, put back, cut from its graph.

State is what running a network may change: the host's memories, buffers, and what modules keep in attributes of their
own (counters, tensors, lists of tensors, generators), with the random generators of torch, Python and NumPy.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import ref

import numpy as np
import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from sj_online import host
from sj_online.install import plain
from sj_online.randomness import GENERATORS, KeptGenerator, Randomness
from sj_online.tree import tensors, tree_map

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
Splice = Callable[[Any, Any], Any]


def _is_state(value: Any) -> bool:
    if isinstance(value, (*_PLAIN, *GENERATORS, np.ndarray)):
        return True
    if isinstance(value, Tensor):
        return not isinstance(value, nn.Parameter)
    if isinstance(value, dict):
        return all(map(_is_state, value.values()))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return all(_is_state(getattr(value, field.name)) for field in dataclasses.fields(value))
    return isinstance(value, list | tuple | deque | set) and all(map(_is_state, value))


def _copy(value: Any, memo: dict[int, Tensor]) -> Any:
    """A copy that is independent; tensors that were one stay one, and a kept generator is put back to its state."""

    def copied(part: Any) -> Any:
        if isinstance(part, GENERATORS):
            return KeptGenerator(part)
        if isinstance(part, KeptGenerator):
            return part.put()
        if not isinstance(part, Tensor):
            return part.copy()
        if id(part) not in memo:
            memo[id(part)] = part.detach().clone()
        return memo[id(part)]

    return tree_map(copied, value, of=(Tensor, np.ndarray, set, KeptGenerator, *GENERATORS))


class State:
    """The state of a network at one moment, independent of what the network does to its own afterwards.

    Example:
        >>> from spikingjelly.activation_based import neuron
        >>> node = neuron.IFNode()
        >>> kept = State(node)
        >>> _ = node(torch.full((1, 1), 0.5))
        >>> kept.put()
        >>> node.v
        0.0
    """

    def __init__(self, net: nn.Module) -> None:
        memo: dict[int, Tensor] = {}
        self.random = Randomness(device_of(net))
        self.modules = [
            (
                module,
                {name: _copy(value, memo) for name, value in host.attributes(module) if _is_state(value)},
                {name: _copy(value, memo) for name, value in module._buffers.items()},
            )
            for module in net.modules()
        ]

    def put(self, splice: Splice | None = None) -> None:
        """Give the network this state, as a copy, so that it can be put again.

        Args:
            splice: ``splice(present, kept)`` makes the tensor that is put, of tensors of the same place; None: it is
                put as it was kept.
        """
        self.random.put()
        memo: dict[int, Tensor] = {}
        for module, attributes, buffers in self.modules:
            present = dict(host.attributes(module))
            for name in [name for name in present if name not in attributes and _is_state(present[name])]:
                del module.__dict__[name]
            for name, kept in attributes.items():
                module.__dict__[name] = _put(present.get(name), kept, splice, memo)
            for name, kept in buffers.items():
                module._buffers[name] = _copy(kept, memo)


def _put(present: Any, kept: Any, splice: Splice | None, memo: dict[int, Tensor]) -> Any:
    copied = _copy(kept, memo)
    return copied if splice is None else _spliced(present, copied, splice)


def _spliced(present: Any, kept: Any, splice: Splice) -> Any:
    if isinstance(kept, Tensor):
        return splice(present, kept)
    if isinstance(kept, float) and isinstance(present, Tensor):  # the value that a memory is reset to
        return splice(present, torch.full_like(present, kept)) if present.requires_grad else kept
    if isinstance(kept, dict) and isinstance(present, dict):
        kept.update({name: _spliced(present.get(name), value, splice) for name, value in kept.items()})
        return kept
    try:
        return tree_map(lambda tensor, now: splice(now, tensor), kept, present)
    except (KeyError, TypeError, ValueError, AttributeError):  # another structure at present
        return kept


def device_of(net: nn.Module) -> torch.device:
    """The device of a network: that of its first parameter or buffer, else the CPU."""
    first = next((tensor for tensor in [*net.parameters(), *net.buffers()]), None)
    return torch.device("cpu") if first is None else first.device


_replaying: ContextVar[bool] = ContextVar("replaying", default=False)


def replaying() -> bool:
    """Whether a network is running a step again, or only to be looked at: a recorder should not count that.

    Example:
        >>> replaying()
        False
    """
    return _replaying.get()


@contextmanager
def as_replay() -> Iterator[None]:
    """What runs inside is no step of its own, see :func:`replaying`."""
    token = _replaying.set(True)
    try:
        yield
    finally:
        _replaying.reset(token)


@contextmanager
def looked_at(net: nn.Module) -> Iterator[None]:
    """Run a network to look at it: in a sandbox, eager, unseen by the host's monitors."""
    with as_replay(), sandbox(net), host.unrecorded(net), torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def sandbox(net: nn.Module) -> Iterator[None]:
    """Whatever the network does inside, its state is afterwards the same objects with the same values."""
    randomness = Randomness(device_of(net))
    kept = [
        (module, {k: v for k, v in host.attributes(module) if _is_state(v)}, dict(module._buffers), module.training)
        for module in net.modules()
    ]
    generators: list[KeptGenerator] = []
    for _, attributes, *_ in kept:
        tree_map(lambda generator: generators.append(KeptGenerator(generator)), attributes, of=GENERATORS)
    try:
        State(net).put()  # copies, which may be changed in place
        yield
    finally:
        for module, attributes, buffers, training in kept:
            for name in [k for k, v in host.attributes(module) if k not in attributes and _is_state(v)]:
                del module.__dict__[name]
            module.__dict__.update(attributes)
            module._buffers.update(buffers)
            module.training = training
        for generator in generators:
            generator.put()
        randomness.put()


def buffers_as_before(net: nn.Module) -> Callable[[], None]:
    """A function that moves the present values of all buffers into the tensors that are the buffers now."""
    kept = [(module, name, buffer) for module in net.modules() for name, buffer in module._buffers.items()]

    def adopt() -> None:
        for module, name, buffer in kept:
            now = module._buffers.get(name)
            if buffer is not None and now is not None and now is not buffer and now.shape == buffer.shape:
                buffer.data.copy_(now)
                module._buffers[name] = buffer

    return adopt


def detach(net: nn.Module) -> None:
    """Cut the state from its graph, in whatever container it is; some memories are views, which need a new tensor."""
    for module in net.modules():
        for name, value in host.memories(module).items():
            if not isinstance(value, _PLAIN):
                host.memories(module)[name] = tree_map(Tensor.detach, value)
        for name, value in host.attributes(module):
            if name != "_memories" and not isinstance(value, _PLAIN) and _is_state(value) and _has_graph(value):
                _detach_in(module, name, value)
    functional.detach_net(net)


def _has_graph(value: Any) -> bool:
    return any(tensor.grad_fn is not None for tensor in tensors(value))


def _detach_in(module: nn.Module, name: str, value: Any) -> None:
    cut = tree_map(lambda tensor: tensor if tensor.grad_fn is None else tensor.detach(), value)
    if isinstance(value, list):
        value[:] = cut  # others may hold the list
    elif isinstance(value, dict):
        value.update(cut)
    else:
        module.__dict__[name] = cut


class Structure:
    """What a network is made of at one moment: its modules with their classes, and the parameters that learn."""

    def __init__(self, net: nn.Module) -> None:
        self.modules = [(name, ref(module), plain(module)) for name, module in net.named_modules()]
        self.parameters = [(name, ref(p), p.requires_grad) for name, p in net.named_parameters(remove_duplicate=False)]

    def __eq__(self, other: object) -> bool:
        """Whether it is the same modules and parameters, still alive."""
        return (
            isinstance(other, Structure)
            and len(self.modules) == len(other.modules)
            and len(self.parameters) == len(other.parameters)
            and all(
                a[0] == b[0] and a[1]() is b[1]() is not None and a[2] == b[2]
                for mine, theirs in ((self.modules, other.modules), (self.parameters, other.parameters))
                for a, b in zip(mine, theirs, strict=True)
            )
        )

    # What it is made of may be replaced: no key of a dict.
    __hash__ = None  # type: ignore[assignment]
