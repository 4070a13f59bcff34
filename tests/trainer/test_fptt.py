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
    rule.multipliers = [multiplier - 3 for multiplier in rule.multipliers]
    assert abs(rule.penalty()) > 1
    seen = [window.loss.item() for window in rule.gradients(x, y)]
    torch.testing.assert_close(sum(seen) / T, SLTT(net, sgd(net)).train_step(x, y).loss.item())


def alike(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def changed(net, before):
    return [name for name, value in net.state_dict().items() if (value != before[name]).any()]


def trained(batches=2, momentum=0.9):
    """A network and its rule after some batches, with averages and multipliers that are not zero."""
    net, (x, y) = network(), batch()
    rule = FPTT(net, sgd(net, momentum))
    for _ in range(batches):
        rule.train_step(x, y)
    return net, rule


@pytest.mark.parametrize("batches", [0, 2])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_parameter_frozen_at_any_time_stays_and_then_joins_again(batches, momentum):
    net, rule = trained(batches, momentum)
    x, y = batch()
    net[0].requires_grad_(False)
    before, averages = copy.deepcopy(net.state_dict()), copy.deepcopy(rule.state_dict())
    for _ in range(3):
        rule.train_step(x, y)
    assert changed(net, before) == ["2.weight", "2.bias"]
    assert alike(averages["means"][:2], rule.means[:2]) and alike(averages["multipliers"][:2], rule.multipliers[:2])
    net[0].requires_grad_(True)
    rule.train_step(x, y)
    assert len(changed(net, before)) == 4


def test_a_parameter_frozen_in_the_middle_of_a_sequence_stays_there():
    (net, rule), kept = trained(), []

    def freeze():
        if rule.at_means is False and not kept:  # before the second step
            net[0].requires_grad_(False)
            net[0].weight.grad = net[0].bias.grad = None
            kept.append(net[0].weight.clone())

    rule.before_step = freeze
    rule.train_step(*batch())
    assert torch.equal(net[0].weight, kept[0]) and not torch.equal(net[0].weight, rule.means[0])


def load(net):
    net.load_state_dict({name: value + 0.3 for name, value in net.state_dict().items()})


def write_in_place(net):
    with torch.no_grad():
        for p in net.parameters():
            p += 0.3


def write_through_data(net):
    for p in net.parameters():
        p.data = p.data + 0.3


@pytest.mark.parametrize("batches", [0, 2])
@pytest.mark.parametrize("write", [load, write_in_place, write_through_data])
def test_weights_written_between_sequences_start_the_averages_anew(batches, write):
    net, rule = trained(batches, momentum=0.0)
    write(net)
    copied = copy.deepcopy(net)
    fresh = FPTT(copied, sgd(copied, momentum=0.0))
    (x, y), old = batch(), copy.deepcopy(rule.state_dict())
    rule.train_step(x, y)
    fresh.train_step(x, y)
    assert alike(net.parameters(), copied.parameters())
    pulled, _ = trained(batches, momentum=0.0)  # with the averages and multipliers of before it would be elsewhere
    write(pulled)
    held = FPTT(pulled, sgd(pulled, momentum=0.0))
    held.load_state_dict(old)
    held.at_means = False  # as if the rule had left the weights there
    held.train_step(x, y)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(pulled.parameters(), net.parameters(), strict=True))


def test_only_what_was_written_starts_anew():
    net, rule = trained()
    with torch.no_grad():
        net[2].bias += 0.3
    before = [m.clone() for m in rule.multipliers]
    next(rule.gradients(*batch()))
    assert not rule.multipliers[3].any() and torch.equal(rule.means[3], net[2].bias)
    assert all(torch.equal(a, b) and b.any() for a, b in zip(before[:3], rule.multipliers[:3], strict=True))


@pytest.mark.parametrize("in_loop, net_first", [(False, True), (False, False), (True, True)])
def test_a_resumed_run_goes_on_as_if_not_interrupted(in_loop, net_first):
    """Loading a checkpoint writes to the weights too, and must not start the averages anew."""

    def go_on(rule):
        if in_loop:
            for _ in rule.gradients(*batch()):
                rule.update_weights()
        else:
            rule.train_step(*batch())

    net, rule = trained(momentum=0.0)
    go_on(rule)
    other = network()
    resumed = FPTT(other, sgd(other, momentum=0.0))
    states = copy.deepcopy([net.state_dict(), rule.state_dict()])
    steps = [lambda: other.load_state_dict(states[0]), lambda: resumed.load_state_dict(states[1])]
    for step in steps if net_first else reversed(steps):
        step()
    go_on(rule)
    go_on(resumed)
    assert alike(net.parameters(), other.parameters()) and alike(rule.multipliers, resumed.multipliers)


def test_steps_of_a_users_own_loop_keep_the_averages_and_loaded_weights_restart_them():
    net, rule = trained()
    for _ in rule.gradients(*batch()):
        rule.update_weights()
    means = [mean.clone() for mean in rule.means]
    next(rule.gradients(*batch()))
    assert all(torch.equal(a, b) and (a != p).any() for a, b, p in zip(means, rule.means, rule.parameters, strict=True))
    load(net)
    next(rule.gradients(*batch()))
    assert alike(rule.means, rule.parameters)


def test_parameters_that_the_optimizer_gets_later_join_and_those_taken_out_leave():
    net = network()
    rule = FPTT(net, torch.optim.SGD(net[0].parameters(), lr=0.3))
    rule.train_step(*batch())
    net.zero_grad()
    rule.optimizer.add_param_group({"params": list(net[2].parameters())})
    rule.load_state_dict(copy.deepcopy(rule.state_dict()))
    rule.train_step(*batch())
    assert all(multiplier.any() for multiplier in rule.multipliers)
    assert alike(rule.means, net.parameters())
    del rule.optimizer.param_groups[0]
    net.zero_grad()
    for _ in rule.gradients(*batch()):
        pass
    assert len(rule.means) == 2


def test_the_averages_follow_the_dtype():
    net, rule = trained()
    before = [multiplier.float() for multiplier in rule.multipliers]
    net.float()
    x, y = batch()
    next(rule.gradients(x.float(), y))
    assert all(torch.equal(a, b) and b.any() for a, b in zip(before, rule.multipliers, strict=True))
    rule.train_step(x.float(), y)
    assert all(mean.dtype == torch.float32 for mean in rule.means)


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
