"""What a network costs: parameters, bytes of its weights, operations of its neurons."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from spikingjelly.activation_based import functional
from spikingjelly.activation_based.neuron import BaseNode
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sj_online.layer.quantized import Quantized


@dataclass(frozen=True)
class Cost:
    """Parameters of a network by their kind, and the bytes of its weights; norm and neurons are not in the bytes.

    Attributes:
        quantized_weights: weights of binary and ternary synapses.
        float_weights: all other parameters of synapses: float weights, biases, attention.
        norm_parameters: of batch norms between the synapses.
        neuron_parameters: of neurons, with the norms of their membranes.
        paper_bytes: as EM-PF and HD-LIF count, 2 bits for a binary weight and 3 for a ternary one.
        packed_bytes: as packed files hold the weights, 1 bit and 2; the scales apart.
    """

    quantized_weights: int
    float_weights: int
    norm_parameters: int
    neuron_parameters: int
    paper_bytes: float
    packed_bytes: float

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.quantized_weights + self.float_weights + self.norm_parameters + self.neuron_parameters


def network_cost(net: nn.Module) -> Cost:
    """Count the parameters of a network; it may live on the meta device.

    Args:
        net: a network with latent weights.

    Raises:
        ValueError: a packed network, which has no parameters in its synapses.

    Example:
        >>> from sj_online.model import hdlif_resnet18
        >>> with torch.device("meta"):
        ...     c = network_cost(hdlif_resnet18())
        >>> c.quantized_weights, c.float_weights, round(c.paper_bytes / 1e6, 2), round(c.packed_bytes / 1e6, 2)
        (11157504, 6858, 2.82, 1.42)
    """
    for name, module in net.named_modules():
        if "packed" in module._buffers:
            raise ValueError(f"net is packed ({name!r} is a {type(module).__name__}): count before the export")
    neurons = {id(p) for m in net.modules() if isinstance(m, BaseNode) for p in m.parameters()}
    norms = {id(p) for m in net.modules() if isinstance(m, _BatchNorm) for p in m.parameters()} - neurons
    bits = {id(m.weight): m.bits for m in net.modules() if isinstance(m, Quantized)}
    sizes = {id(p): p.numel() for p in net.parameters()}
    floats = sum(size for key, size in sizes.items() if key not in bits.keys() | norms | neurons)
    return Cost(
        quantized_weights=sum(sizes[key] for key in bits),
        float_weights=floats,
        norm_parameters=sum(sizes[key] for key in norms),
        neuron_parameters=sum(sizes[key] for key in neurons),
        paper_bytes=4 * floats + sum(sizes[key] * (n + 1) / 8 for key, n in bits.items()),
        packed_bytes=4 * floats + sum(sizes[key] * n / 8 for key, n in bits.items()),
    )


@torch.no_grad()
def neuron_operations(net: nn.Module, x: Tensor) -> int:
    """NOPs for the images and steps of ``x``: three per neuron and step, one if it has no membrane (HD-LIF).

    Only shapes are computed; the network's state is reset.

    Args:
        net: a network; in step mode 's' one step is counted.
        x: ``[N, C, H, W]``, or ``[T, N, C, H, W]`` in step mode 'm'.

    Example:
        >>> from spikingjelly.activation_based import neuron
        >>> neuron_operations(nn.Sequential(nn.Linear(2, 5), neuron.IFNode()), torch.rand(1, 2))
        15
    """
    total = 0

    def count(node: BaseNode, args: Any, output: Tensor) -> None:
        nonlocal total
        total += output.numel() * (1 if getattr(node, "parallel", False) else 3)

    functional.reset_net(net)
    shapes = copy.deepcopy(net).to("meta").eval()
    for module in shapes.modules():
        if isinstance(module, BaseNode):
            module.register_forward_hook(count)
    shapes(x.to("meta"))
    return total
