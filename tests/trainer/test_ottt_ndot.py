"""NDOT against its recursion."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from sj_online.neuron import LMHNode
from sj_online.trainer import NDOT, OTTT, SLTT

T, N = 6, 2


def lif(tau: float) -> neuron.LIFNode:
    return neuron.LIFNode(tau, decay_input=False, v_reset=None)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Conv2d(1, 4, 3, padding=1), lif(2.0), layer.AvgPool2d(2), layer.Flatten(), layer.Linear(16, 3), lif(4.0)
    ).double()
    nn.init.normal_(net[0].weight, 0.2, 0.3)
    return net


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(T, N, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 2])


def gradients(rule, *xy: Tensor) -> list[Tensor]:
    rule.net.zero_grad()
    for _ in rule.gradients(*xy):
        pass
    return [p.grad.clone() for p in rule.net.parameters()]


def make(rule: type, net: nn.Module, **kwargs):
    return rule(net, torch.optim.SGD(net.parameters(), lr=0.1), **kwargs)


def by_hand(net: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    """dW of the linear layer: the trace of the first neurons, pooled as their spikes are, and BPTT's delta."""
    functional.reset_net(net)
    a = e = torch.zeros(N, 4, 4, 4).double()
    v_before, dW = 0 * a, 0.0
    for x_t in x:
        s = net[1](net[0](x_t)).detach()
        v = net[1].v.detach()
        a = e * a + s
        e = torch.where(v_before == 0, 0.5 * v.sign(), (v / v_before).clamp(-0.5, 0.5))
        v_before = v
        pooled = net[3](net[2](s))
        current = net[4](pooled).detach().requires_grad_()
        loss = nn.functional.cross_entropy(net[5](current), y) / T
        (delta,) = torch.autograd.grad(loss, current)
        functional.detach_net(net)
        dW = dW + delta.t() @ net[3](net[2](a))
    functional.reset_net(net)
    return dW


def test_the_trace_follows_the_emitting_membrane_through_the_pool():
    net, (x, y) = network(), batch()
    expected = by_hand(net, x, y)
    torch.testing.assert_close(gradients(make(NDOT, net), x, y)[2], expected, rtol=0, atol=1e-12)
    for rule in (make(OTTT, net), make(SLTT, net)):
        assert (gradients(rule, x, y)[2] - expected).abs().max() > 1e-4


def test_all_other_gradients_are_those_of_ottt():
    net, (x, y) = network(), batch()
    got, expected = gradients(make(NDOT, net), x, y), gradients(make(OTTT, net), x, y)
    for i in (0, 1, 3):
        torch.testing.assert_close(got[i], expected[i], rtol=0, atol=1e-12)


def test_a_compiled_network_runs_eagerly():
    net, (x, y) = network(), batch()
    compiled = torch.compile(net, fullgraph=True)
    got = gradients(make(NDOT, compiled), x, y)
    torch.testing.assert_close(got, gradients(make(NDOT, net), x, y), rtol=0, atol=1e-12)


def test_a_neuron_without_a_leak_is_an_error():
    net, (x, y) = network(), batch()
    net[1] = LMHNode()
    with pytest.raises(ValueError, match="NDOT needs the leak of '1', but LMHNode has no single leak"):
        make(NDOT, net).train_step(x, y)
