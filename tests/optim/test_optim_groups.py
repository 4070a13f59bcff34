from spikingjelly.activation_based import layer, neuron
from torch import nn

from sj_online.optim import param_groups


def test_neuron_parameters_are_kept_out_of_weight_decay():
    net = nn.Sequential(layer.Linear(4, 4), neuron.ParametricLIFNode(), layer.Linear(4, 2))
    decayed, others = param_groups(net, 0.1)
    assert [p.shape for p in others["params"]] == [()] and others["weight_decay"] == 0
    assert len(decayed["params"]) == 4 and decayed["weight_decay"] == 0.1
