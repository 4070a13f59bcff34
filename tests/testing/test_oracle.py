"""The oracle against gradients written out, and the assertions where they hold and where they do not."""

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

from sj_online.testing import assert_differ, assert_live, bptt_gradient, rule_gradient
from sj_online.trainer import BPTT, SLTT

T, N = 4, 3


def network() -> nn.Sequential:
    torch.manual_seed(0)
    node = neuron.LIFNode(2.0, False, v_reset=None, surrogate_function=surrogate.Sigmoid(4.0))
    net = nn.Sequential(layer.Linear(5, 6, bias=False), node, layer.Linear(6, 3)).double()
    nn.init.normal_(net[0].weight, 0.3, 0.6)
    return net


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return 2 * torch.rand(T, N, 5, dtype=torch.float64), torch.tensor([0, 2, 1])


def by_hand(net: nn.Sequential, x: Tensor, y: Tensor, detached: bool) -> dict[str, Tensor]:
    """The adjoint of soft-reset LIF: dL/du[t] = delta[t] h[t] + dL/du[t+1] 0.5 (1 - h[t]), the last unless detached."""
    W, (V, b) = net[0].weight.detach(), (net[2].weight.detach(), net[2].bias.detach())
    v, steps = 0.0, []
    for x_t in x:
        u = x_t @ W.t() + 0.5 * v
        s, sig = (u >= 1).double(), torch.sigmoid(4 * (u - 1))
        v = u - s
        steps.append((x_t, s, 4 * sig * (1 - sig), ((s @ V.t() + b).softmax(-1) - F.one_hot(y, 3)) / N / T))
    dW, dV, db, later = 0.0, 0.0, 0.0, 0.0
    for x_t, s, h, e in reversed(steps):
        du = (e @ V) * h + later * 0.5 * (1 if detached else 1 - h)
        dW, dV, db, later = dW + du.t() @ x_t, dV + e.t() @ s, db + e.sum(0), du
    return {"0.weight": dW, "2.weight": dV, "2.bias": db}


@pytest.mark.parametrize("mode", "sm")
@pytest.mark.parametrize("detached", [False, True])
def test_bptt_is_the_adjoint_written_out(mode, detached):
    net, (x, y) = network(), batch()
    net[1].detach_reset = detached
    functional.set_step_mode(net, mode)
    got = bptt_gradient(net, x, y)
    assert_live(got)
    torch.testing.assert_close(got, by_hand(net, x, y, detached), rtol=0, atol=1e-12)
    assert_differ(got["0.weight"], by_hand(net, x, y, not detached)["0.weight"])
    assert_differ(got["0.weight"], rule_gradient(SLTT(net, torch.optim.SGD(net.parameters())), x, y)["0.weight"])


def test_the_network_is_reset_before_and_after_and_keeps_its_gradients():
    net, (x, y) = network(), batch()
    expected = bptt_gradient(net, x, y)
    net[1](net[0](x[0]))
    net[2].bias.grad = torch.full((3,), 7.0).double()
    torch.testing.assert_close(bptt_gradient(net, x, y), expected, rtol=0, atol=0)
    assert net[1].v == 0.0 and net[0].weight.grad is None and net[2].bias.grad.tolist() == [7.0] * 3


def test_static_inputs_sums_other_losses_and_frozen_weights():
    net, (x, y) = network(), batch()
    static = bptt_gradient(net, x[0], y, num_steps=T)
    torch.testing.assert_close(static, bptt_gradient(net, x[:1].expand(T, N, 5), y), rtol=0, atol=0)
    assert_differ(static, bptt_gradient(net, x, y))
    summed = bptt_gradient(net, x, y, step_scale="sum")
    torch.testing.assert_close(
        summed, {name: T * g for name, g in bptt_gradient(net, x, y).items()}, rtol=0, atol=1e-12
    )
    other = bptt_gradient(net, x, y, loss_fn=lambda o, y: 3 * F.cross_entropy(o, y), step_scale="sum")
    torch.testing.assert_close(other, {name: 3 * g for name, g in summed.items()}, rtol=0, atol=1e-12)
    net[0].requires_grad_(False)
    unused = nn.Sequential(*net)
    unused.register_parameter("unused", nn.Parameter(torch.ones(2)))
    frozen = bptt_gradient(unused, x, y, step_scale="sum")
    assert list(frozen) == ["unused", "2.weight", "2.bias"] and not frozen["unused"].any()
    torch.testing.assert_close(frozen["2.weight"], summed["2.weight"], rtol=0, atol=0)


def test_the_gradient_of_a_rule_is_whole_and_leaves_nothing():
    net, (x, y) = network(), batch()
    net.register_parameter("unused", nn.Parameter(torch.ones(2)))
    net[2].bias.requires_grad_(False)
    net[0].weight.grad = torch.ones_like(net[0].weight)
    rule, before = BPTT(net, torch.optim.SGD(net.parameters(), lr=0.1)), net[0].weight.detach().clone()
    got = rule_gradient(rule, x, y)
    assert list(got) == ["unused", "0.weight", "2.weight"] and not got["unused"].any()
    torch.testing.assert_close(got, bptt_gradient(net, x, y), rtol=0, atol=1e-12)
    assert all(p.grad is None for p in net.parameters()) and torch.equal(net[0].weight, before)
    half = rule_gradient(rule, x, y, torch.arange(T)[:, None].expand(T, N) < 2)
    expected = by_hand(net, x[:2], y, False)["2.weight"]
    torch.testing.assert_close(half["2.weight"], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("dead", "what"),
    [
        (torch.zeros(3), "'tensor' is dead"),
        ([torch.ones(1), torch.zeros(3)], "'1' is dead"),
        ({"a": torch.ones(2), "b": torch.empty(0)}, "'b' is dead"),
        ({"a": torch.tensor([1.0, torch.nan])}, "'a' is not finite"),
    ],
)
def test_what_is_dead_is_named(dead, what):
    with pytest.raises(AssertionError, match=what):
        assert_live(dead)


def test_live_is_above_a_bound():
    assert_live([torch.tensor([0.0, -0.5]), torch.tensor(0.5)])
    assert_live(torch.tensor([0.0, -0.5]), above=0.4)
    with pytest.raises(AssertionError, match="no absolute value of it is above 0.5"):
        assert_live(torch.tensor([0.0, -0.5]), above=0.5)


def test_all_must_differ_by_more_than_a_bound():
    a = {"w": torch.zeros(2), "b": torch.zeros(2)}
    assert_differ(a, {"w": torch.tensor([0.0, -0.5]), "b": torch.tensor([0.3, 0.0])})
    assert_differ(torch.zeros(2), torch.tensor([0.0, 2e-4]))
    with pytest.raises(AssertionError, match="the two of 'tensor' do not differ by more than 0.0001"):
        assert_differ(torch.ones(2), torch.ones(2))
    with pytest.raises(AssertionError, match="the two of 'b' do not differ by more than 0.0001"):
        assert_differ(a, {"w": torch.ones(2), "b": torch.full((2,), 1e-4)})
    with pytest.raises(AssertionError, match="the two of 'b' do not differ by more than 0.4"):
        assert_differ(a, {"w": torch.tensor([0.0, -0.5]), "b": torch.tensor([0.3, 0.0])}, by=0.4)


@pytest.mark.parametrize(
    ("a", "b"), [([], []), ({"w": torch.ones(1)}, {"v": torch.zeros(1)}), ([torch.ones(1)], torch.zeros(1))]
)
def test_what_cannot_be_compared_does_not_differ(a, b):
    with pytest.raises(AssertionError, match="cannot be compared"):
        assert_differ(a, b)


def test_shapes_are_no_difference():
    with pytest.raises(AssertionError, match=r"'tensor': \(2,\) and \(2, 1\)"):
        assert_differ(torch.ones(2), torch.zeros(2, 1))
