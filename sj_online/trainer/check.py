"""What a rule asks of its arguments and of a network, checked once, by name."""

from collections.abc import Iterator

from spikingjelly.activation_based import base, layer, neuron
from torch import nn

SYNAPSES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
# Their submodules have a step mode of their own.
CONTAINERS = (
    layer.StepModeContainer,
    layer.MultiStepContainer,
    layer.SeqToANNContainer,
    layer.TLastMultiStepContainer,
    layer.TLastSeqToANNContainer,
    layer.ElementWiseRecurrentContainer,
    layer.LinearRecurrentContainer,
)
MIXES_TIME = (
    layer.ThresholdDependentBatchNorm1d,
    layer.ThresholdDependentBatchNorm2d,
    layer.ThresholdDependentBatchNorm3d,
    layer.TemporalEffectiveBatchNorm1d,
    layer.TemporalEffectiveBatchNorm2d,
    layer.TemporalEffectiveBatchNorm3d,
    neuron.PSN,
    neuron.MaskedPSN,
    neuron.SlidingPSN,
    neuron.NonSpikingBaseNode,
    neuron.ILCBaseNode,
    neuron.NoisyBaseNode,
    neuron.NoisyNonSpikingBaseNode,
    layer.TemporalWiseAttention,
    layer.MultiDimensionalAttention,
    layer.TemporalBinSum,
    layer.SpikeCountToBinary,
)


def one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, allowed))}")


def at_least_one(name: str, value: int | None) -> None:
    """Raise unless ``value`` is None or a whole number of at least 1."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError(f"{name}={value!r} is not a whole number of at least 1")


def network(net: nn.Module, horizon: int | None, stride: int | None) -> None:
    """Raise, naming the module, where a rule with this horizon and stride cannot train ``net``."""
    for name, module in net.named_modules():
        if isinstance(module, neuron.OTTTLIFNode):
            raise ValueError(f"{name!r} is an OTTTLIFNode, which returns a list: use LIFNode, the rule keeps the trace")
        if stride == 1 and isinstance(module, MIXES_TIME):
            raise ValueError(
                f"{name!r} ({type(module).__name__}) mixes the steps of a sequence, but this rule runs one step at a "
                "time: use a layer that works step by step (BatchNorm2d), or TimeSlicing or BPTT"
            )
        if horizon != 1 and getattr(module, "temporal_grad", True) is False:
            raise ValueError(
                f"{name!r} has temporal_grad=False, which cuts the graph that this rule needs: "
                "set temporal_grad=True, or use a rule with horizon 1"
            )
    step_mode(net)


def _outer_step_modules(module: nn.Module, name: str = "") -> Iterator[tuple[str, base.StepModule]]:
    if isinstance(module, base.StepModule):
        yield name, module
    if not isinstance(module, CONTAINERS):
        for child_name, child in module.named_children():
            yield from _outer_step_modules(child, f"{name}.{child_name}".lstrip("."))


def step_mode(net: nn.Module) -> str:
    """The step mode of a network, 's' or 'm', as its neurons have it.

    Raises:
        ValueError: its neurons disagree.
    """
    modules = list(_outer_step_modules(net))
    stateful = [(name, module) for name, module in modules if isinstance(module, base.MemoryModule)] or modules
    first_with = {module.step_mode: name for name, module in reversed(stateful)}
    if len(first_with) > 1:
        raise ValueError(
            f"{first_with['s']!r} is in step mode 's' and {first_with['m']!r} in 'm': "
            "call functional.set_step_mode(net, 's') or (net, 'm')"
        )
    return next(iter(first_with), "s")


def table(net: nn.Module) -> str:
    """The synapses of a network, a line each."""
    lines = [
        f"  {name}  {type(module).__name__}  not traced"
        for name, module in net.named_modules()
        if isinstance(module, SYNAPSES)
    ]
    return "\n".join(lines)
