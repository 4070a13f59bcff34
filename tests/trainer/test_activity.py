"""What a trace is told of the neurons behind it, against the neurons' equations and e-prop written out."""

from dataclasses import FrozenInstanceError

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

from sj_online.neuron import EMPFNode
from sj_online.testing import assert_live, check_rule, rule_gradient
from sj_online.trainer import NDOT, OTTT, TracedRule
from sj_online.trainer.synapse import Trace

T, N = 5, 3


def lif(tau: float = 2.0, **kwargs) -> neuron.LIFNode:
    return neuron.LIFNode(tau, v_reset=None, surrogate_function=surrogate.Sigmoid(4.0), **kwargs)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(layer.Linear(4, 6), lif(decay_input=False), layer.Linear(6, 5), lif(4.0), layer.Linear(5, 3))
    for synapse in net[::2]:
        nn.init.normal_(synapse.weight, 0.4, 0.6)
    return net.double()


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return 2 * torch.rand(T, N, 4, dtype=torch.float64), torch.tensor([0, 1, 2])


def make(rule: type, net: nn.Module):
    return rule(net, torch.optim.SGD(net.parameters(), lr=0.1))


class Looking(Trace):
    """Keeps what it was told, of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.told = []

    def gradients(self, grad_output):
        self.told.append(self.neurons)
        return super().gradients(grad_output)


class Watching(TracedRule):
    paper = "none"
    exact = False
    watches_neurons = True

    def synapse(self, place):
        return Looking()


class NotWatching(Watching):
    watches_neurons = False


class EProp(TracedRule):
    """The eligibility of e-prop's LIF (Bellec et al. 2020): the spike's surrogate times the filtered input."""

    paper = "e-prop"
    exact = False
    watches_neurons = True

    def synapse(self, place):
        return ThreeFactor() if place.role != "readout" else None


class ThreeFactor(Trace):
    """The learning signal, fixed to 1, times the surrogate times the trace."""

    def gradients(self, grad_output):
        (activity,) = self.neurons
        return self.call.grad_input(grad_output), self.call.grad_weight(activity.surrogate), None


@pytest.mark.parametrize("mode", "sm")
def test_the_activities_are_those_of_the_neurons_equation(mode):
    net, (x, y) = network(), batch()
    functional.set_step_mode(net, mode)
    rule = make(Watching, net)
    rule_gradient(rule, x, y)
    v = torch.zeros(N, 6).double()
    told = rule.traces["0"].told
    assert len(told) == T
    for x_t, (activity,) in zip(x, told, strict=True):
        current = net[0](x_t[None] if mode == "m" else x_t).detach().view(N, 6)
        u = 0.5 * v + current
        sig = torch.sigmoid(4 * (u - 1))
        s = (u >= 1).double()
        v = u - s
        assert activity.name == "1"
        expected = (current, v, s, 4 * sig * (1 - sig))
        got = (activity.input, activity.v, activity.spike, activity.surrogate)
        for a, e in zip(got, expected, strict=True):
            assert a.shape == ((1, N, 6) if mode == "m" and a is not activity.v else (N, 6))
            torch.testing.assert_close(a.view(N, 6), e, rtol=0, atol=1e-12)
            assert not a.requires_grad
    with pytest.raises(FrozenInstanceError):
        activity.v = None
    assert_live([torch.stack([activity.spike for (activity,) in told])])


def test_the_surrogate_has_the_factor_of_the_input():
    net, (x, y) = network(), batch()
    rule = make(Watching, net)
    rule_gradient(rule, x[:1], y)
    ((activity,),) = rule.traces["2"].told
    sig = torch.sigmoid(4 * (activity.input / 4 - 1))
    torch.testing.assert_close(activity.surrogate, sig * (1 - sig), rtol=0, atol=1e-12)  # 4 of the surrogate, 1/4


def test_a_three_factor_rule_is_its_equation():
    net, (x, y) = network(), batch()
    got = rule_gradient(make(EProp, net), x, y)
    v, a, expected = 0.0, 0.0, 0.0
    for x_t in x:
        a = 0.5 * a + x_t
        u = 0.5 * v + net[0](x_t).detach()
        sig = torch.sigmoid(4 * (u - 1))
        v = u - (u >= 1).double()
        expected = expected + (4 * sig * (1 - sig)).t() @ a
    torch.testing.assert_close(got["0.weight"], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("node", [lif, EMPFNode])
def test_watching_changes_no_gradient(node):
    net, (x, y) = network(), batch()
    net[1] = node().double()
    torch.testing.assert_close(
        rule_gradient(make(Watching, net), x, y), rule_gradient(make(NotWatching, net), x, y), rtol=0, atol=0
    )


def test_nothing_is_recorded_unless_asked_for():
    net, (x, y) = network(), batch()
    rule = make(NotWatching, net)
    rule_gradient(rule, x, y)
    assert all(neurons == () for trace in rule.traces.values() for neurons in trace.told)
    watching = make(Watching, net)
    rule_gradient(watching, x, y)
    assert all(len(neurons) == 1 for trace in watching.traces.values() for neurons in trace.told)
    assert all(trace.neurons == () for trace in watching.traces.values()) and not watching.recorders


def test_where_nothing_before_a_neuron_learns_it_is_watched_all_the_same():
    net, (x, y) = network(), batch()
    net[0].requires_grad_(False)
    rule = make(Watching, net)
    rule_gradient(rule, x, y)
    assert_live([activity.surrogate for neurons in rule.traces["4"].told for activity in neurons])
    told = rule.traces["2"].told
    assert_live([activity.surrogate for (activity,) in told])
    assert not rule.traces["0"].told


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.node, self.out = layer.Linear(4, 4), lif(decay_input=False), layer.Linear(4, 3)

    def forward(self, x):
        s = self.node(self.fc(x))
        s += self.node(s)  # in place: what was recorded must not change with it
        return self.out(s)


def test_every_call_of_a_neuron_is_an_activity_and_a_copy():
    torch.manual_seed(0)
    net, (x, y) = CalledTwice().double(), batch()
    nn.init.normal_(net.fc.weight, 0.4, 0.6)
    rule = make(Watching, net)
    rule_gradient(rule, x, y)
    first, second = rule.traces["fc"].told[0]
    assert (first.name, second.name) == ("node", "node")
    torch.testing.assert_close(second.input, first.spike, rtol=0, atol=0)
    assert set(first.spike.unique().tolist()) <= {0.0, 1.0}
    assert_live(first.spike)


def test_a_compiled_network_is_watched():
    net, (x, y) = network(), batch()
    rules = [make(Watching, each) for each in (net, torch.compile(net, backend="eager"))]
    told = []
    for rule in rules:
        rule_gradient(rule, x, y)
        (trace,) = (trace for name, trace in rule.traces.items() if name.endswith("0"))
        told.append(torch.stack([activity.surrogate for (activity,) in trace.told]))
    torch.testing.assert_close(told[0], told[1], rtol=0, atol=0)


class WatchingNDOT(NDOT):
    watches_neurons = True


def test_ndot_watches_too():
    net, (x, y) = network(), batch()
    rules = make(WatchingNDOT, net), make(NDOT, net)
    torch.testing.assert_close(*(rule_gradient(rule, x, y) for rule in rules), rtol=0, atol=0)
    windows = rules[0].gradients(x, y)
    next(windows)
    assert [trace.neurons[0].name for trace in rules[0].traces.values()] == ["3", "3"]
    windows.close()


def test_a_watching_rule_passes_the_public_checks():
    class Ours(OTTT):
        watches_neurons = True

    check_rule(Ours)
