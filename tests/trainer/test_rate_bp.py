"""RateBP against BPTT where it is exact, and against its equations written out, in float64."""

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, memopt, neuron, surrogate
from torch import Tensor, nn

from sj_online.analysis import SavedBytes
from sj_online.layer import Feedback, StepBatchNorm2d
from sj_online.loss import over_window, rate_cross_entropy
from sj_online.neuron import EMPFNode
from sj_online.testing import assert_differ, assert_live, bptt_gradient, rule_gradient
from sj_online.trainer import BPTT, SLTT, RateBP
from sj_online.trainer import rates as rates_module

T, N = 6, 4


def lif(tau: float = 2.0, **options) -> neuron.LIFNode:
    options = {"v_reset": None, "detach_reset": True, **options}
    return neuron.LIFNode(tau, False, surrogate_function=surrogate.Sigmoid(4.0), **options)


def mlp(hidden: int = 1, node=lif, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i in range(hidden):
        layers += [layer.Linear(8 if i == 0 else 7, 7), *([layer.BatchNorm1d(7)] if norm else []), node()]
    net = nn.Sequential(*layers, layer.Linear(7, 3)).double()
    for synapse in net:
        if isinstance(synapse, layer.Linear):
            nn.init.normal_(synapse.weight, 0.2, 0.5)
    return net


def static() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return 2 * torch.rand(N, 8, dtype=torch.float64), torch.randint(3, (N,))


def make(rule, net: nn.Module, **kwargs):
    return rule(net, torch.optim.SGD(net.parameters(), lr=0.1), **kwargs)


def rate(net: nn.Module, x: Tensor, y: Tensor, **kwargs):
    return rule_gradient(make(RateBP, net, step_scale="sum", **kwargs), x, y)


def of_mean_output(net: nn.Module, x: Tensor, y: Tensor, **kwargs):
    return rule_gradient(make(BPTT, net, loss_fn=rate_cross_entropy, **kwargs), x, y)


NODES = [lif, lambda: lif(4.0), lambda: lif(v_reset=0.0), lambda: neuron.IFNode(v_reset=None, detach_reset=True)]


@pytest.mark.parametrize("mode", "sm")
@pytest.mark.parametrize("node", NODES)
def test_one_hidden_layer_and_a_static_input_are_bptt(node, mode):
    net, (x, y) = mlp(1, node), static()
    functional.set_step_mode(net, mode)
    expected = of_mean_output(net, x, y, num_steps=T)
    assert_live(expected)
    torch.testing.assert_close(rate(net, x, y, num_steps=T), expected, rtol=0, atol=1e-12)


def test_so_they_are_with_a_batch_norm_of_all_steps():
    net, (x, y) = mlp(1, norm=True), static()
    functional.set_step_mode(net, "m")
    torch.testing.assert_close(rate(net, x, y, num_steps=T), of_mean_output(net, x, y, num_steps=T), rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", [False, True])
def test_one_step_is_backpropagation_at_any_depth(norm):
    net, (x, y) = mlp(3, norm=norm), static()
    if norm:
        nn.init.constant_(net[-1].bias, 0.1)
    expected = bptt_gradient(net, x[None], y)
    assert_live(expected, -1.0)
    torch.testing.assert_close(rate(net, x[None], y), expected, rtol=0, atol=1e-12)


def test_two_hidden_layers_are_not_bptt():
    net, (x, y) = mlp(2), static()
    got, expected = rate(net, x, y, num_steps=T), of_mean_output(net, x, y, num_steps=T)
    assert_differ(got["0.weight"], expected["0.weight"], 1e-5)
    torch.testing.assert_close(got["4.weight"], expected["4.weight"], rtol=0, atol=1e-12)


def test_without_the_memory_in_E_or_with_another_leak_it_is_off(monkeypatch):
    net, (x, y) = mlp(1), static()
    expected = of_mean_output(net, x, y, num_steps=T)
    other = mlp(1, lambda: lif(4.0))
    other.load_state_dict(net.state_dict())
    assert_differ(rate(other, x, y, num_steps=T)["0.weight"], expected["0.weight"], 1e-3)
    push = rates_module.Derivatives.push
    monkeypatch.setattr(rates_module.Derivatives, "push", lambda self, tangents: (push(self, {"x": 1.0})[0], {}))
    assert_differ(rate(net, x, y, num_steps=T)["0.weight"], expected["0.weight"], 1e-3)


def test_the_authors_divide_the_gradient_by_the_steps():
    net, (x, y) = mlp(2), static()
    mean = rule_gradient(make(RateBP, net, num_steps=T), x, y)
    torch.testing.assert_close(mean, {n: g / T for n, g in rate(net, x, y, num_steps=T).items()}, rtol=0, atol=1e-12)
    losses = [make(RateBP, mlp(2), num_steps=T, step_scale=how).train_step(x, y).loss for how in ("mean", "sum")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("mode", "sm")
@pytest.mark.parametrize("hidden", [1, 3])
def test_the_output_is_the_mean_output_at_any_depth(hidden, mode):
    net, (_, y) = mlp(hidden, norm=mode == "m"), static()
    functional.set_step_mode(net, mode)
    x = 2 * torch.rand(T, N, 8, dtype=torch.float64)
    got = make(RateBP, mlp(hidden, norm=mode == "m"), step_scale="sum")
    functional.set_step_mode(got.net, mode)
    result = got.train_step(x, y)
    with torch.no_grad():
        functional.reset_net(net)
        mean = (net(x) if mode == "m" else torch.stack([net(x_t) for x_t in x])).mean(0)
    torch.testing.assert_close(result.output, mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(result.loss, F.cross_entropy(mean, y), rtol=0, atol=1e-12)


def rates_by_hand(net: nn.Sequential, x: Tensor, y: Tensor, per_step: bool) -> list[Tensor]:
    """Linear, batch norm, neuron, linear: the second pass in plain autograd, on what the first has seen."""
    W, norm, readout = net[0], net[1], net[3]
    c = F.linear(x, W.weight, W.bias).detach()
    axes = 1 if per_step else (0, 1)
    mu_t, v_t = c.mean(axes, keepdim=True), c.var(axes, correction=0, keepdim=True)
    c = norm.weight * (c - mu_t) / (v_t + norm.eps).sqrt() + norm.bias
    u, v, e, E, r = 0.0, 0.0, 1.0, 0.0, 0.0
    for c_t in c.detach():
        u = 0.5 * v + c_t
        s = (u >= 1).to(u)
        sig = torch.sigmoid(4 * (u - 1))
        E, r, v, e = E + 4 * sig * (1 - sig) * e / T, r + s / T, u - s, 1 + 0.5 * e
    z = F.linear(x.mean(0), W.weight, W.bias)
    mu = mu_t.mean((0, 1)) + z.mean(0) - z.mean(0).detach()
    spread = (z - mu).square().mean(0)
    within = 1 / (1 / (v_t + norm.eps)).mean((0, 1)) + spread - spread.detach()
    z = norm.weight * (z - mu) / within.sqrt() + norm.bias
    loss = F.cross_entropy(readout(r + E * (z - z.detach())), y)
    return list(torch.autograd.grad(loss, list(net.parameters())))


@pytest.mark.parametrize("mode", "sm")
def test_batch_norm_has_the_statistics_of_the_first_pass_and_the_gradients_of_the_rates(mode):
    net, (_, y) = mlp(1, norm=True), static()
    x = 2 * torch.rand(T, N, 8, dtype=torch.float64)
    functional.set_step_mode(net, mode)
    got = list(rate(net, x, y).values())
    functional.set_step_mode(net, "s")
    expected = rates_by_hand(net, x, y, per_step=mode == "s")
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert_live([expected[0], *expected[2:]])
    other = rates_by_hand(net, x, y, per_step=mode == "m")
    assert_differ([got[0]], [other[0]], 1e-5)


def test_the_second_pass_leaves_the_statistics_of_the_first():
    net, twin, (x, y) = mlp(1, norm=True), mlp(1, norm=True), static()
    rule_gradient(make(RateBP, net, num_steps=T), x, y)
    rule_gradient(make(SLTT, twin, num_steps=T), x, y)
    torch.testing.assert_close(dict(net.named_buffers()), dict(twin.named_buffers()), rtol=0, atol=0)
    net[1].eval()
    before = {name: value.clone() for name, value in net.named_buffers()}
    assert_live(rate(net, x, y, num_steps=T)["0.weight"])
    torch.testing.assert_close(dict(net.named_buffers()), before, rtol=0, atol=0)


def test_the_last_steps_alone():
    net, (x, y) = mlp(1), static()
    tail = over_window(lambda outputs, y: F.cross_entropy(outputs.mean(0), y))
    expected = rule_gradient(make(BPTT, net, loss_fn=tail, num_steps=T, learn_last=2, step_scale="sum"), x, y)
    got = rate(net, x, y, num_steps=T, learn_last=2)
    torch.testing.assert_close({n: 2 * g for n, g in got.items()}, expected, rtol=0, atol=1e-12)
    assert_differ(got["0.weight"], rate(net, x, y, num_steps=T)["0.weight"])


class Residual(nn.Module):
    """Convolutions with batch norm, a residual branch, pooling and dropout."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = layer.Conv2d(2, 4, 3), layer.Conv2d(4, 4, 3, padding=1), layer.Conv2d(4, 4, 1)
        self.n0, self.n1, self.norm, self.n2 = layer.BatchNorm2d(4), lif(), StepBatchNorm2d(4), lif()
        self.pool, self.drop, self.fc = layer.AvgPool2d(2), layer.Dropout(0.2), layer.Linear(36, 3)

    def forward(self, x):
        s = self.n1(self.n0(self.stem(x)))
        s = self.drop(self.pool(self.n2(self.norm(self.a(s)) + self.b(s))))
        return self.fc(s.flatten(-3))


@pytest.mark.parametrize("mode", "sm")
def test_a_residual_network_trains_and_its_memory_is_flat(mode):
    peaks = {}
    for rule, steps in ((RateBP, 4), (RateBP, 16), (SLTT, 4)):
        torch.manual_seed(0)
        net = Residual()
        functional.set_step_mode(net, mode)
        x, y = 2 * torch.rand(steps, N, 2, 8, 8), torch.tensor([0, 2, 1, 1])
        made = make(rule, net, step_scale="sum")
        before = net.stem.weight.clone()
        with SavedBytes(exclude=[*net.parameters(), x]) as saved:
            first = made.train_step(x, y).loss
        peaks[rule, steps] = saved.peak
        losses = [made.train_step(x, y).loss for _ in range(12 if steps == 4 else 1)]
        assert (net.stem.weight != before).any() and (steps != 4 or losses[-1] < first)
    assert peaks[RateBP, 4] == peaks[RateBP, 16]
    assert peaks[RateBP, 4] <= 1.7 * peaks[SLTT, 4]


class Recurrent(nn.Module):
    """A layer that gets its own spikes of the step before."""

    def __init__(self):
        super().__init__()
        self.inp, self.rec, self.n, self.out = nn.Linear(8, 7), nn.Linear(7, 7), lif(), nn.Linear(7, 3)
        self.n.register_memory("z", None)

    def forward(self, x):
        self.n.z = self.n(self.inp(x) + (0 if self.n.z is None else self.rec(self.n.z)))
        return self.out(self.n.z)


def with_layer(module: nn.Module) -> nn.Sequential:
    return nn.Sequential(layer.Linear(8, 7), module, layer.Linear(7, 3))


class Twice(nn.Module):
    """A neuron in two places."""

    def __init__(self):
        super().__init__()
        self.a, self.n, self.b = layer.Linear(8, 7), lif(), layer.Linear(7, 7)

    def forward(self, x):
        return self.n(self.b(self.n(self.a(x))))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (with_layer(nn.Dropout(0.5)), "'1' .Dropout. draws at each step"),
        (with_layer(EMPFNode()), "'1' .EMPFNode. learns parameters of its own"),
        (with_layer(layer.SynapseFilter(step_mode="s")), "'1' .SynapseFilter. keeps 'out_i' from step to step"),
        (with_layer(neuron.SLTTLIFNode()), "'1' .SLTTLIFNode. cuts its own past"),
        (Recurrent(), "'rec' takes what comes from the step before"),
        (nn.Sequential(Feedback(layer.Linear(8, 7), lif(), layer.Linear(7, 7)), layer.Linear(7, 3)), "Feedback"),
        (Twice(), "'n' does not run once in every step"),
    ],
)
def test_what_has_no_rate_is_named(net, message):
    x, y = torch.rand(T, N, 8), torch.tensor([0, 1, 2, 0])
    with pytest.raises(ValueError, match=message):
        make(RateBP, net).train_step(x, y)


class Block(nn.Sequential):
    pass


def test_other_things_that_it_cannot_do_are_named():
    net, (x, y) = mlp(1), static()
    with pytest.raises(ValueError, match="per_step_targets=True"):
        make(RateBP, net, per_step_targets=True)
    with pytest.raises(TypeError, match="update"):
        make(RateBP, net, update="step")
    with pytest.raises(ValueError, match="RateBP must know the number of steps"):
        make(RateBP, net).stream([])
    with pytest.raises(ValueError, match="a mask that differs from step to step"):
        make(RateBP, net).train_step(x.expand(T, N, 8), y, torch.arange(T)[:, None].expand(T, N) > 2)
    with pytest.raises(ValueError, match="mixes the steps"):
        make(RateBP, nn.Sequential(layer.ThresholdDependentBatchNorm2d(1.0, 1.0, 3)))
    treated = nn.Sequential(Block(net[0], net[1]), net[2])
    memopt.optimize_memory(treated, Block, example_forward=lambda net: net(x), level=1)
    functional.reset_net(treated)
    with pytest.raises(ValueError, match="'0' .* is run again in backward"):
        make(RateBP, treated, num_steps=T).train_step(x, y)


def test_samples_that_do_not_count_are_left_out():
    net, (x, y) = mlp(1), static()
    mask = torch.ones(T, N)
    mask[:, 2:] = 0
    got = rule_gradient(make(RateBP, net, step_scale="sum"), x.expand(T, N, 8), y, mask)
    half = rate(net, x[:2], y[:2], num_steps=T)
    torch.testing.assert_close(got, {name: g / 2 for name, g in half.items()}, rtol=0, atol=1e-12)
