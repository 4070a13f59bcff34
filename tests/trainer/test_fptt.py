"""FPTT against its recursion written out."""

import copy

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer, neuron
from torch import nn

from sj_online.trainer import FPTT, SLTT

T, N, CLASSES = 5, 4, 3
LIF = {"tau": 2.0, "decay_input": False, "v_reset": None, "detach_reset": True}


def network(node=neuron.LIFNode):
    torch.manual_seed(0)
    return nn.Sequential(layer.Linear(4, 6), node(**LIF), layer.Linear(6, CLASSES)).double()


def batch():
    torch.manual_seed(1)
    return torch.rand(T, N, 4, dtype=torch.float64) * 2, torch.randint(CLASSES, (N,))


def sgd(net, momentum=0.9):
    return torch.optim.SGD(net.parameters(), lr=0.3, momentum=momentum)


def recursion(net, batches, alpha, beta, lr=0.3, momentum=0.9):
    """The method by hand, on the host's neuron without gradient in time; returns parameters, averages, multipliers."""
    theta = list(net.parameters())
    mean = [p.detach().clone() for p in theta]
    lam = [torch.zeros_like(p) for p in mean]
    velocity = [torch.zeros_like(p) for p in mean]
    for x, y in batches:
        for module in net.modules():
            if isinstance(module, neuron.SLTTLIFNode):
                module.reset()
        for x_t in x:
            grads = torch.autograd.grad(F.cross_entropy(net(x_t), y), theta)
            with torch.no_grad():
                for i, p in enumerate(theta):
                    gradient = grads[i] - lam[i] + alpha * (p - mean[i])
                    velocity[i] = momentum * velocity[i] + gradient
                    p -= lr * velocity[i]
                    lam[i] = lam[i] - alpha * (p - mean[i])
                    mean[i] = (1 - beta) * mean[i] + beta * p - beta / alpha * lam[i]
        with torch.no_grad():
            for p, average in zip(theta, mean, strict=True):
                p.copy_(average)
    return theta, mean, lam


@pytest.mark.parametrize("alpha, beta", [(0.1, 0.5), (0.5, 0.5), (0.3, 1.0)])
def test_parameters_averages_and_multipliers_follow_the_recursion(alpha, beta):
    net, (x, y) = network(), batch()
    theta, mean, lam = recursion(network(neuron.SLTTLIFNode), [(x, y), (x.flip(0), y)], alpha, beta)
    rule = FPTT(net, sgd(net), alpha, beta)
    rule.train_step(x, y)
    rule.train_step(x.flip(0), y)
    for ours, oracle in ((net.parameters(), theta), (rule.means, mean), (rule.multipliers, lam)):
        for a, b in zip(ours, oracle, strict=True):
            torch.testing.assert_close(a.detach(), b.detach(), rtol=0, atol=1e-12)
    sltt = network()
    trained = SLTT(sltt, sgd(sltt), update="step", step_scale="sum")
    trained.train_step(x, y)
    trained.train_step(x.flip(0), y)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(net.parameters(), sltt.parameters(), strict=True))


def test_the_reported_loss_is_without_the_regulariser():
    net, (x, y) = network(), batch()
    rule = FPTT(net, torch.optim.SGD(net.parameters(), lr=0.0))
    rule.train_step(x, y)
    rule.means = [mean + 1 for mean in rule.means]
    assert rule.penalty() > 1
    seen = [window.loss.item() for window in rule.gradients(x, y)]
    torch.testing.assert_close(sum(seen) / T, SLTT(net, sgd(net)).train_step(x, y).loss.item())


def test_a_frozen_parameter_stays():
    net, (x, y) = network(), batch()
    net[0].requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    FPTT(net, sgd(net)).train_step(x, y)
    changed = [name for name, value in net.state_dict().items() if (value != before[name]).any()]
    assert changed == ["2.weight", "2.bias"]


@pytest.mark.parametrize("options, message", [({"alpha": 0.0}, "alpha=0.0"), ({"beta": 1.5}, "beta=1.5")])
def test_arguments_are_checked(options, message):
    net = network()
    with pytest.raises(ValueError, match=message):
        FPTT(net, sgd(net), **options)


def test_a_state_of_other_parameters_is_an_error():
    net, other = network(), nn.Linear(2, 2)
    state = FPTT(net, sgd(net)).state_dict()
    with pytest.raises(ValueError, match="means"):
        FPTT(other, sgd(other)).load_state_dict(state)
