"""How the synapses of a loaded network run: packed, unpacked, or with integers, found out by running it once."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sj_online import check, host
from sj_online.deploy.flow import Recorder, is_plain
from sj_online.deploy.fold import NORMS, fold_norms
from sj_online.deploy.runtime import Packed
from sj_online.deploy.steps import STEP, Quick, quicken
from sj_online.layer import integer, is_synapse
from sj_online.neuron.leak import is_neuron

RUNTIMES = ("packed", "unpacked", "int8", "auto")
_SIZES = (32, 48, 28, 64, 224)
_TRIALS = 3


@dataclass
class Report:
    """How a network runs.

    Attributes:
        runtime: what was asked for, or ``'unpacked'`` where that cannot be.
        integer: the synapses that compute with integers.
        floating: the others that are packed in the file, each with its reason.
        bytes: neurons whose levels go out as uint8.
        folded: how many batch norms went into synapses.
        remarks: what else there is to say.
    """

    runtime: str
    integer: list[str] = field(default_factory=list)
    floating: dict[str, str] = field(default_factory=dict)
    bytes: list[str] = field(default_factory=list)
    folded: int = 0
    remarks: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        total = len(self.integer) + len(self.floating)
        parts = [f"runtime {self.runtime}"]
        if self.integer or self.runtime in ("int8", "auto"):
            parts.append(
                f"{len(self.integer)} of {total} quantised synapses compute with integers, {len(self.bytes)} neurons"
                f" give bytes, {self.folded} norms folded"
            )
            parts += [f"in float {name} ({reason})" for name, reason in self.floating.items()]
        return "; ".join(parts + self.remarks)


_reports: "WeakKeyDictionary[nn.Module, Report]" = WeakKeyDictionary()


def report(net: nn.Module) -> Report:
    """How a network that :func:`~sj_online.deploy.load` has loaded runs.

    Raises:
        ValueError: it is none.
    """
    if net not in _reports:
        raise ValueError(f"this {type(net).__name__} was not loaded by sj_online.deploy.load")
    return _reports[net]


@torch.no_grad()
def choose(net: nn.Module, runtime: str, example: Tensor | None) -> Report:
    """Let the packed synapses of a network in eval mode run as asked.

    Args:
        net: see :func:`~sj_online.deploy.load`.
        runtime: one of :data:`RUNTIMES`.
        example: an input, of one step in step mode 's'; None: one is made up from the first synapse, if one fits.
    """
    reason = integer.why_not() if runtime in ("int8", "auto") else None
    found = Report("unpacked" if reason else runtime)
    if reason:
        check.warn(f"runtime={runtime!r} is 'unpacked' here: {reason}")
        found.remarks.append(reason)
    synapses = {name: module for name, module in net.named_modules() if isinstance(module, Packed)}
    if found.runtime in ("packed", "unpacked"):
        for synapse in synapses.values():
            synapse.runtime = found.runtime
        found.floating = dict.fromkeys(synapses, found.runtime)
    else:
        _with_integers(net, synapses, example, found)
    _reports[net] = found
    return found


def compile_network(net: nn.Module, example: Tensor | None, found: Report) -> None:
    """Compile in place, and try it, as the compiler runs at the first call; if it fails, the network runs as it is."""
    example = _made_up(net) if example is None else example
    net.compile()
    if example is None:
        found.remarks.append("compiled at its first call")
        return
    try:
        with torch.no_grad():
            net(example)
        found.remarks.append("compiled")
    except Exception as error:  # of the compiler, of any kind
        host.uncompile(net)
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        check.warn(f"compile=True: it runs as it is, since torch.compile fails here: {reason}")
        found.remarks.append("not compiled")
    host.reset(net)


def _with_integers(net: nn.Module, synapses: dict[str, Packed], example: Tensor | None, found: Report) -> None:
    example = _made_up(net) if example is None else example
    _channels_last(net)
    before = _count_norms(net)
    try:
        fold_norms(net, example)
    except ValueError as error:
        found.remarks.append(f"norms are not folded: {error}")
    found.folded = before - _count_norms(net)
    inputs: dict[str, Tensor] = {}
    pairs: list[tuple[str, str]] = []
    if example is None:
        found.remarks.append("no example of an input: every synapse looks at what it gets")
    else:
        inputs, pairs = _traced(net, synapses, example)
    for name, synapse in synapses.items():
        reason = _in_float(synapse, inputs.get(name), example is None)
        if reason is None and found.runtime == "auto" and name in inputs and not _gains(synapse, inputs[name]):
            reason = "faster so"
        synapse.runtime = "unpacked" if reason else "int8"
        if reason:
            found.floating[name] = reason
        else:
            found.integer.append(name)
    quick = set(quicken(net))
    for neuron, name in pairs:
        node: Any = net.get_submodule(neuron)
        if neuron in quick and synapses[name].runtime == "int8" and isinstance(node, Quick) and node.spike_bits:
            node.gives_bytes, synapses[name].step = True, STEP
            found.bytes.append(neuron)


def _in_float(synapse: Packed, x: Tensor | None, unknown: bool) -> str | None:
    """Why a synapse cannot compute with integers."""
    if synapse.scale.dtype != torch.float32:
        return f"its scale is {synapse.scale.dtype}"
    if unknown:
        return None
    if x is None:
        return "not called"
    return None if integer.levels_of(x) else "sees currents"


def _traced(
    net: nn.Module, synapses: dict[str, Packed], example: Tensor
) -> tuple[dict[str, Tensor], list[tuple[str, str]]]:
    """The input of each synapse in one call, and (neuron, synapse) where all that the neuron gives goes there alone."""
    names = {module: name for name, module in net.named_modules()}
    inputs: dict[str, Tensor] = {}

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        inputs[names[module]] = args[0].detach().clone()

    neurons = [m for m in names if is_neuron(m) and is_plain(m) and not any(True for _ in m.children())]
    takers: list[nn.Module] = [m for m in synapses.values() if is_plain(m) and _pads_bytes(m)]
    recorder = Recorder(neurons, takers)
    host.reset(net)
    recorder.run(net, example)
    handles = [synapse.register_forward_pre_hook(note) for synapse in synapses.values()]
    host.reset(net)
    net(example)
    for handle in handles:
        handle.remove()
    host.reset(net)
    pairs = [] if recorder.reads_values else [(names[a], names[b]) for a, b in recorder.pairs()]
    return inputs, pairs


def _pads_bytes(synapse: nn.Module) -> bool:
    padding = integer.laid_out(synapse)[1]
    return padding is None or padding[1] == "constant"


def _gains(synapse: Packed, x: Tensor) -> bool:
    """Whether integers are faster than floats, on the example."""
    seconds = {}
    for runtime in ("int8", "unpacked"):
        synapse.runtime = runtime
        synapse(x)
        seconds[runtime] = min(_seconds(lambda: synapse(x)) for _ in range(_TRIALS))
        synapse._made = None
    return seconds["int8"] < seconds["unpacked"]


def _seconds(call: Callable[[], Any]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def _channels_last(net: nn.Module) -> None:
    """The layout that integer convolutions give."""
    for module in net.modules():
        if isinstance(module, Packed):
            module.channels_last = len(module.shape) == 4
        elif isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


def _count_norms(net: nn.Module) -> int:
    return sum(isinstance(module, NORMS) for module in net.modules())


def _made_up(net: nn.Module) -> Tensor | None:
    """An input that the network runs on, random, with the channels of its first synapse; None: there is none."""
    for shape in _shapes(next((m for m in net.modules() if is_synapse(m)), None)):
        sequence = any(getattr(module, "step_mode", "s") == "m" for module in net.modules() if is_neuron(module))
        x = torch.rand((2, *shape) if sequence else shape, generator=torch.Generator().manual_seed(0))
        try:
            host.reset(net)
            net(x)
            return x
        except Exception:  # of any kind: the network is the user's, and the next size may fit
            continue
        finally:
            host.reset(net)
    return None


def _shapes(first: Any) -> Iterator[tuple[int, ...]]:
    if isinstance(first, nn.Linear):
        yield (1, first.in_features)
    elif isinstance(first, nn.Conv1d | nn.Conv2d):
        for size in _SIZES:
            yield (1, first.in_channels, *[size] * (first.weight.dim() - 2))
