"""Theorem 4.2 against its sum written out, and against autograd."""

import math

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from sj_online.analysis.separability import separability
from sj_online.neuron import EMPFNode, HDLIFNode
from sj_online.trainer import SLTT

T, N = 5, 3


def theorem(node, x):
    """Online over STBP by the sum of HD-LIF's theorem, and whether all eps[i, t] with i > t vanish; loops, by hand."""
    v, chi = torch.zeros_like(x[0]), []
    decay, threshold = node.decay.detach(), node.threshold.detach()

    def at(values, t):
        return values[t if len(values) > 1 else 0]

    for t in range(T):
        m = at(decay, t) * v + x[t]
        chi.append((m >= at(threshold, t)).float())
        v = torch.minimum(m, at(threshold, t))
    ratios, separable = [], []
    for t in range(T):
        total, product, zero = chi[t].clone(), torch.ones_like(chi[t]), torch.ones_like(chi[t])
        for i in range(t + 1, T):
            product = product * at(decay, i) * (1 - chi[i - 1])
            total += chi[i] * product
            zero *= chi[i] * product == 0
        ratios.append(torch.where(total > 0, chi[t] / total, torch.nan))
        separable.append(zero)
    chi = torch.stack(chi)
    neurons = (chi.all(0) | ~chi.bool().any(0)).float().mean().item()
    return torch.stack(ratios).nanmean().item(), torch.stack(separable).mean().item(), neurons


@pytest.mark.parametrize("make", [EMPFNode, HDLIFNode])
@pytest.mark.parametrize("num_steps", [None, T])
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_counted_and_measured_are_the_theorem(make, num_steps, step_mode):
    torch.manual_seed(0)
    node = make(num_steps, step_mode=step_mode)
    with torch.no_grad():
        for p in node.parameters():
            p.add_(torch.randn_like(p))
    x = torch.rand(T, N, 40) * 1.2 - 0.3
    ratio, steps, neurons = theorem(node, x)
    (row,) = separability(nn.Sequential(node), x)
    assert row.ratio == pytest.approx(ratio, abs=1e-6)
    assert (row.steps, row.neurons) == pytest.approx((steps, neurons), abs=1e-6)
    assert row.equal == pytest.approx(row.steps, abs=1e-6)
    assert 0.1 < row.neurons < row.steps < 1 and 0 < row.ratio < 1


def test_all_fire_or_none_is_separable():
    x = torch.tensor([0.9, 0.01]).expand(T, N, 2)
    (row,) = separability(nn.Sequential(EMPFNode()), x)
    assert (row.neurons, row.steps, row.equal, row.ratio) == (1, 1, 1, 1)


def test_another_neuron_is_measured_but_has_no_theorem():
    net = nn.Sequential(neuron.LIFNode(decay_input=False, v_reset=None, detach_reset=True))
    (row,) = separability(net, torch.rand(T, N, 20) + 0.2)
    assert math.isnan(row.neurons) and math.isnan(row.steps)
    assert row.equal == pytest.approx(1 / T, abs=0.01)  # the last step alone has no future
    assert 0 < row.ratio < 0.9


def test_a_neuron_without_a_membrane_has_nothing_to_separate():
    (row,) = separability(nn.Sequential(EMPFNode(parallel=True)), torch.rand(T, N, 20))
    assert (row.neurons, row.steps, row.equal, row.ratio) == (1, 1, 1, 1)


def test_a_cut_neuron_is_compared_with_its_exact_gradient():
    torch.manual_seed(0)
    x = torch.rand(T, N, 40) * 0.5
    rows = [separability(nn.Sequential(EMPFNode(temporal_grad=each)), x) for each in (True, False)]
    assert rows[0] == rows[1] and rows[0][0].ratio < 1


def test_a_silent_layer_has_no_ratio():
    (row,) = separability(nn.Sequential(EMPFNode()), torch.zeros(T, N, 2))
    assert math.isnan(row.ratio) and (row.neurons, row.steps, row.equal) == (1, 1, 1)


def test_the_network_is_left_as_it_was():
    net = nn.Sequential(layer.Linear(4, 6), EMPFNode(), neuron.LIFNode(), layer.Linear(6, 2))
    x = torch.rand(2, 4)
    found = separability(net, x, num_steps=3)
    assert [row.layer for row in found] == ["1", "2"]
    assert not net[1]._forward_pre_hooks and net.training
    functional.reset_net(net)
    rule = SLTT(net, torch.optim.SGD(net.parameters(), lr=0.1), num_steps=3)
    assert rule.train_step(x, torch.tensor([0, 1])).loss.isfinite()
