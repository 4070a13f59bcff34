"""Only the last steps have a loss, whatever the rule."""

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from sj_online.loss import rate_cross_entropy
from sj_online.testing import assert_differ, assert_live, rule_gradient
from sj_online.trainer import BPTT, OTTT, SLTT, STOL, RandomBP, TimeSlicing

T, N, K = 6, 4, 2


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    lif = {"decay_input": False, "v_reset": None, "detach_reset": True}
    net = nn.Sequential(layer.Linear(8, 7), neuron.LIFNode(**lif), layer.Linear(7, 3)).double()
    nn.init.normal_(net[0].weight, 0.2, 0.5)
    return net


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return 2 * torch.rand(T, N, 8, dtype=torch.float64), torch.randint(3, (N,))


def make(rule, net: nn.Module, **kwargs):
    return rule(net, torch.optim.SGD(net.parameters(), lr=0.1), **kwargs)


def outputs(net: nn.Module, x: Tensor) -> Tensor:
    functional.reset_net(net)
    return torch.stack([net(x_t) for x_t in x])


def named(net: nn.Module, gradients: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return dict(zip(dict(net.named_parameters()), gradients, strict=True))


def test_bptt_is_that_of_the_last_losses():
    net, (x, y) = mlp(), batch()
    losses = torch.stack([F.cross_entropy(o, y) for o in outputs(net, x)[-K:]])
    expected = named(net, torch.autograd.grad(losses.sum() / T, net.parameters()))
    got = rule_gradient(make(BPTT, net, learn_last=K), x, y)
    assert_live(expected)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert_differ(rule_gradient(make(BPTT, net), x, y), expected)


def test_a_loss_of_a_window_is_of_the_last_outputs():
    net, (x, y) = mlp(), batch()
    loss = F.cross_entropy(outputs(net, x)[-K:].mean(0), y)
    expected = named(net, torch.autograd.grad(loss * K / T, net.parameters()))
    got = rule_gradient(make(BPTT, net, learn_last=K, loss_fn=rate_cross_entropy), x, y)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", [SLTT, OTTT, STOL])
def test_rules_of_steps_sum_the_gradients_of_the_last(rule):
    net, (x, y) = mlp(), batch()
    last = rule_gradient(make(rule, net, learn_last=K, step_scale="sum"), x, y)
    total = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for k in (1, 2):  # each of the last steps alone, by a mask
        mask = torch.zeros(T, N)
        mask[-k] = 1
        for name, g in rule_gradient(make(rule, net, step_scale="sum"), x, y, mask).items():
            total[name] += g
    assert_live(last)
    torch.testing.assert_close(last, total, rtol=0, atol=1e-12)


def test_a_slice_in_the_middle_of_which_learning_begins():
    net, (x, y) = mlp(), batch()
    got = rule_gradient(make(TimeSlicing, net, k=4, learn_last=3), x, y)
    expected = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    functional.reset_net(net)
    for steps, counted in ((x[:4], 1), (x[4:], 2)):
        out = torch.stack([net(x_t) for x_t in steps])[-counted:]
        loss = torch.stack([F.cross_entropy(o, y) for o in out]).mean()
        for name, g in zip(expected, torch.autograd.grad(loss, net.parameters()), strict=True):
            expected[name] += g
        functional.detach_net(net)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_all_steps_are_the_default_and_the_updates_are_those_of_the_last():
    net, (x, y) = mlp(), batch()
    every = rule_gradient(make(SLTT, net), x, y)
    torch.testing.assert_close(rule_gradient(make(SLTT, net, learn_last=T), x, y), every, rtol=0, atol=0)
    windows = list(make(SLTT, net, update="step", learn_last=K).gradients(x, y))
    assert [window.steps.start for window in windows] == [4, 5]
    result = make(SLTT, mlp(), learn_last=K).train_step(x, y)
    torch.testing.assert_close(result.loss, make(SLTT, mlp()).train_step(x, y).loss)  # told of all steps


def test_random_steps_are_drawn_of_the_last():
    net, (x, y) = mlp(), batch()
    drawn = [window.steps.start for _ in range(9) for window in make(RandomBP, net, learn_last=K).gradients(x, y)]
    assert set(drawn) == {4, 5}
    with pytest.raises(ValueError, match="k=3 steps cannot be drawn from the last 2 of T=6"):
        make(RandomBP, net, k=3, learn_last=K).train_step(x, y)


def test_what_cannot_be_is_named():
    net, (x, y) = mlp(), batch()
    with pytest.raises(ValueError, match="learn_last=0 is not"):
        make(SLTT, net, learn_last=0)
    with pytest.raises(ValueError, match="learn_last=9, but the sequence has T=6 steps"):
        make(SLTT, net, learn_last=9).train_step(x, y)
    with pytest.raises(ValueError, match="learn_last=2: a stream has no last steps"):
        make(SLTT, net, learn_last=2).stream([])
