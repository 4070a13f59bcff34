"""What follows what in data flow: seen by running a network once, or read off plain containers."""

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sj_online import host

# What hands a tensor's values to Python or NumPy and is no operator.
_READS = {"tolist", "numpy", "__array__", "__dlpack__"}


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists, dicts and dataclasses, in order.

    Example:
        >>> len(list(tensors((torch.zeros(2), [{"a": torch.ones(1)}], "b"))))
        2
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from tensors([getattr(value, f.name) for f in fields(value)])


def sequential_pairs(net: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Neighbours in plain ``nn.Sequential``, reached from the root through such only: nobody else can call them.

    Example:
        >>> [b for _, b in sequential_pairs(nn.Sequential(nn.Sequential(nn.Tanh(), nn.ELU())))]
        [ELU(alpha=1.0)]
    """
    if type(net) is nn.Sequential and is_plain(net):
        yield from pairwise(net)
        for child in net:
            yield from sequential_pairs(child)


def is_plain(module: nn.Module) -> bool:
    """Whether a call of the module runs its class's forward and nothing else."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return not any(hooks) and "forward" not in vars(module)


@dataclass
class _Output:
    """What one call of a source made, and which operators took it; ``layout`` says which part of the memory."""

    source: nn.Module
    layout: tuple[Any, ...]
    uses: list[tuple[nn.Module | None, tuple[Any, ...]]] = field(default_factory=list)


class Recorder(TorchDispatchMode):
    """Watch every operator of one pass, and tell which sink takes the output of which source, and nobody else does.

    Storages are followed, so that views and changes in place are seen.

    Args:
        sources: modules without children.
        sinks: likewise, whose output is in memory of its own.

    Attributes:
        reads_values: whether Python saw values of tensors, on which the path through the network may depend.

    Example:
        >>> source, sink = nn.Linear(2, 2), nn.BatchNorm1d(2).eval()
        >>> recorder = Recorder([source], [sink])
        >>> with torch.no_grad():
        ...     result = recorder.run(nn.Sequential(source, nn.Flatten(), sink), torch.rand(3, 2))
        >>> recorder.pairs() == [(source, sink)]
        True
    """

    def __init__(self, sources: list[nn.Module], sinks: list[nn.Module]) -> None:
        super().__init__()
        self.sources, self.sinks = set(sources), set(sinks)
        self.reads_values = False
        self._running: nn.Module | None = None
        self._calls: Counter[nn.Module] = Counter()
        self._outputs: dict[host.Storage | None, _Output] = {}
        self._returned: list[tuple[nn.Module, host.Storage | None]] = []
        self._held: set[host.Storage | None] = set()
        self._misused: set[nn.Module] = set()
        self._owners = {host.storage(t): module for module in self.sources | self.sinks for t in _parameters(module)}

    def run(self, net: Callable[..., Any], *args: Any) -> Any:
        """The result of ``net(*args)``, watched."""
        handles = []
        for module in self.sources | self.sinks:
            handles.append(module.register_forward_pre_hook(self._enter))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            with self, _Reads(self):
                result = net(*args)
        finally:
            for handle in handles:
                handle.remove()
        if not all(ref.expired() for ref in self._outputs if ref):
            gc.collect()  # cycles
        self._held = {ref for ref in self._outputs if ref and not ref.expired()}  # in the result, or kept by somebody
        return result

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """(source, sink) where in every call the source's whole output went to the sink, unchanged, and only there."""
        takers: dict[nn.Module, list[nn.Module | None]] = {}
        for source, ref in self._returned:
            takers.setdefault(source, []).append(None if ref is None else self._taker(ref))
        found = []
        for source, sinks in takers.items():
            sink = sinks[0]
            if sink in self.sinks and sinks == [sink] * self._calls[sink] and not {source, sink} & self._misused:
                found.append((source, sink))
        return found

    def _taker(self, ref: host.Storage) -> nn.Module | None:
        output = self._outputs.get(ref)
        if output is None or ref in self._held or len(output.uses) != 1:
            return None
        module, layout = output.uses[0]
        return module if layout == output.layout else None

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._running = module
        self._calls[module] += 1

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._running = None
        if module in self.sources:
            self._returned.append((module, host.storage(output) if isinstance(output, Tensor) else None))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [(t, host.storage(t)) for t in tensors((args, kwargs or {}))]
        result = func(*args, **(kwargs or {}))
        made = [(t, host.storage(t)) for t in tensors(result)]
        known = {ref for _, ref in given}
        self.reads_values |= _reads_values(func, given, result)
        is_view = bool(made) and not func._schema.is_mutable and known.issuperset(ref for _, ref in made)
        for tensor, ref in given:
            owner, output = self._owners.get(ref), self._outputs.get(ref)
            if owner is not None and owner is not self._running:
                self._misused.add(owner)
            if output is not None and not is_view and output.source is not self._running:
                output.uses.append((self._running, _layout(tensor)))
        if self._running in self.sources:
            for tensor, ref in made:
                if ref not in known and ref is not None:
                    self._outputs.setdefault(ref, _Output(self._running, _layout(tensor)))
        return result


class _Reads(TorchFunctionMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.recorder.reads_values |= getattr(func, "__name__", "") in _READS
        return func(*args, **(kwargs or {}))


def _reads_values(func: Any, given: list[Any], result: Any) -> bool:
    """Whether an operator gives Python a value, or a shape that depends on values."""
    if func is torch.ops.aten.index.Tensor:  # indices of integers make a shape that is known
        return any(t.dtype in (torch.bool, torch.uint8) for t, _ in given[1:])
    if torch.Tag.dynamic_output_shape in func.tags:
        return True
    return bool(given) and result is not None and not any(True for _ in tensors(result))


def _parameters(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.layout, tensor.layout is torch.strided and (tensor.stride(), tensor.storage_offset())
