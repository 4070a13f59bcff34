"""With an example the outputs of a copy are compared; what differs or cannot be leaves the network as it was."""

import copy
import random
from dataclasses import dataclass

import pytest
import torch
from fold_nets import Net, X, norms, trained
from spikingjelly.activation_based import functional, neuron
from torch import nn

from sj_online.deploy import fold_norms
from sj_online.neuron import EMPFNode, HDLIFNode


@dataclass
class Result:
    logits: torch.Tensor
    rest: dict


def test_outputs_of_any_structure_are_compared_and_a_change_leaves_the_network_as_it_was():
    def forward(net, x):  # what the folded network does not have
        hidden = net.norm(net.conv(x))
        return Result(x, {"a": [hidden + isinstance(net.norm, nn.Identity)]})

    net = trained(Net(forward, node=EMPFNode(membrane_norm=3)))
    before, modules = copy.deepcopy(net.state_dict()), dict(net.named_modules())
    with pytest.raises(ValueError, match=r"changes the outputs for example_input by 1 at a scale of \d"):
        fold_norms(net, X)
    assert dict(net.named_modules()) == modules
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


FAULTS = {
    "no tensor": (lambda net, x: [], "holds no tensor"),
    "not run": (lambda net, x: net.norm(net.conv(x[0, 0, 0])), "cannot be copied and run on example_input"),
    "attribute": (lambda net, x: net.norm(net.conv(x)) + net.norm.eps, "does not run on example_input: Attribute"),
    "shape": (lambda net, x: net.norm(net.conv(x))[isinstance(net.norm, nn.Identity) :], "changes the shapes"),
    "unseen chance": (lambda net, x: net.norm(net.conv(x)) * random.random(), "changes the outputs"),
    "not a number": (lambda net, x: net.norm(net.conv(x)) * float("nan"), "changes the outputs .* by nan"),
    "count": (lambda net, x: net.norm(net.conv(x)).argmax() + isinstance(net.norm, nn.Identity), "by 1 at"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_compared_or_differs_is_one_line(fault):
    forward, message = FAULTS[fault]
    net = trained(Net(forward))
    with pytest.raises(ValueError, match=message) as error:
        fold_norms(net, X)
    assert norms(net) == 1 and "\n" not in str(error.value)


def test_a_copy_is_run_so_that_counters_memories_and_the_input_stay():
    net = trained(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), neuron.LIFNode(v_threshold=0.5))).float()
    calls = []
    net[2].register_forward_hook(lambda module, args, output: calls.append(module))
    x = X.float()
    held = x.clone()
    net(x)
    assert net[2].v.requires_grad  # a memory with its graph
    rng = torch.random.get_rng_state()
    fold_norms(net, x)
    assert isinstance(net[2].v, float) and torch.equal(x, held) and net[0].weight.dtype == torch.float32
    assert net[2] not in calls[1:] and torch.equal(torch.random.get_rng_state(), rng)


@torch.no_grad()
def test_memories_of_neurons_that_came_later_are_reset_before_and_after():
    net = trained(Net(lambda net, x: net.node(net.lif(x)), node=EMPFNode(membrane_norm=3), lif=neuron.LIFNode()))
    functional.reset_net(net)  # the host remembers what to reset, for as long as
    held = [net.lif, net.node]  # all of it lives
    net.lif = neuron.LIFNode()
    net(X)
    fold_norms(net)
    assert isinstance(net.lif.v, float) and type(net.node) is not EMPFNode
    net(X)
    functional.reset_net(net)
    assert isinstance(net.node.v, float) and net.node not in held


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_a_network_that_insists_on_a_precision_is_compared_in_it(precision):
    net = trained(Net(lambda net, x: net.norm(net.conv(x.to(precision))))).to(precision)
    assert norms(fold_norms(net, X.float())) == 0


@pytest.mark.parametrize("node", [EMPFNode, HDLIFNode])
@pytest.mark.parametrize("example", [False, True])
def test_membrane_norms_fold_in_any_place_unless_somebody_hooks_in(node, example):
    class Own(node):
        def step(self, x, states, t):
            return super().step(2 * x, states, t)

    net = trained(Net(lambda net, x: net.node(net.conv(x)), node=node(membrane_norm=3, threshold=0.1)))
    hooked, own, training = copy.deepcopy(net), copy.deepcopy(net), copy.deepcopy(net)
    hooked.node.membrane_norm[0].register_forward_pre_hook(lambda module, args: None)
    own.node.__class__ = Own
    training.node.membrane_norm[0].train().momentum = 0.0
    before = net(X)
    functional.reset_net(net)
    torch.testing.assert_close(fold_norms(net, X if example else None)(X), before, rtol=0, atol=1e-12)
    assert norms(net) == 1 and type(net.node) is not node
    for other in (hooked, own, training):
        assert norms(fold_norms(other, X if example else None)) == 2
