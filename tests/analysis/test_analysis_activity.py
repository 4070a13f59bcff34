"""Rates and potentials of neurons whose spikes are known by hand."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from sj_online.analysis.activity import SAMPLES, accuracy_by_steps, activity, learnt
from sj_online.neuron import EMPFNode, HDLIFNode, LMHNode
from sj_online.prediction import predict

# Inputs of three IF neurons: never, at every second step, always.
CURRENTS = torch.tensor([0.0, 0.5, 1.0])
T = 4


def one(net, x, num_steps=None):
    (found,) = activity(net, x, num_steps)
    return found


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_rates_dead_and_always(step_mode):
    net = nn.Sequential(neuron.IFNode(v_reset=None))
    functional.set_step_mode(net, step_mode)
    found = one(net, CURRENTS.expand(2, 3), T)
    assert (found.layer, found.neurons) == ("0", 3)
    assert found.rate == pytest.approx([1 / 3, 2 / 3] * 2)
    assert (found.dead, found.always) == pytest.approx((1 / 3, 1 / 3))
    assert sum(found.counts) == T * 2 * 3 and len(found.edges) == len(found.counts) + 1
    assert (found.edges[0], found.edges[-1]) == (0, 0.5)  # what a step leaves: 0, or half a threshold
    assert found.counts[0] == 20 and found.counts[-1] == 4


def test_a_neuron_is_dead_if_no_sample_wakes_it():
    x = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    found = one(nn.Sequential(neuron.IFNode()), x, 1)
    assert found.rate == [0.5]
    assert (found.dead, found.always) == pytest.approx((1 / 3, 1 / 3))


def test_rates_are_of_each_layer_and_step_of_a_sequence():
    net = nn.Sequential(neuron.IFNode(), nn.Sequential(neuron.IFNode(v_threshold=2.0)))
    x = torch.zeros(3, 2, 5)
    x[1] = 1.0
    x[2, 0] = 1.0
    first, second = activity(net, x)
    assert (first.layer, second.layer) == ("0", "1.0")
    assert first.rate == [0, 1, 0.5] and second.rate == [0, 0, 0.5]


def test_a_neuron_called_twice_a_step_has_one_rate_a_step():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.node = neuron.IFNode()

        def forward(self, x):
            return self.node(x) + self.node(0 * x)

    assert one(Twice(), torch.ones(3, 2, 4)).rate == [0.5] * 3


def test_large_layers_are_sampled_and_layers_without_a_potential_have_no_histogram():
    big = one(nn.Sequential(neuron.IFNode()), torch.rand(1, 2 * SAMPLES + 1), 2)
    assert SAMPLES / 2 < sum(big.counts) / 2 <= SAMPLES
    parallel = one(nn.Sequential(EMPFNode(parallel=True)), torch.rand(2, 5), 2)
    assert parallel.edges == parallel.counts == []
    flat = one(nn.Sequential(neuron.IFNode()), torch.zeros(1, 3), 2)
    assert sum(flat.counts) == 6 and flat.edges[0] < 0 < flat.edges[-1]


def test_the_network_is_left_as_it_was():
    net = nn.Sequential(layer.Linear(4, 3), nn.Dropout(0.5), neuron.IFNode())
    x = torch.rand(2, 4)
    before = predict(net, x, 2)
    activity(net, x, 2)
    assert net.training and net[2].v == 0.0 and not net[2]._forward_hooks
    assert predict(net, x, 2).equal(before)


def test_learnt_values_are_in_natural_units():
    net = nn.Sequential(
        EMPFNode(2, decay=0.25, threshold=0.75),
        HDLIFNode(parallel=True),
        LMHNode(),
        neuron.ParametricLIFNode(init_tau=4.0),
        neuron.LIFNode(),
        EMPFNode(learnable=False),
    )
    found = learnt(net)
    assert list(found) == ["0", "1", "2", "3"]
    assert found["0"] == {"decay": pytest.approx([0.25] * 2), "threshold": pytest.approx([0.75] * 2)}
    assert found["1"] == {"threshold": pytest.approx([0.5])}
    assert found["2"] == {"mu_d": [0.0], "mu_s": [0.0], "lambda_s": [1.0], "lambda_d": [1.0]}
    assert found["3"] == {"leak": pytest.approx([0.75])}


def test_accuracy_counts_the_mean_output_so_far():
    # Class scores step by step: sample 0 (class 0) is right from the second step on, sample 1 (class 1) at the first.
    x = torch.tensor([[[0.0, 1.0], [0.0, 1.0]], [[3.0, 0.0], [2.0, 0.0]], [[0.0, 1.0], [0.0, 3.0]]])
    y = torch.tensor([0, 1])
    assert accuracy_by_steps(nn.Identity(), [(x, y)]) == [0.5, 0.5, 1.0]
    assert accuracy_by_steps(nn.Identity(), [(x[:, :1], y[:1]), (x[:, 1:], y[1:])]) == [0.5, 0.5, 1.0]
    assert accuracy_by_steps(nn.Identity(), [(x[0], y)], num_steps=2) == [0.5, 0.5]
    with pytest.raises(ValueError, match=r"batches=\[\] holds no batch"):
        accuracy_by_steps(nn.Identity(), [])
