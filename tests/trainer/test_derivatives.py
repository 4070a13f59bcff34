"""The local derivatives of neurons, pushed through a sequence, against autograd over all steps."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from sj_online.neuron import EMPFNode, HDLIFNode, LMHNode
from sj_online.testing import assert_differ, assert_live
from sj_online.trainer import SLTT
from sj_online.trainer.cut import cut
from sj_online.trainer.derivatives import Derivatives, Local, Sloped

T, N, D = 5, 3, 4
SOFT = {"decay_input": False, "v_reset": None, "detach_reset": True}
NODES = {
    "if": lambda: neuron.IFNode(),
    "soft": lambda: neuron.LIFNode(4.0, **SOFT),
    "soft, reset learns": lambda: neuron.LIFNode(4.0, False, v_reset=None, detach_reset=False),
    "hard": lambda: neuron.LIFNode(4.0, True, v_reset=0.1, detach_reset=False),
    "parametric": lambda: neuron.ParametricLIFNode(3.0, v_reset=None),
    "adaptive": lambda: neuron.IzhikevichNode(tau=2.0, v_threshold=0.5, v_rest=-0.5, v_reset=-0.4),
    "empf": lambda: EMPFNode(num_steps=T),
    "hdlif": lambda: HDLIFNode(),
    "lmh": lambda: LMHNode(num_steps=T),
}


def currents() -> Tensor:
    torch.manual_seed(1)
    return 1.5 * torch.rand(T, N, D, dtype=torch.float64)


def by_autograd(node: nn.Module, x: Tensor) -> Tensor:
    """What a current that is shifted at every step does to the sum of the spikes."""
    functional.reset_net(node)
    shift = torch.zeros(N, D, dtype=x.dtype, requires_grad=True)
    spikes = torch.stack([node(x_t + shift) for x_t in x])
    return torch.autograd.grad(spikes.sum(), shift)[0]


def pushed(node: nn.Module, x: Tensor) -> Tensor:
    """The same by tangents, one step at a time."""
    functional.reset_net(node)
    local, total, tangents = Local("n", node), 0.0, {}

    def each(x_t: Tensor, s: Tensor, d: Derivatives) -> Tensor:
        nonlocal total, tangents
        ds, tangents = d.push({"x": 1.0, **tangents})
        total = total + ds
        return s

    if node.step_mode == "m":
        local.run(x, each)
    else:
        for x_t in x:
            local.run(x_t, each)
    return total


@pytest.mark.parametrize("mode", "sm")
@pytest.mark.parametrize("name", NODES)
def test_pushed_through_a_sequence_they_are_the_derivatives_of_all_steps(name, mode):
    node, x = NODES[name]().double(), currents()
    expected = by_autograd(node, x)
    node.step_mode = mode
    got = pushed(node, x)
    assert_live(expected)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert node.step_mode == mode and not node.v.requires_grad


def test_of_a_lif_neuron_by_hand():
    node = neuron.LIFNode(4.0, False, v_reset=None, detach_reset=False).double()
    x, v = currents()[0], torch.full((N, D), 0.3, dtype=torch.float64)
    node.v = v
    s, d = Local("n", node).step(x)
    u = 0.75 * v + x
    sig = torch.sigmoid(4 * (u - 1))
    psi = 4 * sig * (1 - sig)
    assert torch.equal(s, (u >= 1).double())
    torch.testing.assert_close(d.spike, {"x": psi, "v": 0.75 * psi}, rtol=0, atol=1e-12)
    torch.testing.assert_close(d.states["v"], {"x": 1 - psi, "v": 0.75 * (1 - psi)}, rtol=0, atol=1e-12)
    detached = neuron.LIFNode(4.0, **SOFT).double()
    detached.v = v
    assert_differ(Local("n", detached).step(x)[1].states["v"], d.states["v"])


def test_the_step_goes_on_from_the_state_as_a_plain_one_and_without_gradients():
    node, twin, x = neuron.LIFNode(4.0, **SOFT).double(), neuron.LIFNode(4.0, **SOFT).double(), currents()
    local = Local("n", node)
    with torch.no_grad():
        for x_t in x:
            assert torch.equal(local.run(x_t, lambda x, s, d: s), twin(x_t)) and torch.equal(node.v, twin.v)
            assert local.run is not None and not node.v.requires_grad


class Centred(neuron.SimpleLIFNode):
    """A neuron whose elements meet."""

    def neuronal_charge(self, x):
        super().neuronal_charge(x - x.mean(-1, keepdim=True))


def test_what_has_no_local_derivatives_is_named():
    with pytest.raises(ValueError, match=r"'block.n' \(Centred\) mixes the elements"):
        Local("block.n", Centred(2.0, True)).step(currents()[0])
    with pytest.raises(ValueError, match="'n' .SLTTLIFNode. cuts its own past"):
        Local("n", neuron.SLTTLIFNode())
    with pytest.raises(ValueError, match="'n' .EMPFNode. cuts its own past"):
        Local("n", EMPFNode(num_steps=2, temporal_grad=False))


def test_a_slope_is_the_gradient_and_the_spikes_the_value():
    s, x, slope = torch.ones(3), torch.rand(3, requires_grad=True), torch.tensor([0.0, 2.0, -1.0])
    out = Sloped.apply(s, x, slope)
    assert torch.equal(out, s)
    assert torch.equal(torch.autograd.grad(out, x, torch.full((3,), 3.0))[0], 3 * slope)
    assert torch.equal(torch.autograd.grad(Sloped.apply(s, x, None), x, slope)[0], slope)


class Behind(SLTT):
    """SLTT with a graph that ends behind some neurons."""

    names: list[str] | None = None

    def forwards(self):
        self.seen = []
        return cut(self.net, lambda name, s: self.seen.append((name, s)), self.names)


@pytest.mark.parametrize("names", [None, ["1"]])
def test_a_cut_ends_the_graph_behind_the_named_neurons(names):
    torch.manual_seed(0)
    net = nn.Sequential(layer.Linear(D, 5), NODES["soft"](), layer.Linear(5, 5), NODES["soft"](), layer.Linear(5, 3))
    for synapse in net[::2]:
        nn.init.normal_(synapse.weight, 0.3, 0.5)
    net = net.double()
    rule = Behind(net, torch.optim.SGD(net.parameters(), 0.1))
    rule.names = names
    for _ in rule.gradients(currents(), torch.tensor([0, 1, 2])):
        pass
    assert net[0].weight.grad is None and net[4].weight.grad.abs().max() > 0
    assert (net[2].weight.grad is None) == (names is None)
    assert [name for name, _ in rule.seen] == (names or ["1", "3"]) * T
    assert all(s.requires_grad for _, s in rule.seen[:1])


def test_a_cut_at_what_is_no_neuron_is_named():
    net = nn.Sequential(layer.Linear(2, 3), neuron.IFNode())
    with pytest.raises(ValueError, match="'0' is none of the neurons 1"):
        cut(net, print, ["0"])
