"""The LIF neurons of the papers: their equations and gradients written out, float64."""

import pytest
import torch
from package_names import own
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import nn

from sj_online import registry
from sj_online.convert import swap_neurons
from sj_online.neuron import EMPFNode, ottt_lif, sltt_lif, stol_lif, surrogates

T, N = 6, 200
FACTORIES = {"ottt_lif": ottt_lif, "sltt_lif": sltt_lif, "stol_lif": stol_lif}


def sigmoid(x):
    return 4 * (4 * x).sigmoid() * (1 - (4 * x).sigmoid())


def triangle(x):
    return (1 - x.abs()).clamp(min=0)


def quasi_clamp(x):
    return (x.abs() <= 1).to(x)


class Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, slope):
        ctx.save_for_backward(slope(x.detach()))
        return (x >= 0).to(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0], None


def soft(x, leak, slope):
    """OTTT and SLTT: u = leak (u - s) + x, the reset without gradient."""
    u, s, out = 0.0 * x[0], 0.0 * x[0], []
    for x_t in x:
        u = leak * (u - s.detach()) + x_t
        s = Fire.apply(u - 1, slope)
        out.append(s)
    return torch.stack(out)


def hard(x, leak, slope):
    """STOL: u = leak u (1 - s) + x, the reset's gradient kept."""
    u, s, out = 0.0 * x[0], 0.0 * x[0], []
    for x_t in x:
        u = leak * u * (1 - s) + x_t
        s = Fire.apply(u - 1, slope)
        out.append(s)
    return torch.stack(out)


PAPERS = [
    ("ottt_lif", {}, soft, 0.5, sigmoid),
    ("sltt_lif", {}, soft, 1 - 1 / 1.1, triangle),
    ("stol_lif", {}, hard, 1 / 2, triangle),
    ("stol_lif", {"tau": 4 / 3}, hard, 1 / 4, triangle),
    ("ottt_lif", {"surrogate_function": "quasi_clamp"}, soft, 0.5, quasi_clamp),
]


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize(("name", "options", "paper", "leak", "slope"), PAPERS)
def test_spikes_and_gradients_are_the_papers(name, options, paper, leak, slope, step_mode):
    torch.manual_seed(0)
    x = (torch.randn(T, N, dtype=torch.float64) + 0.5).requires_grad_()
    node = registry.get("neurons", name)(step_mode=step_mode, **options)
    out = node(x) if step_mode == "m" else torch.stack([node(x_t) for x_t in x])
    weight = torch.randn_like(x)

    def gradient(s):
        return torch.autograd.grad((s * weight).sum(), x, retain_graph=True)[0]

    assert torch.equal(out, paper(x, leak, slope)) and 0.1 < out.mean() < 0.9
    torch.testing.assert_close(gradient(out), gradient(paper(x, leak, slope)), rtol=0, atol=1e-12)
    others = [(p, w, f) for _, _, p, w, f in PAPERS if (p, w, f) != (paper, leak, slope)]
    assert all(not torch.allclose(gradient(out), gradient(p(x, w, f))) for p, w, f in others)


@pytest.mark.parametrize("name", FACTORIES)
def test_options_reach_the_hosts_neuron(name):
    atan = surrogate.ATan()
    node = FACTORIES[name](tau=3.0, v_threshold=0.7, surrogate_function=atan, step_mode="m", store_v_seq=True)
    assert type(node) is neuron.LIFNode and node.surrogate_function is atan
    assert (node.tau, node.v_threshold, node.step_mode, node.store_v_seq) == (3.0, 0.7, "m", True)
    assert registry.get("neurons", name) is FACTORIES[name] and FACTORIES[name].paper
    assert FACTORIES[name]().surrogate_function is not FACTORIES[name]().surrogate_function


@pytest.mark.parametrize("name", FACTORIES)
def test_swap_keeps_the_papers_leak_and_takes_the_hosts_threshold_over(name):
    net = nn.Sequential(layer.Linear(4, 3), neuron.LIFNode(tau=5.0, v_threshold=0.7, step_mode="m"), EMPFNode())
    rows = swap_neurons(net, name)
    assert [row.carried_over for row in rows] == [{"v_threshold": 0.7}, {}]
    assert net[1].tau == FACTORIES[name]().tau and net[1].step_mode == "m" and net[2].v_threshold == 1.0
    swap_neurons(net, name, tau=3.0)
    assert net[1].tau == 3.0


def test_swap_to_empf_in_the_hosts_words():
    net = nn.Sequential(layer.Linear(4, 3), neuron.LIFNode(tau=5.0, v_threshold=0.7))
    assert swap_neurons(net, "empf", tau=4.0, v_threshold=0.25)[0].carried_over == {}
    assert (net[1].decay.item(), net[1].v_threshold) == pytest.approx((0.75, 0.25))
    assert swap_neurons(net, "hdlif")[0].carried_over == pytest.approx({"leak": 0.75}) and net[1].v_threshold == 0.5


def test_every_registered_neuron_names_its_paper():
    names = own("neurons")
    assert {"empf", "hdlif", "lmh", "qcfs", *FACTORIES} <= set(names)
    assert all(isinstance(registry.get("neurons", name).paper, str) for name in names)


def test_surrogates_have_names():
    assert ottt_lif(surrogate_function="triangle").surrogate_function.alpha == 1.0
    with pytest.raises(
        ValueError, match="surrogate_function='step' is not one of 'sigmoid', 'triangle', 'quasi_clamp'"
    ):
        stol_lif(surrogate_function="step")


def test_the_quasi_clamp_has_a_primitive():
    x = torch.tensor([-1.5, -0.5, 0.5, 1.5], dtype=torch.float64, requires_grad=True)
    smooth = surrogates.QuasiClamp(spiking=False)(x)
    assert smooth.tolist() == [0.0, 0.5, 1.5, 2.0]
    assert torch.autograd.grad(smooth.sum(), x)[0].tolist() == [0.0, 1.0, 1.0, 0.0]
