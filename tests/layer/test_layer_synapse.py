import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn
from torch.nn.utils import parametrizations

from sj_online import layer as ours
from sj_online.layer import is_synapse
from sj_online.layer.quantized import Quantized

CONVS = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]
QUANTISED = [cls for cls in vars(ours).values() if isinstance(cls, type) and issubclass(cls, Quantized)]
SYNAPSES = [
    *(getattr(of, name)(2, 2, 1) for of in (nn, layer) for name in CONVS),
    *(of.Linear(2, 2) for of in (nn, layer)),
    *(cls(2, 2, 1) if issubclass(cls, nn.modules.conv._ConvNd) else cls(2, 2) for cls in QUANTISED),
    ours.ScaledWSConv2d(2, 2, 1),
    ours.ScaledWSLinear(2, 2),
    layer.WSConv2d(2, 2, 1),
    nn.LazyLinear(2),
    nn.MultiheadAttention(2, 1).out_proj,
    parametrizations.weight_norm(nn.Linear(2, 2)),
]
OTHERS = [
    nn.Bilinear(2, 2, 2),
    nn.BatchNorm2d(2),
    nn.Embedding(2, 2),
    nn.GRUCell(2, 2),
    nn.MultiheadAttention(2, 1),
    nn.Sequential(nn.Linear(2, 2)),
    nn.Identity(),
    ours.SECA(3),
    neuron.ParametricLIFNode(),
]


@pytest.mark.parametrize("module", SYNAPSES, ids=lambda module: type(module).__name__)
def test_a_weight_and_its_layer(module):
    assert len(QUANTISED) == 6 and is_synapse(module)


@pytest.mark.parametrize("module", OTHERS, ids=lambda module: type(module).__name__)
def test_what_is_none(module):
    assert not is_synapse(module)


def test_each_is_linear_in_its_one_input_but_for_the_bias():
    for module in SYNAPSES[:14]:
        dims = module.weight.dim() - 2
        x, y = (torch.rand(3, 2, *[4] * dims, dtype=torch.float64) for _ in "xy")
        zero = module.double()(torch.zeros_like(x))
        torch.testing.assert_close(module(x + 2 * y), module(x) + 2 * module(y) - 2 * zero)
