"""A trial run: what it learns, and that it leaves the network as it was."""

import copy

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from sj_online import trial
from sj_online.neuron import EMPFNode


def network(node):
    torch.manual_seed(0)
    return nn.Sequential(layer.Linear(8, 6), layer.BatchNorm1d(6), node, layer.Dropout(), neuron.IFNode())


def silent(net, node, x):
    return bool(trial.silent(net, {"node": node}, x))


@pytest.mark.parametrize("learn", ["silent", "channels"])
def test_the_network_and_the_random_numbers_stay(learn):
    net = network(EMPFNode())
    net[3].eval()
    net(torch.rand(3, 8))
    state, v, modes = copy.deepcopy(net.state_dict()), net[4].v, [m.training for m in net.modules()]
    random = torch.get_rng_state()
    if learn == "silent":
        assert not silent(net, net[2], torch.rand(5, 8, generator=torch.Generator()))
    else:
        assert trial.channels(net, [net[2], net[4]], torch.ones(5, 8)) == {net[2]: 6, net[4]: 6}
    assert torch.equal(torch.get_rng_state(), random) and net[4].v is v and [m.training for m in net.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_steps_are_those_of_the_neurons_else_four():
    x = torch.full((1, 2), 0.2)  # v = 0.2, 0.38, 0.542: it fires at the third step
    for num_steps, expected in ((2, True), (3, False), (None, False)):
        node = EMPFNode(num_steps, decay=0.9, threshold=0.54)
        assert silent(nn.Sequential(node), node, x) is expected
    node = EMPFNode(decay=0.9, threshold=0.54)
    assert silent(nn.Sequential(node, EMPFNode(2)), node, x), "the other neuron allows two steps"
    functional.set_step_mode(node, "m")
    assert [silent(nn.Sequential(node), node, x.expand(T, 1, 2)) for T in (2, 3)] == [True, False]


def test_a_neuron_that_does_not_fire_but_lets_a_gradient_pass_is_not_silent():
    x = torch.full((1, 2), 0.01)
    for node, expected in ((neuron.LIFNode(), False), (EMPFNode(), True)):
        assert not node(x).any()
        node.reset()
        with torch.no_grad():
            assert silent(nn.Sequential(node), node, x) is expected
        assert trial.silent(nn.Sequential(node), {"a": node}, x) == ["a"] * expected
    unused = EMPFNode()
    net = nn.Sequential(neuron.LIFNode())
    net.unused = unused
    net.forward = net[0].forward
    assert not silent(net, unused, x), "of what is not run nothing is known"


@pytest.mark.parametrize(
    ("trained", "training", "batch", "expected"),
    [
        (False, True, 5, False),
        (False, False, 5, False),
        (True, True, 5, False),
        (True, False, 5, True),
        (False, True, 1, True),
    ],
)
def test_a_norm_normalises_by_the_example_unless_it_is_trained_and_evaluates(trained, training, batch, expected):
    net = network(EMPFNode())
    with torch.no_grad():
        net[0].weight.mul_(0.01)
        net[0].bias.zero_()
    net[1].num_batches_tracked.fill_(trained)
    assert silent(net.train(training), net[2], torch.rand(batch, 8)) is expected
