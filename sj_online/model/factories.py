"""Names to parts: the neurons, synapses and norms that the options of the architectures name."""

import inspect
from collections.abc import Callable
from copy import deepcopy
from functools import wraps
from typing import Any

from spikingjelly.activation_based import layer
from torch import nn

from sj_online import registry
from sj_online.layer import BinaryConv2d, ScaledWSConv2d, StepBatchNorm2d, TernaryConv2d

NeuronFactory = Callable[[], nn.Module]

SYNAPSES: dict[str, type[layer.Conv2d]] = {
    "float": layer.Conv2d,
    "binary": BinaryConv2d,
    "ternary": TernaryConv2d,
    "ws": ScaledWSConv2d,
}
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": layer.BatchNorm2d,
    "step": StepBatchNorm2d,
    "td": lambda channels: layer.ThresholdDependentBatchNorm2d(1.0, 1.0, channels),
    "none": lambda channels: nn.Identity(),
}


def variant(factory: Callable[..., nn.Sequential], **defaults: Any) -> Callable[..., nn.Sequential]:
    """The same factory with other defaults; its signature shows them.

    Example:
        >>> from sj_online.model import hdlif_resnet
        >>> variant(hdlif_resnet, num_classes=100, width=8)()[-1][-1].out_features
        100
    """
    signature = inspect.signature(factory)
    parameters = [p.replace(default=defaults.get(p.name, p.default)) for p in signature.parameters.values()]

    @wraps(factory)
    def build(*args: Any, **kwargs: Any) -> nn.Sequential:
        return factory(**(defaults | signature.bind_partial(*args, **kwargs).arguments))

    build.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return build


def choice(name: str, value: str, table: dict[str, Any]) -> Any:
    """The entry of a table, or a ValueError that names the argument and what is allowed."""
    if value not in table:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, table))}")
    return table[value]


def options_of(neuron: str | NeuronFactory) -> set[str]:
    """The arguments of a registered neuron; none of others.

    Example:
        >>> "parallel" in options_of("empf"), "parallel" in options_of("lmh")
        (True, False)
    """
    if not isinstance(neuron, str):
        return set()
    return set(inspect.signature(registry.get("neurons", neuron)).parameters)


def neuron_factory(neuron: str | NeuronFactory, num_steps: int | None = None, **options: Any) -> NeuronFactory:
    """A factory of neurons, one for each position.

    Args:
        neuron: a registered name, or a factory that is called as it is.
        num_steps: T of the per-step parameters of the registered neurons that have any.
        options: further arguments of a named neuron.

    Raises:
        ValueError: an unknown name, or options for a factory.

    Example:
        >>> neuron_factory("empf", 4, threshold=0.25)().num_steps
        4
    """
    if not isinstance(neuron, str):
        if options:
            raise ValueError(f"neuron={neuron!r} is a factory, which takes its options itself; given: {options}")
        return neuron
    node = registry.get("neurons", neuron)
    if "num_steps" in options_of(neuron):
        options = {"num_steps": num_steps} | options
    return lambda: node(**deepcopy(options))
