"""Names to parts: the neurons, synapses and norms that the options of the architectures name."""

import inspect
from collections.abc import Callable
from copy import deepcopy
from functools import wraps
from typing import Any, TypeVar

from spikingjelly.activation_based import layer, surrogate
from spikingjelly.activation_based.neuron import LIFNode
from torch import nn

from sj_online import registry
from sj_online.layer import BinaryConv2d, ScaledWSConv2d, StepBatchNorm2d, TernaryConv2d

NeuronFactory = Callable[[], nn.Module]
Factory = TypeVar("Factory", bound=Callable[..., nn.Module])

_SOFT_RESET = {"v_reset": None, "decay_input": False, "detach_reset": True}
_TRIANGLE = surrogate.PiecewiseQuadratic(alpha=1.0)
LIF: dict[str, dict[str, Any]] = {
    "ottt_lif": {"tau": 2.0, "surrogate_function": surrogate.Sigmoid(alpha=4.0)} | _SOFT_RESET,
    "sltt_lif": {"tau": 1.1, "surrogate_function": _TRIANGLE} | _SOFT_RESET,
    # STOL's leak is 1/tau where the host's is 1 - 1/tau: its tau = 4 for CIFAR10-DVS is {"tau": 4 / 3} here.
    "stol_lif": {
        "tau": 2.0,
        "surrogate_function": _TRIANGLE,
        "v_reset": 0.0,
        "decay_input": False,
        "detach_reset": False,
    },
}
"""The LIF neurons of OTTT, SLTT and STOL, as arguments of the host's ``LIFNode``."""

SYNAPSES: dict[str, type[layer.Conv2d]] = {
    "float": layer.Conv2d,
    "binary": BinaryConv2d,
    "ternary": TernaryConv2d,
    "ws": ScaledWSConv2d,
}
NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": layer.BatchNorm2d, "step": StepBatchNorm2d}


def cite(paper: str) -> Callable[[Factory], Factory]:
    """Give a factory its ``paper``, which ``sj-online list`` shows."""

    def decorate(factory: Factory) -> Factory:
        factory.paper = paper  # type: ignore[attr-defined]
        return factory

    return decorate


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
    if not isinstance(neuron, str) or neuron in LIF:
        return set()
    return set(inspect.signature(registry.get("neurons", neuron)).parameters)


def neuron_factory(neuron: str | NeuronFactory, num_steps: int | None = None, **options: Any) -> NeuronFactory:
    """A factory of neurons, one for each position.

    Args:
        neuron: a name of :data:`LIF`, a registered name, or a factory that is called as it is.
        num_steps: T of the per-step parameters of registered neurons.
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
    if neuron in LIF:
        return lambda: LIFNode(**deepcopy(LIF[neuron] | options))
    node = registry.get("neurons", neuron)
    return lambda: node(num_steps, **options)
