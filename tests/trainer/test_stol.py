"""STOL against its recursion written out, and against truncated backpropagation through time."""

import copy

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, memopt, neuron
from stol_networks import CLASSES, EXACT, N, T, batch, feedback, gradient, mlp, sgd, truncated
from torch import nn

from sj_online.analysis import SavedBytes
from sj_online.neuron import EMPFNode, HDLIFNode, LMHNode, OnlineNode
from sj_online.testing import assert_differ
from sj_online.trainer import BPTT, SLTT, STOL


@pytest.mark.parametrize("k", [1, 2, 3, T])
@pytest.mark.parametrize("net, shape", [(mlp(bias=True), (4,)), (feedback(), (2, 3, 3))], ids=["mlp", "feedback"])
def test_with_frozen_weights_it_is_truncated_bptt(net, shape, k):
    x, y = batch(*shape)
    oracle = truncated(copy.deepcopy(net), x, y, k)
    for mode in ("s", "m"):
        functional.set_step_mode(net, mode)
        ours = gradient(STOL(net, sgd(net), k, update="sequence"), x, y)
        torch.testing.assert_close(ours, oracle, **EXACT)
    functional.set_step_mode(net, "s")
    other = gradient(STOL(net, sgd(net), k % T + 1, update="sequence"), x, y)
    assert_differ(other, oracle, by=1e-6)


@pytest.mark.parametrize("steps, k", [(T, T), (2, 2), (T, 2 * T)])
def test_with_all_steps_it_is_bptt_of_the_summed_loss(steps, k):
    net, (x, y) = mlp(), batch(4, steps=steps)
    oracle = gradient(BPTT(net, sgd(net), step_scale="sum"), x, y)
    torch.testing.assert_close(gradient(STOL(net, sgd(net), k), x, y), oracle, **EXACT)


@pytest.mark.parametrize("node", [EMPFNode, HDLIFNode, LMHNode, neuron.ParametricLIFNode, neuron.IzhikevichNode])
def test_any_neuron_will_do(node):
    """Learnable leaks and thresholds, one per step too, and several states."""
    ours = issubclass(node, OnlineNode)
    for options in ({"num_steps": T}, {}) if ours else ({},):
        net, (x, y) = mlp(), batch(4)
        net[1], net[3] = node(**options).double(), node(**options).double()
        oracle = gradient(BPTT(net, sgd(net), step_scale="sum"), x, y)
        torch.testing.assert_close(gradient(STOL(net, sgd(net), T), x, y), oracle, **EXACT)
        assert_differ(gradient(STOL(net, sgd(net), 1), x, y), oracle, by=1e-6)


def test_with_one_step_it_is_sltt():
    nets, (x, y) = (mlp(), mlp()), batch(4)
    STOL(nets[0], sgd(nets[0]), horizon=1).train_step(x, y)
    SLTT(nets[1], sgd(nets[1]), update="step", step_scale="sum").train_step(x, y)
    assert all((a == b).all() for a, b in zip(*(net.parameters() for net in nets), strict=True))


def theta(u):
    return (1 - (u - 1).abs()).clamp(min=0)


def recursion(weights, biases, x, y, lr, momentum=0.9, first_history=False, spatial=True):
    """STOL, Alg. 1 with SGD and momentum after every step, written out by hand."""
    L = len(weights)
    W, b = [w.clone() for w in weights], [v.clone() for v in biases]
    velocity = [torch.zeros_like(p) for p in [*W, *b]]
    u = [x.new_zeros(N, len(w)) for w in W[:-1]]
    s = [torch.zeros_like(v) for v in u]
    x_before = torch.zeros_like(x[0])
    for t in range(len(x)):
        u_before, s_before = u, s
        u, s = [], []
        for l in range(L - 1):
            current = (x[t] if l == 0 else s[-1]) @ W[l].T + b[l]
            u.append(u_before[l] * (1 - s_before[l]) / 2 + current)
            s.append((u[-1] >= 1).to(x.dtype))
        output = s[-1] @ W[-1].T + b[-1]
        delta = (output.softmax(1) - F.one_hot(y, CLASSES)) / N
        grads = [None] * (2 * L)
        grads[L - 1], grads[2 * L - 1] = delta.T @ s[-1], delta.sum(0)
        down, down_before = delta @ W[-1], torch.zeros_like(s[-1])
        for l in reversed(range(L - 1)):
            delta = down * theta(u[l])
            past = (1 - s_before[l] - u_before[l] * theta(u_before[l])) / 2
            delta_before = down_before * theta(u_before[l]) + delta * past
            if t == 0 and not first_history:
                delta_before = torch.zeros_like(delta)
            inputs, inputs_before = (x[t], x_before) if l == 0 else (s[l - 1], s_before[l - 1])
            grads[l] = delta.T @ inputs + delta_before.T @ inputs_before
            grads[L + l] = (delta + delta_before).sum(0)
            down, down_before = delta @ W[l], (delta_before @ W[l]) * spatial
        x_before = x[t]
        for p, g, v in zip([*W, *b], grads, velocity, strict=True):
            v.mul_(momentum).add_(g)
            p.sub_(lr * v)
    return [*W, *b]


@pytest.mark.parametrize("first_history", [False, True])
@pytest.mark.parametrize("spatial", [False, True])
def test_updates_at_every_step_follow_the_recursion(first_history, spatial):
    net, (x, y) = mlp(bias=True), batch(4)
    linears = [m for m in net if isinstance(m, nn.Linear)]
    weights, biases = [m.weight.detach() for m in linears], [m.bias.detach() for m in linears]
    expected = recursion(weights, biases, x, y, 0.5, first_history=first_history, spatial=spatial)
    frozen = recursion(weights, biases, x, y, 0.0)
    other = recursion(weights, biases, x, y, 0.5, first_history=not first_history, spatial=spatial)
    STOL(net, sgd(net, 0.5), first_history=first_history, spatial_history=spatial).train_step(x, y)
    ours = [*(m.weight for m in linears), *(m.bias for m in linears)]
    for a, e, f in zip(ours, expected, frozen, strict=True):
        torch.testing.assert_close(a.detach(), e, **EXACT)
        assert_differ(a, f, by=1e-3)
    # The spurious history reaches biases from the first step on, weights only through the updates of those.
    assert max((a - o).abs().max() for a, o in zip(ours, other, strict=True)) > 1e-6


def test_the_spurious_first_history_reaches_biases_only():
    net, (x, y) = mlp(bias=True), batch(4, steps=1)
    with_it = gradient(STOL(net, sgd(net), first_history=True), x, y)
    without = gradient(STOL(net, sgd(net)), x, y)
    sizes = [p.numel() for p in net.parameters()]
    differs = [(a != b).any().item() for a, b in zip(with_it.split(sizes), without.split(sizes), strict=True)]
    assert differs == [False, True, False, True, False, False]


@pytest.mark.parametrize("horizon", [2, 3])
def test_saved_bytes_are_at_most_horizon_times_those_of_sltt(horizon):
    peaks = []
    for make, steps in ((SLTT, 8), (STOL, horizon), (STOL, 8), (STOL, 32)):
        net, (x, y) = feedback(), batch(2, 12, 12, steps=steps)
        rule = make(net, sgd(net), **({"horizon": horizon} if make is STOL else {}))
        with SavedBytes(exclude=[x, *net.parameters()]) as saved:
            rule.train_step(x, y)
        peaks.append(saved.peak)
    assert peaks[1] == peaks[2] == peaks[3]
    assert 1 < peaks[1] / peaks[0] <= horizon


@pytest.mark.parametrize("horizon", [0, 1.5, True])
def test_horizon_is_checked(horizon):
    with pytest.raises(ValueError, match=f"horizon={horizon!r}"):
        STOL(mlp(), None, horizon)


def test_layers_that_mix_time_and_recomputed_ones_are_errors():
    net = nn.Sequential(
        layer.Linear(4, 3), neuron.LIFNode(step_mode="m"), layer.ThresholdDependentBatchNorm1d(1.0, 1.0, 3)
    )
    with pytest.raises(ValueError, match="'2' .*mixes the steps"):
        STOL(net, None)
    net = mlp()
    net[1] = memopt.checkpoint_module(net[1])
    with pytest.raises(ValueError, match="'1' .*memopt"):
        STOL(net, None)
