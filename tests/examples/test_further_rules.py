"""OTPE and S-TLLR of examples/, through the public checks, and against their theorems and equations, in float64."""

import runpy
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import base, functional, layer, neuron, surrogate
from torch import Tensor, nn

from sj_online.testing import assert_differ, assert_live, bptt_gradient, check_rule, rule_gradient
from sj_online.trainer import OTTT, SLTT

EXAMPLES = Path(__file__).parents[2] / "examples"
OTPE = runpy.run_path(str(EXAMPLES / "otpe.py"))["OTPE"]
STLLR = runpy.run_path(str(EXAMPLES / "stllr.py"))["STLLR"]
T, N, LAM = 6, 4, 0.75


def lif(detach_reset: bool = True, lam: float = LAM) -> neuron.LIFNode:
    return neuron.LIFNode(
        1 / (1 - lam), False, v_reset=None, detach_reset=detach_reset, surrogate_function=surrogate.Sigmoid(4.0)
    )


def mlp(layers: int = 3, readout: bool = False, node=lif) -> nn.Sequential:
    torch.manual_seed(0)
    net: list[nn.Module] = []
    for _ in range(layers):
        net += [layer.Linear(7, 7), node()]
    made = nn.Sequential(*net, *([layer.Linear(7, 3)] if readout else [])).double()
    for synapse in made[::2]:
        nn.init.normal_(synapse.weight, 0.1, 0.5)
    return made


def batch(classes: int = 7) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return 1.5 * torch.rand(T, N, 7, dtype=torch.float64), torch.randint(classes, (N,))


def grad(rule, net: nn.Module, x: Tensor, y: Tensor, **kwargs) -> dict[str, Tensor]:
    return rule_gradient(rule(net, torch.optim.SGD(net.parameters(), lr=0.1), **kwargs), x, y)


def of(gradient: dict[str, Tensor], *layers: int) -> list[Tensor]:
    return [g for name, g in gradient.items() if int(name.partition(".")[0]) in layers]


class Exact(OTPE):
    """OTPE of each synapse: on the checks' network, two hidden layers and a readout, it is BPTT, see its theorems."""

    exact = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, approximate=False, **kwargs)


RULES = [OTPE, Exact, STLLR, partial(STLLR, lambda_pre=None, alpha_post=0.5)]


@pytest.mark.parametrize("rule", RULES, ids=["otpe", "otpe of synapses", "stllr", "stllr with the leak"])
def test_they_keep_the_contract_of_rules(rule):
    check_rule(rule)


def test_they_are_short():
    for name in ("otpe.py", "stllr.py"):
        assert len((EXAMPLES / name).read_text().splitlines()) < 100


# OTPE


@pytest.mark.parametrize("mode", "sm")
@pytest.mark.parametrize("detach", [True, False])
def test_the_last_layer_of_ostl_is_bptt_reset_and_all(detach, mode):
    net, (x, y) = mlp(node=partial(lif, detach)), batch()
    expected = bptt_gradient(net, x, y)
    functional.set_step_mode(net, mode)
    got = grad(OTPE, net, x, y, approximate=False)
    assert_live(expected)
    torch.testing.assert_close(of(got, 4), of(expected, 4), rtol=0, atol=1e-12)
    assert_differ(of(grad(SLTT, net, x, y), 4), of(expected, 4))
    if not detach:
        other = mlp(node=lif)
        other.load_state_dict(net.state_dict())
        assert_differ(of(grad(OTPE, other, x, y, approximate=False), 4), of(expected, 4))


def test_the_next_to_last_layer_is_bptt_when_the_reset_is_detached():
    net, (x, y) = mlp(), batch()
    expected = bptt_gradient(net, x, y)
    torch.testing.assert_close(of(grad(OTPE, net, x, y, approximate=False), 2), of(expected, 2), rtol=0, atol=1e-12)
    for control in (partial(OTTT, exact=True), OTPE):  # no estimate; an approximate one
        assert_differ(of(grad(control, net, x, y), 2), of(expected, 2), 1e-5)
    assert_differ(of(grad(OTPE, net, x, y, approximate=False), 0), of(expected, 0), 1e-6)
    other = mlp(node=partial(lif, True, 0.6))
    other.load_state_dict(net.state_dict())
    assert_differ(of(grad(OTPE, other, x, y, approximate=False), 2), of(expected, 2))
    learnt = mlp(node=partial(lif, False))
    learnt.load_state_dict(net.state_dict())
    got = torch.cat([g.flatten() for g in of(grad(OTPE, learnt, x, y, approximate=False), 2)])
    exact = torch.cat([g.flatten() for g in of(bptt_gradient(learnt, x, y), 2)])
    assert 0.97 < F.cosine_similarity(got, exact, 0) < 1 - 1e-9


def test_f_otpe_is_bptt_of_the_leaky_output():
    net, (x, y) = mlp(), batch()
    functional.reset_net(net)
    out, losses = 0.0, []
    for x_t in x:
        out = LAM * out + net(x_t)
        losses.append(F.cross_entropy(out, y))
    found = torch.autograd.grad(sum(losses) / T, list(net.parameters()))
    expected = dict(zip(dict(net.named_parameters()), found, strict=True))
    got = grad(OTPE, net, x, y, approximate=False, leaky_output=True)
    torch.testing.assert_close(of(got, 4), of(expected, 4), rtol=0, atol=1e-12)
    assert_differ(of(grad(OTPE, net, x, y, approximate=False), 4), of(expected, 4))


def approximate(net: nn.Sequential, x: Tensor, y: Tensor, leaky: bool) -> dict[str, Tensor]:
    """Approximate OTPE and F-OTPE of layers that spike, by their equations."""
    W, b = [m.weight.detach() for m in net[::2]], [m.bias.detach() for m in net[::2]]
    L, zero = len(W), [0.0] * len(W)
    v, a, z, mean, n, out = list(zero), list(zero), list(zero), list(zero), 0.0, 0.0
    grads = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for x_t in x:
        s, psi, n = x_t, [], LAM * n + 1
        for l in range(L):
            a[l] = LAM * a[l] + s
            z[l] = LAM * z[l] + a[l]
            u = s @ W[l].t() + b[l] + LAM * v[l]
            sig = torch.sigmoid(4 * (u - 1))
            psi.append(4 * sig * (1 - sig))
            mean[l] = mean[l] + (psi[l] - mean[l]) / n
            s = (u >= 1).to(u)
            v[l] = u - s
        out = LAM * out + s if leaky else s
        g = (out.softmax(-1) - F.one_hot(y, 7)) / N / T
        for l in reversed(range(L)):
            last = l == L - 1 and not leaky
            local = g * (psi[l] if last else mean[l])
            grads[f"{2 * l}.weight"] += local.t() @ (a[l] if last else z[l])
            grads[f"{2 * l}.bias"] += local.sum(0)
            g = local @ W[l]
    return grads


@pytest.mark.parametrize("leaky", [False, True])
def test_the_approximate_form_is_its_equations(leaky):
    net, (x, y) = mlp(), batch()
    got = grad(OTPE, net, x, y, leaky_output=leaky)
    expected = approximate(net, x, y, leaky)
    assert_live(expected)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert_differ(of(got, 0, 2), of(approximate(net, x, y, not leaky), 0, 2), 1e-5)


@pytest.mark.parametrize("exactly", [False, True])
def test_without_memory_or_with_one_step_otpe_is_sltt(exactly):
    x, y = batch()
    for net, steps in ((mlp(node=partial(lif, True, 1e-15)), T), (mlp(), 1)):
        got = grad(OTPE, net, x[:steps], y, approximate=not exactly)
        torch.testing.assert_close(got, grad(SLTT, net, x[:steps], y), rtol=0, atol=1e-12)


def test_before_a_readout_the_last_hidden_layer_is_ottts():
    net, (x, y) = mlp(2, readout=True), batch(3)
    expected = grad(partial(OTTT, trace_input=True, trace_readout=False), net, x, y)
    torch.testing.assert_close(of(grad(OTPE, net, x, y), 2, 4), of(expected, 2, 4), rtol=0, atol=1e-12)
    assert_differ(grad(OTPE, net, x, y)["0.weight"], expected["0.weight"])


# S-TLLR


class Recurrent(base.MemoryModule):
    """A layer that gets its own spikes of the step before, and a readout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inp, self.rec, self.out, self.n = nn.Linear(7, 7), nn.Linear(7, 7, False), nn.Linear(7, 3), lif()
        self.register_memory("z", None)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        self.z = self.n(self.inp(x) if self.z is None else self.inp(x) + self.rec(self.z))
        return self.out(self.z)


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 7, 1)), layer.Conv2d(1, 4, (3, 1), padding=(1, 0)), layer.BatchNorm2d(4), lif(),
        layer.Conv2d(4, 5, (3, 1)), layer.AvgPool2d((2, 1)), layer.BatchNorm2d(5), lif(), layer.Flatten(),
        layer.Linear(10, 3),
    ).double()  # fmt: skip


@pytest.mark.parametrize("network", [partial(mlp, 2, True), Recurrent, convolutions])
def test_without_the_second_term_s_tllr_is_ottt(network):
    net, (x, y) = network(), batch(3)
    flags = {"trace_input": True, "trace_readout": False, "step_scale": "sum"}
    expected = grad(OTTT, net, x, y, **flags)
    got = grad(STLLR, net, x, y, alpha_post=0.0, lambda_pre=None)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    weights = [name for name, module in net.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][:-1]
    for control in ({"alpha_post": 0.5, "lambda_pre": None}, {"alpha_post": 0.0, "lambda_pre": 0.5}):
        other = grad(STLLR, net, x, y, **control)
        assert_differ([other[f"{n}.weight"] for n in weights], [expected[f"{n}.weight"] for n in weights])
        rest = [name for name in got if name.removesuffix(".weight") not in weights]
        torch.testing.assert_close([other[n] for n in rest], [got[n] for n in rest], rtol=0, atol=1e-12)


def second(net: nn.Sequential, x: Tensor, y: Tensor, post: float, pre: float, alpha: float, last: int):
    """S-TLLR of two hidden layers by its equations."""
    W, b = [m.weight.detach() for m in net[::2]], [m.bias.detach() for m in net[::2]]
    v, X, Y = [0.0] * 2, [0.0] * 2, [torch.zeros(N, 7).double()] * 2
    grads = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for t, x_t in enumerate(x):
        s, psi, inputs, before = x_t, [], [], list(Y)
        for l in range(2):
            inputs.append(s)
            X[l] = pre * X[l] + s
            u = s @ W[l].t() + b[l] + LAM * v[l]
            sig = torch.sigmoid(4 * (u - 1))
            psi.append(4 * sig * (1 - sig))
            Y[l] = post * Y[l] + psi[l]
            s = (u >= 1).to(u)
            v[l] = u - s
        if t < T - last:
            continue
        delta = ((s @ W[2].t() + b[2]).softmax(-1) - F.one_hot(y, 3)) / N
        grads["4.weight"] += delta.t() @ s
        grads["4.bias"] += delta.sum(0)
        delta = delta @ W[2]
        for l in (1, 0):
            grads[f"{2 * l}.weight"] += alpha * (delta * before[l]).t() @ inputs[l] + (delta * psi[l]).t() @ X[l]
            grads[f"{2 * l}.bias"] += (delta * psi[l]).sum(0)
            delta = (delta * psi[l]) @ W[l]
    return grads


@pytest.mark.parametrize("mode", "sm")
@pytest.mark.parametrize("last", [T, 2])
def test_the_gradients_are_those_of_the_equations(last, mode):
    net, (x, y) = mlp(2, True), batch(3)
    functional.set_step_mode(net, mode)
    options = {"lambda_post": 0.3, "lambda_pre": 0.6, "alpha_post": -0.5}
    got = grad(STLLR, net, x, y, learn_last=None if last == T else last, **options)
    expected = second(net, x, y, 0.3, 0.6, -0.5, last)
    assert_live(expected)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    for control in ((0.6, 0.3, -0.5, last), (0.3, 0.6, 0.5, last), (0.3, 0.6, -0.5, last - 1)):
        assert_differ(of(second(net, x, y, *control), 0, 2)[::2], of(got, 0, 2)[::2])
    direct = grad(STLLR, net, x, y, feedback="random", **options)
    assert_differ(of(direct, 0, 2)[::2], of(grad(STLLR, net, x, y, **options), 0, 2)[::2])


def test_one_step_is_plain_backpropagation_and_one_layer_without_the_second_term_bptt():
    net, (x, y) = mlp(2, True), batch(3)
    torch.testing.assert_close(grad(STLLR, net, x[:1], y), bptt_gradient(net, x[:1], y), rtol=0, atol=1e-12)
    single, (x, y) = mlp(1), batch()
    got = grad(STLLR, single, x, y, alpha_post=0.0, lambda_pre=None)
    expected = bptt_gradient(single, x, y, step_scale="sum")
    torch.testing.assert_close(got["0.weight"], expected["0.weight"], rtol=0, atol=1e-12)
    assert_differ(grad(STLLR, single, x, y)["0.weight"], expected["0.weight"])


def test_through_a_norm_and_pooling_the_second_term_is_a_gradient_of_the_current():
    """The last convolution's, by autograd from the current of its neuron, step by step."""
    net, (x, y) = convolutions(), batch(3)
    first = grad(STLLR, net, x, y, alpha_post=0.0, lambda_pre=0.5)
    both = grad(STLLR, net, x, y, alpha_post=0.7, lambda_pre=0.5, lambda_post=0.4)
    functional.reset_net(net)
    expected, Y = torch.zeros_like(net[4].weight), 0.0
    for x_t in x:
        s = net[:4](x_t).detach()
        current = net[4:7](s)
        node = net[7]
        v = node.v if isinstance(node.v, Tensor) else torch.zeros_like(current)
        sig = torch.sigmoid(4 * (LAM * v + current.detach() - 1))
        spikes = node(current.detach())
        logits = net[8:](spikes)
        delta = (((logits.softmax(-1) - F.one_hot(y, 3)) / N) @ net[9].weight).detach().view_as(spikes)
        if isinstance(Y, Tensor):
            expected += torch.autograd.grad(current, net[4].weight, 0.7 * delta * Y)[0]
        Y = 0.4 * Y + (4 * sig * (1 - sig)).detach()
    assert_live(expected)
    torch.testing.assert_close(both["4.weight"] - first["4.weight"], expected, rtol=0, atol=1e-12)
