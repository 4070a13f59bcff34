"""e-prop against automatic differentiation and its equations, in float64."""

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import base, functional, layer, neuron, surrogate
from torch import Tensor, nn

from sj_online.testing import assert_differ, assert_live, check_rule, rule_gradient
from sj_online.trainer import OTTT, SLTT, EProp
from sj_online.trainer import eprop as module

T, N, D, H, C = 6, 4, 5, 7, 3
LAM, KAPPA = 0.75, 0.6


def lif(**options) -> neuron.LIFNode:
    options = {"v_reset": None, "detach_reset": True, **options}
    return neuron.LIFNode(1 / (1 - LAM), False, surrogate_function=surrogate.Sigmoid(4.0), **options)


class Recurrent(base.MemoryModule):
    """A layer that gets its own spikes of the step before, and a readout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inp, self.rec, self.out, self.n = nn.Linear(D, H), nn.Linear(H, H, False), nn.Linear(H, C), lif()
        for synapse in (self.inp, self.rec):
            nn.init.normal_(synapse.weight, 0.1, 0.5)
        self.register_memory("z", None)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        self.z = self.n(self.inp(x) if self.z is None else self.inp(x) + self.rec(self.z))
        return self.out(self.z)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(layer.Linear(D, H), lif(), layer.Linear(H, H), lif(), layer.Linear(H, C)).double()
    for synapse in net[::2]:
        nn.init.normal_(synapse.weight, 0.2, 0.5)
    return net


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return 1.5 * torch.rand(T, N, D, dtype=torch.float64), torch.randint(C, (N,))


def make(rule, net: nn.Module, **kwargs):
    return rule(net, torch.optim.SGD(net.parameters(), lr=0.1), **kwargs)


def by_autograd(net: Recurrent, x: Tensor, y: Tensor, kappa: float, last: int = T) -> dict[str, Tensor]:
    """All steps in one graph, without the way through the spikes of the step before."""
    functional.reset_net(net)
    out, losses = 0.0, []
    for x_t in x:
        current = net.inp(x_t) if net.z is None else net.inp(x_t) + net.rec(net.z.detach())
        net.z = net.n(current)
        out = kappa * out + (1 - kappa) * net.out(net.z)
        losses.append(F.cross_entropy(out, y))
    loss = sum(losses[-last:]) / T
    found = torch.autograd.grad(loss, list(net.parameters()))
    functional.reset_net(net)
    return dict(zip(dict(net.named_parameters()), found, strict=True))


def test_symmetric_eprop_is_autograd_without_the_recurrent_way_and_exact_ottt():
    net, (x, y) = Recurrent(), batch()
    expected = by_autograd(net, x, y, 0.0)
    got = rule_gradient(make(EProp, net), x, y)
    assert_live(expected)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(rule_gradient(make(OTTT, net, exact=True), x, y), expected, rtol=0, atol=1e-12)
    hidden = ["inp.weight", "rec.weight"]
    for other in (make(SLTT, net), make(EProp, net, feedback="random")):
        assert_differ([rule_gradient(other, x, y)[name] for name in hidden], [expected[name] for name in hidden])
    traced = rule_gradient(make(OTTT, net, exact=True, trace_readout=True), x, y)
    assert_differ(traced["out.weight"], expected["out.weight"])


def test_a_leaky_readout_is_exact_too():
    net, (x, y) = Recurrent(), batch()
    expected = by_autograd(net, x, y, KAPPA)
    got = rule_gradient(make(EProp, net, readout_decay=KAPPA), x, y)
    assert_live(expected)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    without = rule_gradient(make(EProp, net), x, y)
    assert_differ(without, expected)


def test_eligibilities_gather_in_steps_that_do_not_learn():
    net, (x, y) = Recurrent(), batch()
    got = rule_gradient(make(EProp, net, readout_decay=KAPPA, learn_last=2), x, y)
    torch.testing.assert_close(got, by_autograd(net, x, y, KAPPA, last=2), rtol=0, atol=1e-12)


def test_without_the_filter_it_is_off(monkeypatch):
    net, (x, y) = Recurrent(), batch()
    expected = by_autograd(net, x, y, KAPPA)
    rule = make(EProp, net, readout_decay=KAPPA)
    monkeypatch.setattr(module._Filtered, "__init__", lambda self, kappa: init(self, 0.0))
    got = rule_gradient(rule, x, y)
    assert_differ([got["inp.weight"], got["rec.weight"]], [expected["inp.weight"], expected["rec.weight"]])
    torch.testing.assert_close(got["out.weight"], expected["out.weight"], rtol=0, atol=1e-12)


init = module._Filtered.__init__


def by_hand(net: nn.Sequential, x: Tensor, y: Tensor, kappa: float, B: dict[str, Tensor]) -> dict[str, Tensor]:
    """Two hidden layers with matrices of their own, all by the equations."""
    W, b = [m.weight.detach() for m in net[::2]], [m.bias.detach() for m in net[::2]]
    grads = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    v, eps, eps_b, e, e_b, z_bar, z_b, out = [0.0] * 2, [0.0] * 2, 0.0, [0.0] * 2, [0.0] * 2, 0.0, 0.0, 0.0
    for x_t in x:
        s, eps_b = x_t, LAM * eps_b + 1
        for l in range(2):
            u = s @ W[l].t() + b[l] + LAM * v[l]
            sig = torch.sigmoid(4 * (u - 1))
            psi = 4 * sig * (1 - sig)
            eps[l] = LAM * eps[l] + s
            e[l] = kappa * e[l] + (1 - kappa) * psi[:, :, None] * eps[l][:, None, :]
            e_b[l] = kappa * e_b[l] + (1 - kappa) * psi * eps_b
            s = (u >= 1).to(u)
            v[l] = u - s
        z_bar, z_b = kappa * z_bar + (1 - kappa) * s, kappa * z_b + (1 - kappa)
        out = kappa * out + (1 - kappa) * (s @ W[2].t() + b[2])
        error = (out.softmax(-1) - F.one_hot(y, C)) / N / T
        grads["4.weight"] += error.t() @ z_bar
        grads["4.bias"] += error.sum(0) * z_b
        for l in range(2):
            L = error @ B[str(2 * l + 1)]
            grads[f"{2 * l}.weight"] += torch.einsum("nj,nji->ji", L, e[l])
            grads[f"{2 * l}.bias"] += (L * e_b[l]).sum(0)
    return grads


@pytest.mark.parametrize("mode", "sm")
@pytest.mark.parametrize("kappa", [0.0, KAPPA])
def test_random_feedback_gives_every_layer_its_own_signal(kappa, mode):
    net, (x, y) = mlp(), batch()
    functional.set_step_mode(net, mode)
    rule = make(EProp, net, feedback="random", readout_decay=kappa, generator=torch.Generator().manual_seed(2))
    got = rule_gradient(rule, x, y)
    expected = by_hand(net, x, y, kappa, rule.feedback.matrices)
    assert_live(expected)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    if kappa:
        rule.feedback.gain = 1.0  # a filter without 1 - kappa
        assert_differ(rule_gradient(rule, x, y)["0.weight"], expected["0.weight"])
    symmetric = rule_gradient(make(EProp, net, readout_decay=kappa), x, y)
    assert_differ([got["0.weight"], got["2.weight"]], [symmetric["0.weight"], symmetric["2.weight"]])


def test_a_signal_for_one_layer_and_the_gradient_for_the_others():
    net, (x, y) = mlp(), batch()
    own = {"3": net[4].weight.detach()}
    got = rule_gradient(make(EProp, net, feedback=own, readout_decay=KAPPA), x, y)
    torch.testing.assert_close(got, rule_gradient(make(EProp, net, readout_decay=KAPPA), x, y), rtol=0, atol=1e-12)


def test_adaptive_feedback_gets_the_readouts_updates_and_comes_to_it():
    net, (x, y) = mlp(), batch()
    rule = make(EProp, net, feedback="adaptive", feedback_decay=0.1)
    rule_gradient(rule, x, y)
    before, W = {name: B.clone() for name, B in rule.feedback.matrices.items()}, net[4].weight.detach().clone()
    far = (before["3"] - W).norm()
    rule.train_step(x, y)
    after = rule.feedback.matrices
    torch.testing.assert_close(after["3"] - net[4].weight, 0.9 * (before["3"] - W), rtol=0, atol=1e-12)
    assert_differ(net[4].weight, W)
    assert torch.equal(after["1"], before["1"])
    for _ in range(40):
        rule.train_step(x, y)
    assert (after["3"] - net[4].weight).norm() < 0.02 * far
    fixed = make(EProp, net, feedback="random")
    fixed.train_step(x, y)
    kept = fixed.feedback.matrices["3"].clone()
    fixed.train_step(x, y)
    assert torch.equal(fixed.feedback.matrices["3"], kept)


def test_it_keeps_the_contract_of_rules_with_a_leaky_readout_too():
    check_rule(lambda *args, **kwargs: Leaky(*args, **kwargs))


class Leaky(EProp):
    """With a readout so fast that one step is that of the network's own output."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, readout_decay=1e-300, **kwargs)


@pytest.mark.parametrize("reduce", ["mean", "none", "running"])
def test_predictions_are_those_of_the_leaky_readout(reduce):
    net, (x, y) = mlp(), batch()
    rule = make(EProp, net, readout_decay=KAPPA)
    o, y_t, steps = make(EProp, net).predict(x, "none"), 0.0, []
    for o_t in o:
        y_t = KAPPA * y_t + (1 - KAPPA) * o_t
        steps.append(y_t)
    steps = torch.stack(steps)
    expected = {
        "none": steps,
        "mean": steps.mean(0),
        "running": steps.cumsum(0) / torch.arange(1, T + 1)[:, None, None],
    }
    torch.testing.assert_close(rule.predict(x, reduce), expected[reduce], rtol=0, atol=1e-12)
    torch.testing.assert_close(rule.train_step(x, y).output, steps.mean(0), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="reduce='last'"):
        rule.predict(x, "last")


class Norm(nn.Sequential):
    """A norm between a synapse and its neuron."""

    def __init__(self) -> None:
        super().__init__(layer.Linear(D, H), layer.BatchNorm1d(H), lif(), layer.Linear(H, C))


class Two(nn.Module):
    """A synapse with two neurons behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.a, self.b, self.out = nn.Linear(D, H), lif(), lif(), nn.Linear(H, C)

    def forward(self, x: Tensor) -> Tensor:
        current = self.inp(x)
        return self.out(self.a(current) + self.b(current))


class Again(nn.Module):
    """A synapse that is called twice in a step."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.n, self.out = nn.Linear(D, H), lif(), nn.Linear(H, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.n(self.inp(x) + self.inp(1 - x)))


CONV = [nn.Unflatten(1, (1, D, 1)), layer.Conv2d(1, 2, 1), lif(), layer.Flatten(), layer.Linear(2 * D, C)]


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Norm(), "the current of '2' is not the sum of what '0' give"),
        (Two(), "'inp' sends its current to several neurons"),
        (Again(), "'inp' is called twice in a step"),
        (nn.Sequential(*CONV), "'1' is a convolution"),
        (
            nn.Sequential(nn.Linear(D, H), neuron.ParametricLIFNode(), nn.Linear(H, C)),
            "'1' learns parameters of its own",
        ),
    ],
)
def test_what_a_leaky_readout_cannot_have_is_named_and_without_one_it_runs(net, message):
    x, y = batch()
    with pytest.raises(ValueError, match=message):
        make(EProp, net.double(), readout_decay=KAPPA).train_step(x, y)
    assert make(EProp, net).train_step(x, y).loss.isfinite()


def test_options_out_of_range_are_named():
    with pytest.raises(ValueError, match="readout_decay=1.5 is not in"):
        make(EProp, mlp(), readout_decay=1.5)
    with pytest.raises(ValueError, match="feedback_decay=-1 is not in"):
        make(EProp, mlp(), feedback_decay=-1)
