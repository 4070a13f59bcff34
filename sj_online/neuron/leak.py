"""What any neuron tells, the host's, this package's or a third party's: that it is one, and its leak."""

from typing import Any

from spikingjelly.activation_based import base, neuron
from torch import Tensor, nn

Leak = Tensor | float


def is_neuron(module: nn.Module) -> bool:
    """Whether a module is a spiking neuron with a state.

    Example:
        >>> is_neuron(neuron.SimpleLIFNode(tau=2.0, decay_input=True)), is_neuron(nn.ReLU())
        (True, False)
    """
    if not isinstance(module, base.MemoryModule):
        return False
    # Not hasattr: a learnt threshold is a property, which would be read from the device.
    return hasattr(type(module), "v_threshold") or "v_threshold" in vars(module)


def of_neuron(node: nn.Module, t: int) -> Leak | None:
    """du[t] / du[t-1] of a neuron below threshold, at step t from 0; None if it is not one number, or not known.

    A neuron of a third party tells it by a method ``leak(t)``.

    Example:
        >>> of_neuron(neuron.LIFNode(tau=4.0), 0)
        0.75
    """
    leak: Any = getattr(node, "leak", None)
    if callable(leak):
        last = getattr(node, "num_steps", None)  # a neuron that is run past its last step says so itself
        return leak(t if last is None else min(t, last - 1))
    if isinstance(node, (neuron.IFNode, neuron.SimpleIFNode, neuron.HalfThresholdIFNode, neuron.TernaryIFNode)):
        return 1.0
    if isinstance(node, (neuron.LIFNode, neuron.SimpleLIFNode, neuron.TernaryLIFNode)):
        return 1.0 - 1.0 / node.tau
    if isinstance(node, neuron.ParametricLIFNode):
        return 1.0 - node.w.sigmoid()
    return None
