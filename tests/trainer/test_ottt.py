"""OTTT against its equations, BPTT and the host's own path, in float64."""

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.learning.online_learning import ottt_online_training
from torch import Tensor, nn

from sj_online.testing import assert_differ, rule_gradient
from sj_online.trainer import BPTT, OTTT, SLTT

T, N = 6, 4


def lif(tau: float = 2.0) -> neuron.LIFNode:
    """The LIF neuron of OTTT."""
    return neuron.LIFNode(
        tau, decay_input=False, v_reset=None, detach_reset=True, surrogate_function=surrogate.Sigmoid(4.0)
    )


def mlp(*taus: float, readout: bool = True) -> nn.Sequential:
    """Linear layers of 8-7-6-... units with a LIF layer of each tau, and a readout of 3 classes."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i, tau in enumerate(taus):
        layers += [layer.Linear(8 - i, 7 - i), lif(tau)]
    if readout:
        layers += [layer.Linear(8 - len(taus), 3)]
    net = nn.Sequential(*layers).double()
    for synapse in net[::2]:
        nn.init.normal_(synapse.weight, 0.2, 0.5)
    return net


def batch(classes: int = 3) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(T, N, 8, dtype=torch.float64), torch.randint(classes, (N,))


def gradients(rule, *xy: Tensor) -> list[Tensor]:
    return list(rule_gradient(rule, *xy).values())


def make(rule: type, net: nn.Module, **kwargs):
    return rule(net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), **kwargs)


def manual(net: nn.Sequential, x: Tensor, y: Tensor, *, of_input: bool, of_bias: bool, of_readout: bool):
    """Eq. 4 and 5 written out for a network of three linear and two LIF layers."""
    W, b = [m.weight for m in net[::2]], [m.bias for m in net[::2]]
    lam = [1 - 1 / m.tau for m in net[1::2]]
    traced, leak = [of_input, True, of_readout], [lam[0], lam[1], lam[1]]
    grads = [[torch.zeros_like(p) for p in ps] for ps in zip(W, b, strict=True)]
    u = v = [torch.zeros(N, m.out_features, dtype=x.dtype) for m in net[:-1:2]]
    a, a_b = [0.0] * 3, [0.0] * 3
    for x_t in x:
        s, slope = [x_t], []
        for l in range(2):
            u = s[-1] @ W[l].t() + b[l] + lam[l] * v[l]
            sig = torch.sigmoid(4 * (u - 1))
            s.append((u >= 1).to(x.dtype))
            slope.append(4 * sig * (1 - sig))
            v = [*v[:l], u - s[-1], *v[l + 1 :]]
        o = s[-1] @ W[2].t() + b[2]
        delta = (o.softmax(-1) - F.one_hot(y, 3)) / N / T
        for l in (2, 1, 0):
            a[l] = (leak[l] * a[l] if traced[l] else 0) + s[l]
            a_b[l] = (leak[l] * a_b[l] if of_bias and (l < 2 or of_readout) else 0) + 1
            grads[l][0] += delta.t() @ a[l]
            grads[l][1] += delta.sum(0) * a_b[l]
            if l:
                delta = (delta @ W[l]) * slope[l - 1]
    return [g for pair in grads for g in pair]


FLAGS = [(False, False, True), (True, True, False), (True, False, False), (False, True, True), (False, True, False)]


@pytest.mark.parametrize(("of_input", "of_bias", "of_readout"), FLAGS)
def test_gradients_are_those_of_the_equations(of_input, of_bias, of_readout):
    net, (x, y) = mlp(2.0, 4.0), batch()
    rule = make(OTTT, net, trace_input=of_input, trace_bias=of_bias, trace_readout=of_readout)
    with torch.no_grad():
        expected = manual(net, x, y, of_input=of_input, of_bias=of_bias, of_readout=of_readout)
        other = manual(net, x, y, of_input=not of_input, of_bias=not of_bias, of_readout=not of_readout)
    got = gradients(rule, x, y)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=0, atol=1e-12)
    assert all((g - o).abs().max() > 1e-3 for g, o in zip(got[::2], other[::2], strict=True) if g.shape[1] != 7)


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("tau", [2.0, 1.1])
def test_the_hosts_path_gives_the_same_bits(online, tau):
    net, (x, y) = mlp(tau, tau), batch()
    host = layer.OTTTSequential(
        *(neuron.OTTTLIFNode(tau, surrogate_function=surrogate.Sigmoid(4.0)) if isinstance(m, neuron.LIFNode) else m
          for m in mlp(tau, tau))
    )  # fmt: skip
    sgd = torch.optim.SGD(host.parameters(), lr=0.1, momentum=0.9)
    rule = make(OTTT, net, update="step" if online else "sequence")
    for _ in range(3):
        targets = y.expand(T, N).t()
        ottt_online_training(host, sgd, x.transpose(0, 1), targets, lambda o, y: F.cross_entropy(o, y) / T, online)
        functional.reset_net(host)
        rule.train_step(x, y)
    for p, q in zip(net.parameters(), host.parameters(), strict=True):
        assert torch.equal(p, q)


def test_all_rules_agree_at_one_step():
    net, (x, y) = mlp(2.0, 4.0), batch()
    expected = gradients(make(BPTT, net), x[:1], y)
    for rule in (OTTT, SLTT):
        for g, e in zip(gradients(make(rule, net), x[:1], y), expected, strict=True):
            torch.testing.assert_close(g, e, rtol=0, atol=1e-12)


def test_without_decay_it_is_sltt():
    net, (x, y) = mlp(2.0, 4.0), batch()
    expected = gradients(make(SLTT, net), x, y)
    flags = {"trace_input": True, "trace_bias": True}
    no_decay = dict.fromkeys("024", 0.0)
    for g, e in zip(gradients(make(OTTT, net, trace_decay=no_decay, **flags), x, y), expected, strict=True):
        torch.testing.assert_close(g, e, rtol=0, atol=1e-12)
    for g, e in zip(gradients(make(OTTT, net, **flags), x, y), expected, strict=True):
        assert_differ(g, e)


def test_the_last_layer_is_exact_with_a_leak_of_each_layer():
    net, (x, y) = mlp(2.0, 1.5, readout=False), batch(6)
    flags = {"trace_bias": True}
    expected = gradients(make(BPTT, net), x, y)
    got = gradients(make(OTTT, net, **flags), x, y)
    emitting = gradients(make(OTTT, net, trace_decay={"2": 0.5}, **flags), x, y)
    for g, e, wrong in list(zip(got, expected, emitting, strict=True))[2:]:
        torch.testing.assert_close(g, e, rtol=0, atol=1e-12)
        assert_differ(wrong, e)
    assert_differ(got[:2], expected[:2])


def test_an_untraced_readout_is_exact():
    net, (x, y) = mlp(2.0, 4.0), batch()
    expected = gradients(make(BPTT, net), x, y)
    got = gradients(make(OTTT, net, trace_readout=False), x, y)
    torch.testing.assert_close(got[-2:], expected[-2:], rtol=0, atol=1e-12)
    assert_differ(gradients(make(OTTT, net), x, y)[-2], expected[-2])


@pytest.mark.parametrize("dropout", [layer.Dropout(0.5), nn.Dropout(0.5)])
def test_the_trace_is_of_what_dropout_lets_through(dropout):
    net, (x, y) = mlp(2.0, 2.0, readout=False), batch(6)
    net = nn.Sequential(*net[:2], dropout, *net[2:])

    def at(rule: type) -> Tensor:
        torch.manual_seed(2)
        return gradients(make(rule, net), x, y)[2]

    torch.testing.assert_close(at(OTTT), at(BPTT), rtol=0, atol=1e-12)
    assert_differ(at(OTTT), at(SLTT))


def test_updates_each_step_follow_the_gradients_of_the_moment():
    net, (x, y) = mlp(2.0, 4.0), batch()
    by_hand = mlp(2.0, 4.0)
    make(OTTT, net, update="step").train_step(x, y)
    rule = make(OTTT, by_hand)
    for _ in rule.gradients(x, y):
        rule.update_weights()
    for p, q in zip(net.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(p, q)


def test_theorem_1_gives_a_descent_direction():
    """Where the rates are as close to their ends as Theorem 1 asks, OTTT agrees with the rate-coded gradient."""
    torch.manual_seed(0)
    alpha, lam = 1e-3, 0.5  # a surrogate derivative that is alpha all over, as Assumption 1 has it
    node = neuron.LIFNode(2.0, decay_input=False, v_reset=None, surrogate_function=surrogate.Rect(alpha))
    net = nn.Sequential(nn.Linear(5, 3, bias=False), node).double()
    errors: list[Tensor] = []
    rule = make(OTTT, net, trace_input=True, loss_fn=lambda o, y: (o * errors.pop(0)).sum() / alpha)

    def sample(s: Tensor, g: Tensor) -> tuple[bool, float]:
        """Whether the condition holds, and the product of the two gradients (but for a positive factor)."""
        errors[:] = g
        (ottt,) = gradients(rule, s[:, None], torch.zeros(1, 3))
        T = len(s)
        t = torch.arange(1, T + 1).double()
        weights = torch.tril(lam ** (t[:, None] - t))
        a = weights @ s / weights.sum(1, keepdim=True)
        c = lam**t * (1 - lam ** (T - t)) / (1 - lam**T)
        epsilon, final, lag = g.t() @ (a - a[-1]), g.sum(0).outer(a[-1]), g.t() @ (c[:, None] * a)
        return bool(epsilon.norm() < final.norm() - lag.norm()), (ottt * final).sum().item()

    samples = [
        sample(
            (torch.rand(5) + spread * torch.randn(T, 5)).clamp(0, 1).double(),
            (torch.randn(3) + spread * torch.randn(T, 3)).double(),
        )
        for T, spread in [(4, 0.1), (8, 0.3), (20, 0.3)] * 15
    ]
    assert sum(met for met, _ in samples) > 15
    assert all(product > 0 for met, product in samples if met)

    falling = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]).double()[:, None].expand(5, 5)
    late = torch.tensor([0.0, 0.0, 1.0, 0.0, -1.5]).double()[:, None].expand(5, 3)
    met, product = sample(falling, late)
    assert not met and product < 0


def test_exact_is_the_traces_of_the_equations_and_flags_go_before():
    net, (x, y) = mlp(2.0, 4.0), batch()
    flags = {"trace_input": True, "trace_bias": True, "trace_readout": False}
    exact = gradients(make(OTTT, net, exact=True), x, y)
    torch.testing.assert_close(exact, gradients(make(OTTT, net, **flags), x, y), rtol=0, atol=0)
    mixed = gradients(make(OTTT, net, exact=True, trace_readout=True), x, y)
    torch.testing.assert_close(mixed[:-2], exact[:-2], rtol=0, atol=0)
    assert_differ(mixed[-2], exact[-2])
    assert_differ(gradients(make(OTTT, net), x, y)[0], exact[0])
