import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn

from sj_online.trainer import SLTT, RandomBP

T, N = 6, 4


@pytest.fixture
def net():
    return nn.Sequential(layer.Flatten(), layer.Linear(50, 3), neuron.LIFNode())


def sgd(net):
    return torch.optim.SGD(net.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: SLTT(net, sgd(net)).train_step(torch.rand(N, 2, 5, 5), torch.zeros(N)), "num_steps"),
        (lambda net: SLTT(net, sgd(net)).train_step(torch.rand(T, N, 2), torch.zeros(N + 1)), "has N=4, but y has 5"),
        (lambda net: SLTT(net, sgd(net)).train_step(torch.rand(T), torch.zeros(N)), "no time axis"),
        (lambda net: SLTT(net, sgd(net)).train_step(torch.rand(0, N, 2), torch.zeros(N)), "T=0"),
        (lambda net: SLTT(net, sgd(net), num_steps=0), "num_steps=0"),
        (lambda net: SLTT(net, sgd(net), update="batch"), "update='batch'.*'step', 'sequence'"),
        (lambda net: SLTT(net, sgd(net), step_scale="max"), "step_scale='max'.*'mean', 'sum'"),
        (lambda net: RandomBP(net, sgd(net), k=0), "k=0"),
        (lambda net: RandomBP(net, sgd(net), k=9).train_step(torch.rand(T, N, 2, 5, 5), torch.zeros(N)), "k=9.*T=6"),
    ],
)
def test_wrong_use_is_one_clear_line(net, call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(net)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (neuron.OTTTLIFNode(), "'0' is an OTTTLIFNode"),
        (layer.ThresholdDependentBatchNorm2d(1.0, 1.0, 3), "'0'.*mixes the steps.*BatchNorm2d"),
        (layer.TemporalEffectiveBatchNorm2d(4, 3), "'0'.*mixes the steps.*BatchNorm2d"),
        (neuron.PSN(4), "'0'.*mixes the steps"),
        (neuron.NonSpikingLIFNode(decode="mean-mem"), "'0'.*mixes the steps"),
        (layer.TemporalBinSum(3), "'0'.*mixes the steps"),
    ],
)
def test_layers_that_no_online_rule_can_run_are_named(module, message):
    net = nn.Sequential(module)
    with pytest.raises(ValueError, match=message):
        SLTT(net, None)


def test_mixed_step_modes_are_named():
    net = nn.Sequential(neuron.LIFNode(), neuron.LIFNode(step_mode="m"))
    with pytest.raises(ValueError, match="'0' is in step mode 's' and '1' in 'm'"):
        SLTT(net, None)


def test_step_modes_inside_containers_are_their_own():
    net = nn.Sequential(layer.MultiStepContainer(neuron.LIFNode()), neuron.LIFNode(step_mode="m"))
    SLTT(net, None)
