"""Whether the rates of spikes go through a network as an ANN's activations do: what lies behind one must be linear.

The mean over time of what a linear map gives is the map of the mean; the largest of some spikes, or their softmax, is
another thing than that of their rates. Before the first activation everything is constant in time, and may be anything.
"""

from collections.abc import Iterator, Sequence

from spikingjelly.activation_based import base, layer
from torch import fx, nn

from .. import host
from ..check import warn
from ..layer.synapse import SYNAPSES

Types = tuple[type[nn.Module], ...]
Found = tuple[str, str]
"""Where a fault is, and why it is one."""

POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
SHAPES = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Upsample, nn.PixelShuffle, nn.ConstantPad1d, nn.ConstantPad2d)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, layer.Dropout, layer.Dropout2d)
LINEAR: Types = (*SYNAPSES, *host.BATCH_NORMS, *POOLS, *SHAPES, *DROPOUTS)
"""Modules that are linear, up to a constant; dropout and the statistics of batch norms are of the training."""
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

# Functions and methods, which have the same names.
CALLS = """add iadd sub isub neg pos cat concat stack flatten view reshape permute transpose movedim squeeze unsqueeze
clone contiguous mean sum getitem chunk split unbind expand repeat flip roll narrow select unflatten to float double t
avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d dropout dropout2d
interpolate pad pixel_shuffle batch_norm getattr"""
PRODUCTS = "mul imul matmul bmm mm einsum conv1d conv2d conv3d linear"
"""Linear in each factor: one of them may be a rate."""
QUOTIENTS = "div truediv itruediv"
RELUS = "relu relu_ relu6"
FORMS = ("shape", "ndim", "dtype", "device")
"""What a tensor says of itself, whatever is in it; size and dim as well."""


class _Tracer(fx.Tracer):
    """Goes into the modules of a user, and into none of those that are known."""

    def __init__(self, sources: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self.known = (*LINEAR, *sources, base.MemoryModule)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self.known) or super().is_leaf_module(m, module_qualified_name)


def check(net: nn.Module, sources: Types, into: str, modules_only: bool = False) -> None:
    """Raise unless a network is linear behind its activations, and each of them is called once.

    The calls of the network's forward are traced by ``torch.fx``. Where that cannot be, its modules are looked at
    one by one, and a warning says that its other calls were not.

    Args:
        net: an ANN.
        sources: the types of its activations.
        into: what they are to become, for the messages.
        modules_only: whether a ReLU that is called as a function is an error wherever it is.

    Raises:
        ValueError: one line that names the layer and says what to do about it.
    """
    found: list[Found] | Iterator[Found]
    try:
        graph = _Tracer(sources).trace(net)
    except Exception as error:  # of any kind, control flow for one: it is the user's forward
        found = _modules_alone(net, sources)
        warn(
            f"net={type(net).__name__} cannot be traced ({' '.join(str(error).split())[:200]}): its modules were looked"
            " at, but not what else its forward calls, where a softmax or a maximum would go unseen"
        )
    else:
        found = _in_calls(graph, dict(net.named_modules()), sources, RELUS.split() if modules_only else [])
    for where, why in found:
        raise ValueError(f"{where} cannot be converted: {why.format(into=into)}")


def _in_calls(graph: fx.Graph, modules: dict[str, nn.Module], sources: Types, never: list[str]) -> Iterator[Found]:
    """What is wrong, in the order of the calls."""
    rates: set[fx.Node] = set()
    called: set[nn.Module] = set()
    for node in graph.nodes:
        module = modules[node.target] if node.op == "call_module" else None
        name = type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
        where = _place(node, name) if module is None else f"{node.target!r} ({name})"
        entering = [each for each in node.all_input_nodes if each in rates]
        if isinstance(module, sources):
            rates.add(node)
            if module in called:
                yield where, "it is called more than once, and a neuron has one state; give each call a module"
            called.add(module)
        elif module is None and node.op != "output" and name in never:
            yield where, _advice(name)
        elif module is not None and _spikes(module):
            yield where, "it is a spiking neuron already, or keeps a state"
        elif entering and node.op != "output" and not _is_form(node, name):
            rates.add(node)
            if not (_linear_call(node, name, entering) if module is None else isinstance(module, LINEAR)):
                yield where, _advice(name)


def _is_form(node: fx.Node, name: str) -> bool:
    return name in ("size", "dim") or (name == "getattr" and node.args[1] in FORMS)


def _linear_call(node: fx.Node, name: str, entering: Sequence[fx.Node]) -> bool:
    used: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), used.append)
    times = sum(used.count(each) for each in entering)
    if name in QUOTIENTS.split():
        return times == 1 and node.args[0] is entering[0]
    return times == 1 if name in PRODUCTS.split() else name in CALLS.split()


def _place(node: fx.Node, name: str) -> str:
    """A call, and the module whose forward makes it."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path, kind = stack[-1] if stack else ("", None)
    return f"{name}() in the forward of {f'{path!r} ({kind.__name__})' if kind and path else 'the network'}"


def _modules_alone(net: nn.Module, sources: Types) -> list[Found]:
    """What is wrong with the modules of torch and the host, wherever they are."""

    def fits(module: nn.Module) -> bool:
        foreign = not type(module).__module__.startswith("torch.nn.")  # a user's, which may be anything
        return not _spikes(module) and (foreign or isinstance(module, (*LINEAR, *sources, *CONTAINERS)))

    named = ((name, module, type(module).__name__) for name, module in net.named_modules() if not fits(module))
    return [(f"{name!r} ({kind})", _advice(kind)) for name, _, kind in named]


def _spikes(module: nn.Module) -> bool:
    return isinstance(module, base.MemoryModule) and not isinstance(module, DROPOUTS)


def _advice(name: str) -> str:
    if "max_pool" in name or "MaxPool" in name:
        return "the largest of spikes is not that of their rates; train the ANN with an average pool in its place"
    if name.lower() in RELUS.split():
        return "a {into} takes the place of activations that are modules; relu_to_qcfs makes nn.ReLU modules QCFS"
    return "behind an activation only what is linear treats spikes as it treats their rates"
