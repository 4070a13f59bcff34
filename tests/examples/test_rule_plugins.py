"""The two rules of examples/, against gradients written out."""

import re
import runpy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

from sj_online.testing import assert_differ, assert_live, check_rule, rule_gradient
from sj_online.trainer import OTTT, SLTT

EXAMPLES = Path(__file__).parents[2] / "examples"
FeedbackAlignment = runpy.run_path(str(EXAMPLES / "feedback_alignment.py"))["FeedbackAlignment"]
local_losses = runpy.run_path(str(EXAMPLES / "local_losses.py"))
LocalLosses, readout = local_losses["LocalLosses"], local_losses["readout"]
T, N = 5, 4


def lif() -> neuron.LIFNode:
    return neuron.LIFNode(2.0, False, v_reset=None, detach_reset=True, surrogate_function=surrogate.Sigmoid(4.0))


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(layer.Linear(8, 7), lif(), layer.Linear(7, 6), lif(), layer.Linear(6, 3)).double()
    for synapse in net[::2]:
        nn.init.normal_(synapse.weight, 0.2, 0.5)
    return net


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (2, 2, 2)), layer.Conv2d(2, 4, 3, padding=1), layer.BatchNorm2d(4), lif(),
        layer.Conv2d(4, 5, 3, padding=1, groups=1, bias=False), layer.BatchNorm2d(5), lif(),
        layer.Flatten(), layer.Linear(20, 3),
    ).double()  # fmt: skip


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return 2 * torch.rand(T, N, 8, dtype=torch.float64), torch.randint(3, (N,))


def make(rule: type, net: nn.Module, **kwargs):
    return rule(net, torch.optim.SGD(net.parameters(), lr=0.1), **kwargs)


def by_hand(net: nn.Sequential, x: Tensor, y: Tensor, B: dict[str, Tensor]) -> dict[str, Tensor]:
    """Three linear and two LIF layers: traces at all but the first, and B in the place of W backwards."""
    W, b = [m.weight.detach() for m in net[::2]], [m.bias.detach() for m in net[::2]]
    back = [None, B["2"], B["4"]]
    grads = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    v, a = [0.0, 0.0], [0.0, 0.0, 0.0]
    for x_t in x:
        s, slope = [x_t], []
        for l in range(2):
            u = s[-1] @ W[l].t() + b[l] + 0.5 * v[l]
            sig = torch.sigmoid(4 * (u - 1))
            s.append((u >= 1).to(x.dtype))
            slope.append(4 * sig * (1 - sig))
            v[l] = u - s[-1]
        delta = ((s[-1] @ W[2].t() + b[2]).softmax(-1) - F.one_hot(y, 3)) / N / T
        for l in (2, 1, 0):
            a[l] = (0.5 * a[l] if l else 0) + s[l]
            grads[f"{2 * l}.weight"] += delta.t() @ a[l]
            grads[f"{2 * l}.bias"] += delta.sum(0)
            if l:
                delta = (delta @ back[l]) * slope[l - 1]
    return grads


def test_feedback_alignment_sends_errors_through_its_own_matrices():
    net, (x, y) = mlp(), batch()
    rule = make(FeedbackAlignment, net)
    got = rule_gradient(rule, x, y)
    B = {name: trace.B for name, trace in rule.traces.items()}
    assert set(B) == {"2", "4"} and B["4"].shape == (3, 6)
    expected = by_hand(net, x, y, B)
    assert_live(expected)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    own = by_hand(net, x, y, {"2": net[2].weight.detach(), "4": net[4].weight.detach()})
    assert_differ([got[name] for name in ("0.weight", "2.weight")], [own[name] for name in ("0.weight", "2.weight")])


@pytest.mark.parametrize("network", [mlp, convolutions])
def test_with_the_weights_as_feedback_it_is_ottt(network):
    net, (x, y) = network(), batch()
    rule, ottt = make(FeedbackAlignment, net), rule_gradient(make(OTTT, net), x, y)
    random = rule_gradient(rule, x, y)
    first, last = list(ottt)[0], list(ottt)[-1]
    assert_differ(random[first], ottt[first])
    torch.testing.assert_close(random[last], ottt[last], rtol=0, atol=1e-12)  # nothing was sent back to the readout
    for name, trace in rule.traces.items():
        trace.B = net.get_submodule(name).weight.detach()
    torch.testing.assert_close(rule_gradient(rule, x, y), ottt, rtol=0, atol=1e-12)


def test_the_matrices_are_each_its_own_and_those_of_a_resumed_run():
    net, (x, y) = nn.Sequential(*mlp()[:2], layer.Linear(7, 7).double(), lif(), layer.Linear(7, 7).double()), batch()
    rules = [make(FeedbackAlignment, net) for _ in range(2)]
    for rule in rules:
        rule_gradient(rule, x, y)
    first, again = ({name: trace.B for name, trace in rule.traces.items()} for rule in rules)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert_differ(first["2"], first["4"])


@pytest.mark.parametrize("mode", "sm")
def test_local_losses_reach_their_own_layer_only(mode):
    net, (x, y) = mlp(), batch()
    functional.set_step_mode(net, mode)
    got = rule_gradient(make(LocalLosses, net), x, y)
    expected = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    functional.reset_net(net)
    functional.set_step_mode(net, "s")
    like = torch.zeros(1, N, 3)
    for x_t in x:
        h = x_t
        for i in (0, 2, 4):
            h = net[i](h.detach())
            if i < 4:
                h = net[i + 1](h)
            output = h if i == 4 else readout(str(i + 1), h, like)[0]
            own = [net[i].weight, net[i].bias]
            for name, g in zip(
                ("weight", "bias"), torch.autograd.grad(F.cross_entropy(output, y) / T, own), strict=True
            ):
                expected[f"{i}.{name}"] += g
        functional.detach_net(net)
    assert_live(expected)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    sltt = rule_gradient(make(SLTT, net), x, y)
    assert_differ({name: got[name] for name in expected if name[0] != "4"}, {n: sltt[n] for n in got if n[0] != "4"})


def test_the_readouts_of_layers_of_one_size_differ():
    s, like = torch.eye(4), torch.zeros(1, 4, 3)
    assert_differ(readout("1", s, like), readout("3", s, like))
    assert torch.equal(readout("1", s, like), readout("1", s, like))


@pytest.mark.parametrize("rule", [FeedbackAlignment, LocalLosses])
def test_the_rules_pass_the_public_checks(rule):
    check_rule(rule)


def test_the_matrices_have_the_spread_of_an_initialised_weight():
    net = nn.Sequential(layer.Linear(8, 9), lif(), layer.Linear(9, 400), lif(), layer.Conv1d(100, 3, 4)).double()
    net.insert(4, nn.Unflatten(1, (100, 4)))
    net.append(nn.Flatten())
    rule = make(FeedbackAlignment, net)
    rule_gradient(rule, *batch())
    for name, inputs in (("2", 9), ("5", 400)):
        assert rule.traces[name].B.std() == pytest.approx(inputs**-0.5, rel=0.1)


@pytest.mark.parametrize("name", ["feedback_alignment", "local_losses"])
def test_the_scripts_are_short_and_learn(name, capsys):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 70
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    losses = [float(loss) for loss in re.findall(r"\b\d\.\d{2,3}\b", capsys.readouterr().out.partition("Feedback")[0])]
    assert len(losses) >= 5 and losses[-1] < losses[0] / 2


def test_the_readouts_have_the_spread_of_an_initialised_weight():
    B = readout("1", torch.eye(400), torch.zeros(1, 400, 3))
    assert B.std() == pytest.approx(400**-0.5, rel=0.1)
