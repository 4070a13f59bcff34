"""The leak of a trace: one, the mean of several that were learnt, or what the user says."""

import copy
import re

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn
from trace_oracles import D, Oracle, assert_traced, batch, by_hand, gradients, lif, rule

from sj_online.model import lmh_resnet18
from sj_online.neuron import EMPFNode
from sj_online.trainer import OTTT, SLTT


class Both(nn.Module):
    """A synapse that sends its current to two neurons."""

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.n0, self.fc, self.a, self.b, self.o = lif(4.0), nn.Linear(D, 5), a, b, nn.Linear(5, 3)
        self.double()
        nn.init.normal_(self.fc.weight, 0.2, 0.7)

    def forward(self, x: Tensor) -> Tensor:
        current = self.fc(self.n0(x))
        return self.o(self.a(current) + self.b(current))


def plif(tau: float = 2.0) -> neuron.ParametricLIFNode:
    return neuron.ParametricLIFNode(tau, decay_input=False, v_threshold=0.5, v_reset=None, detach_reset=True)


def with_leak(net: Both, leak: float, readout: float) -> Both:
    oracle = copy.deepcopy(net)
    oracle.fc, oracle.o = Oracle(oracle.fc, leak), Oracle(oracle.o, readout)
    return oracle


def test_equal_leaks_of_separate_parameters_are_one():
    torch.manual_seed(0)
    net = Both(plif(4.0), plif(4.0))
    assert net.a.w is not net.b.w
    leak = 1 - net.a.w.sigmoid().item()
    assert_traced(net, with_leak(net, leak, leak), batch(), "fc.weight", "o.weight")
    assert "hidden   traced, leak 0.75" in repr(rule_looked(net))


def rule_looked(net: nn.Module) -> OTTT:
    made = OTTT(net, torch.optim.SGD(net.parameters(), 0.0))
    made.train_step(*batch())
    return made


def learnt_apart(by: float) -> Both:
    torch.manual_seed(0)
    net = Both(plif(), plif())
    with torch.no_grad():
        net.b.w -= by
    return net


def test_leaks_that_are_near_each_other_count_by_their_mean():
    net = learnt_apart(0.2)
    leaks = [1 - node.w.sigmoid().item() for node in (net.a, net.b)]
    assert 0.01 < leaks[1] - leaks[0] < 0.1
    mean = sum(leaks) / 2
    assert_traced(net, with_leak(net, mean, mean), batch(), "fc.weight")
    assert f"traced, mean leak {mean:.4g} ({leaks[0]:.4g} to {leaks[1]:.4g}) of a and 1 more" in repr(rule_looked(net))
    with pytest.raises(ValueError, match="'fc', 'o' need one leak each; 'fc' sends its current to 'a'"):
        rule_looked(learnt_apart(0.8))


def test_leaks_learnt_apart_stay_a_mean_in_a_resumed_rule_and_in_a_changed_network():
    net = Both(plif(), plif())
    made = rule_looked(net)
    with torch.no_grad():
        net.b.w -= 2.0
    leaks = [1 - node.w.sigmoid().item() for node in (net.a, net.b)]
    net.extra = nn.Linear(2, 2)
    made.train_step(*batch())
    resumed = OTTT(net, torch.optim.SGD(net.parameters(), 0.0))
    resumed.load_state_dict(made.state_dict())
    resumed.train_step(*batch())
    expected = by_hand(with_leak(net, sum(leaks) / 2, sum(leaks) / 2), *batch())
    for each in (made, resumed):
        net.zero_grad()
        for _ in each.gradients(*batch()):
            pass
        torch.testing.assert_close(net.fc.weight.grad, expected["fc.weight"], rtol=0, atol=1e-12)
        assert f"mean leak {sum(leaks) / 2:.4g} ({leaks[0]:.4g} to {leaks[1]:.4g})" in repr(each)


@pytest.mark.parametrize("decay", [0.5, 0.25, {"fc": 0.5, "o": 0.5}])
def test_one_value_for_all(decay):
    torch.manual_seed(0)
    net = Both(lif(4.0), lif(1.5))
    with pytest.raises(ValueError, match="'fc', 'o' need one leak each"):
        gradients(net, *batch())
    value = decay if isinstance(decay, float) else 0.5
    assert_traced(net, with_leak(net, value, value), batch(), "fc.weight", "o.weight", trace_decay=decay)


def test_a_value_out_of_range():
    net = Both(lif(), lif())
    for decay in (1.5, {"fc": -1.0}):
        with pytest.raises(ValueError, match="trace_decay"):
            rule(net, trace_decay=decay)


def test_lmh_names_all_synapses_at_once_with_a_line_that_works():
    net = lmh_resnet18(num_classes=3, width=4)
    xy = torch.rand(2, 3, 32, 32), torch.tensor([0, 2])
    with pytest.raises(ValueError, match="need one leak each") as error:
        rule(net, num_steps=2).train_step(*xy)
    given = eval(re.search(r"give trace_decay=(\{.*?\})", str(error.value)).group(1))
    assert "\n" not in str(error.value)
    for decay in (given, float(re.search(r"one for all, trace_decay=(\S+)", str(error.value)).group(1))):
        made = rule(net, num_steps=2, trace_decay=decay)
        made.train_step(*xy)
        synapses = [n for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        assert repr(made).count(" given\n") == len(given) == len(synapses) - 1  # the stem is not traced


def test_leaks_of_empf_follow_training():
    net = nn.Sequential(layer.Linear(D, 5), EMPFNode(), layer.Linear(5, 3)).double()
    made = rule(net, trace_input=True)
    made.train_step(*batch())
    with torch.no_grad():
        net[1].raw_decay += 1.0
    leak = net[1].decay.item()
    oracle = copy.deepcopy(net)
    oracle[0], oracle[2] = Oracle(oracle[0], leak), Oracle(oracle[2], leak)
    expected = by_hand(oracle, *batch())
    net.zero_grad()
    for _ in made.gradients(*batch()):
        pass
    got = net[0].weight.grad.clone()
    torch.testing.assert_close(got, expected["0.weight"], rtol=0, atol=1e-12)
    assert (gradients(net, *batch(), rule=SLTT)["0.weight"] - got).abs().max() > 1e-4
