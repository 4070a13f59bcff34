"""Layers and neurons in operators that other runtimes know."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn
from torch.autograd import Function

from sj_online import host
from sj_online.deploy.pack import unpack
from sj_online.deploy.runtime import Packed, PackedLinear
from sj_online.deploy.steps import STEP, Quick
from sj_online.layer import integer

_UINT8, _FLOAT = 2, 1  # numbers of ONNX


def make_portable(net: nn.Module, as_integers: bool) -> None:
    """Replace what only this package or the host knows, in place.

    Args:
        net: a loaded network.
        as_integers: whether synapses that get bytes become the integer operators of ONNX.
    """
    for name, module in list(net.named_modules()):
        if isinstance(module, Quick):
            module.gives_bytes = False
        if isinstance(module, Packed):
            if as_integers and module.runtime == "int8" and module.step == STEP:
                net.set_submodule(name, Integers(module))
            else:
                _unpack(module)
        if type(module) in (neuron.IFNode, neuron.LIFNode):
            module.single_step_forward = partial(_plain_step, module)


def _unpack(synapse: Any) -> None:
    """Make it the host's layer, with its weight."""
    weight = nn.Parameter(synapse.weight.detach().clone(), requires_grad=False)
    del synapse.packed, synapse.scale
    synapse.__class__ = next(kind for kind in (layer.Conv1d, layer.Conv2d, layer.Linear) if isinstance(synapse, kind))
    synapse.weight = weight


def _plain_step(node: Any, x: Tensor) -> Tensor:
    """The host's IF and LIF in plain operators: its own are of one piece that no other runtime knows."""
    memories, rest = host.memories(node), node.v_reset or 0.0
    v = memories["v"] if isinstance(memories["v"], Tensor) else torch.full_like(x, memories["v"])
    if isinstance(node, neuron.IFNode):
        v = v + x
    elif node.decay_input:
        v = v + (x - (v - rest)) / node.tau
    else:
        v = v - (v - rest) / node.tau + x
    s = (v >= node.v_threshold).to(x)
    memories["v"] = v - s * node.v_threshold if node.v_reset is None else (1.0 - s) * v + s * node.v_reset
    return s


class Integers(nn.Module):
    """A synapse that gets bytes, for ONNX."""

    levels: Tensor
    scale: Tensor

    def __init__(self, synapse: Packed) -> None:
        super().__init__()
        levels = unpack(synapse.packed, synapse.shape, synapse.bits, torch.float32).to(torch.int8)
        self.geometry, self.padding = integer.laid_out(synapse)
        linear = isinstance(synapse, PackedLinear)
        scale = synapse.scale.expand(synapse.shape[0], *[1] * (levels.dim() - 1))
        self.register_buffer("levels", levels.T.contiguous() if linear else levels)
        self.register_buffer("scale", STEP * (scale.view(-1) if linear else scale.transpose(0, 1)))
        bias = synapse.bias
        self.bias = None if bias is None else nn.Parameter(bias.view(self.scale.shape), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """The synapse's output for levels x."""
        y = _Product.apply(integer.padded(x, self.padding), self.levels, self.geometry) * self.scale
        return y if self.bias is None else y + self.bias


class _Product(Function):
    """The integer product of the levels of x, as floats."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: Tensor, geometry: integer.Geometry | None) -> Tensor:
        q, weight = (x / STEP).round(), levels.to(x.dtype)
        if geometry is None:
            return q @ weight
        convolve = F.conv1d if levels.dim() == 3 else F.conv2d
        return convolve(q, weight, None, geometry.stride, geometry.padding, geometry.dilation, geometry.groups)

    @staticmethod
    def symbolic(graph: Any, x: Any, levels: Any, geometry: integer.Geometry | None) -> Any:
        units = graph.op("Mul", x, graph.op("Constant", value_t=torch.tensor(1 / STEP)))
        q = graph.op("Cast", units, to_i=_UINT8)
        if geometry is None:
            sums = graph.op("MatMulInteger", q, levels)
        else:
            sums = graph.op(
                "ConvInteger",
                q,
                levels,
                strides_i=list(geometry.stride),
                pads_i=list(geometry.padding) * 2,
                dilations_i=list(geometry.dilation),
                group_i=geometry.groups,
            )
        return graph.op("Cast", sums, to_i=_FLOAT)
