"""What the checks of a rule share: a network, a batch, and the rule under test on them."""

from collections.abc import Callable
from typing import Any

import torch
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn

from sj_online.trainer import Rule

Factory = Callable[..., Rule]
T, N, CLASSES = 6, 4, 3


def network() -> nn.Sequential:
    """Three linear layers and two layers of neurons, float64, with weights that make the neurons fire."""
    node = {"tau": 2.0, "decay_input": False, "v_reset": None, "detach_reset": True}
    net = nn.Sequential(
        layer.Linear(8, 6), neuron.LIFNode(**node), layer.Linear(6, 5), neuron.LIFNode(**node), layer.Linear(5, CLASSES)
    )
    for module in net:
        if isinstance(module, layer.Linear):
            nn.init.normal_(module.weight, 0.3, 0.5)
    return net.double()


def batch(steps: int = T) -> tuple[Tensor, Tensor]:
    """An input ``[T, N, 8]`` and labels ``[N]``."""
    return torch.rand(steps, N, 8, dtype=torch.float64), torch.randint(CLASSES, (N,))


def made(factory: Factory, net: nn.Module, num_steps: int | None = None) -> Rule:
    """The rule under test, of a network."""
    return factory(net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), num_steps=num_steps)


def flat(gradient: dict[str, Tensor]) -> Tensor:
    """A gradient as one vector."""
    return torch.cat([value.flatten() for value in gradient.values()])


def weights(net: nn.Module) -> Tensor:
    """The parameters as one vector, not those of the moment but a copy."""
    return nn.utils.parameters_to_vector(net.parameters()).detach().clone()


def seeded(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A call with the random numbers that the other calls have too."""
    torch.manual_seed(1)
    return call(*args, **kwargs)
