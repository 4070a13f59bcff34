"""Slices of k steps: SLTT at one end, BPTT at the other, truncated BPTT between."""

import copy

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from sj_online.loss import over_window
from sj_online.neuron import EMPFNode, LMHNode
from sj_online.trainer import BPTT, SLTT, TimeSlicing

T, N, CLASSES = 6, 4, 3


def network(node=neuron.LIFNode, norm=layer.BatchNorm2d, mode="s"):
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Conv2d(2, 6, 3, padding=1, bias=False),
        norm(6),
        node(),
        layer.AdaptiveAvgPool2d(1),
        layer.Flatten(),
        layer.Linear(6, CLASSES),
    ).double()
    functional.set_step_mode(net, mode)
    return net


def batch(steps=T):
    torch.manual_seed(1)
    return torch.rand(steps, N, 2, 5, 5, dtype=torch.float64), torch.randint(CLASSES, (N,))


def sgd(net):
    return torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)


def trained(rule, x, y):
    rule.train_step(x, y)
    return list(rule.net.state_dict().values())


def equal(first, second):
    return all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("node", [neuron.LIFNode, EMPFNode, LMHNode, lambda: LMHNode(T)])
def test_one_step_is_sltt_and_all_steps_are_bptt(mode, node):
    x, y = batch()
    nets = [network(node, mode=mode) for _ in range(5)]
    sltt = trained(SLTT(nets[0], sgd(nets[0]), update="step", step_scale="sum"), x, y)
    bptt = trained(BPTT(nets[1], sgd(nets[1])), x, y)
    ones, all_steps, twos = (
        trained(TimeSlicing(net, sgd(net), k), x, y) for net, k in zip(nets[2:], (1, T, 2), strict=True)
    )
    assert equal(ones, sltt) and equal(all_steps, bptt)
    assert not equal(twos, sltt) and not equal(twos, bptt) and not equal(sltt, bptt)


@pytest.mark.parametrize("steps, k", [(6, 2), (7, 3), (2, 5)])
@pytest.mark.parametrize("mode", ["s", "m"])
def test_slices_are_truncated_bptt_with_an_update_each(steps, k, mode):
    x, y = batch(steps)
    net = network(mode=mode)
    oracle = copy.deepcopy(net)
    optimizer = sgd(oracle)
    for start in range(0, steps, k):
        piece = x[start : start + k]
        outputs = oracle(piece) if mode == "m" else torch.stack([oracle(x_t) for x_t in piece])
        optimizer.zero_grad()
        torch.stack([F.cross_entropy(output, y) for output in outputs]).mean().backward()
        optimizer.step()
        functional.detach_net(oracle)
    assert equal(trained(TimeSlicing(net, sgd(net), k), x, y), oracle.state_dict().values())


@pytest.mark.parametrize(
    "norm",
    [lambda C: layer.ThresholdDependentBatchNorm2d(1.0, 1.0, C), lambda C: layer.TemporalEffectiveBatchNorm2d(2, C)],
    ids=["tdBN", "TEBN"],
)
def test_layers_that_mix_time_work_inside_a_slice(norm):
    x, y = batch()
    net = network(norm=norm, mode="m")
    before = copy.deepcopy(net.state_dict())
    TimeSlicing(net, sgd(net)).train_step(x, y)
    assert all((p != before[name]).any() for name, p in net.named_parameters())
    with pytest.raises(ValueError, match="'1' .*TimeSlicing or BPTT"):
        TimeSlicing(net, sgd(net), k=1)


def test_a_window_loss_gets_the_slice():
    x, y = batch(7)
    net = network()
    shapes = []

    def rate(outputs, y):
        shapes.append(outputs.shape)
        return F.cross_entropy(outputs.mean(0), y)

    TimeSlicing(net, sgd(net), 3, loss_fn=over_window(rate)).train_step(x, y)
    assert shapes == [(3, N, CLASSES), (3, N, CLASSES), (1, N, CLASSES)]


@pytest.mark.parametrize("k", [0, 2.0])
def test_k_is_checked(k):
    with pytest.raises(ValueError, match=f"k={k!r}"):
        TimeSlicing(network(), None, k)
