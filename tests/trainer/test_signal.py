"""Feedback in the place of gradients, on every rule of one step, in float64."""

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, memopt, neuron, surrogate
from torch import Tensor, nn

from sj_online.testing import assert_differ, assert_live, rule_gradient
from sj_online.trainer import BPTT, FPTT, NDOT, OTTT, SLTT, STOL, RandomBP

T, N = 5, 4
OF_ONE_STEP = {
    "sltt": SLTT,
    "ottt": OTTT,
    "ndot": NDOT,
    "fptt": FPTT,
    "random": lambda net, opt, **kwargs: RandomBP(net, opt, k=T, **kwargs),
}


def lif() -> neuron.LIFNode:
    return neuron.LIFNode(2.0, False, v_reset=None, detach_reset=True, surrogate_function=surrogate.Sigmoid(4.0))


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(layer.Linear(8, 7), lif(), layer.Linear(7, 6), lif(), layer.Linear(6, 3)).double()
    for synapse in net[::2]:
        nn.init.normal_(synapse.weight, 0.2, 0.5)
    return net


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return 2 * torch.rand(T, N, 8, dtype=torch.float64), torch.randint(3, (N,))


def make(rule, net: nn.Module, **kwargs):
    return rule(net, torch.optim.SGD(net.parameters(), lr=0.1), **kwargs)


def by_hand(net: nn.Sequential, x: Tensor, y: Tensor, B: dict[str, Tensor]) -> dict[str, Tensor]:
    """SLTT whose hidden layers get (softmax - onehot) B, each alone."""
    nets = [net[i] for i in (0, 2, 4)]
    grads = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    v: list[Tensor | float] = [0.0, 0.0]
    for x_t in x:
        s, slope = [x_t], []
        for l in range(2):
            u = F.linear(s[-1], nets[l].weight, nets[l].bias).detach() + 0.5 * v[l]
            sig = torch.sigmoid(4 * (u - 1))
            s.append((u >= 1).to(x.dtype))
            slope.append(4 * sig * (1 - sig))
            v[l] = u - s[-1]
        error = (F.linear(s[-1], nets[2].weight, nets[2].bias).softmax(-1) - F.one_hot(y, 3)).detach() / N / T
        for l in range(3):
            g = error if l == 2 else error @ B[str(2 * l + 1)] * slope[l]
            grads[f"{2 * l}.weight"] += g.t() @ s[l]
            grads[f"{2 * l}.bias"] += g.sum(0)
    return grads


@pytest.mark.parametrize("mode", "sm")
def test_direct_feedback_sends_the_outputs_error_to_every_layer(mode):
    net, (x, y) = mlp(), batch()
    functional.set_step_mode(net, mode)
    rule = make(SLTT, net, feedback="random", generator=torch.Generator().manual_seed(3))
    got = rule_gradient(rule, x, y)
    B = rule.feedback.matrices
    assert {name: tuple(b.shape) for name, b in B.items()} == {"1": (3, 7), "3": (3, 6)}
    expected = by_hand(net, x, y, B)
    assert_live(expected)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    symmetric = rule_gradient(make(SLTT, net), x, y)
    torch.testing.assert_close([got["4.weight"], got["4.bias"]], [symmetric["4.weight"], symmetric["4.bias"]])
    assert_differ([got["0.weight"], got["2.weight"]], [symmetric["0.weight"], symmetric["2.weight"]])


@pytest.mark.parametrize("name", OF_ONE_STEP)
def test_the_readouts_weight_as_feedback_of_the_last_layer_is_the_gradient(name):
    net, (x, y) = mlp(), batch()
    rule = OF_ONE_STEP[name]
    own = rule_gradient(make(rule, net), x, y)
    same = rule_gradient(make(rule, net, feedback={"3": net[4].weight}), x, y)
    torch.testing.assert_close(same, own, rtol=0, atol=1e-12)
    other = rule_gradient(make(rule, net, feedback={"3": -net[4].weight}), x, y)
    assert_differ([other["0.weight"], other["2.weight"]], [own["0.weight"], own["2.weight"]])


@pytest.mark.parametrize("name", OF_ONE_STEP)
def test_a_run_resumes_with_its_matrices(name):
    net, (x, y) = mlp(), batch()
    rules = [
        make(OF_ONE_STEP[name], net, feedback="random", generator=torch.Generator().manual_seed(s)) for s in (3, 4)
    ]
    gradients = [rule_gradient(rule, x, y) for rule in rules]
    assert_differ(gradients[0]["0.weight"], gradients[1]["0.weight"])
    rules[1].load_state_dict(rules[0].state_dict())
    assert torch.equal(rules[0].generator.get_state(), rules[1].generator.get_state())
    torch.testing.assert_close(rule_gradient(rules[1], x, y), gradients[0], rtol=0, atol=0)


class Two(nn.Module):
    """Two outputs, of which the loss may take one."""

    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        o = self.body(x)
        return {"a": o[:, :1], "b": o[:, 1:]}


def test_outputs_in_a_dict_are_one_vector():
    net, (x, y) = Two(), batch()
    B = {"body.1": torch.randn(3, 7).double(), "body.3": torch.randn(3, 6).double()}
    got = rule_gradient(
        make(SLTT, net, feedback=B, loss_fn=lambda o, y: F.cross_entropy(torch.cat([o["a"], o["b"]], 1), y)), x, y
    )
    expected = by_hand(net.body, x, y, {name[-1]: b for name, b in B.items()})
    torch.testing.assert_close({name[5:]: g for name, g in got.items()}, expected, rtol=0, atol=1e-12)
    half = rule_gradient(make(SLTT, net, feedback=B, loss_fn=lambda o, y: o["b"].sum() / N), x, y)
    only = {name: b.clone().index_fill_(0, torch.tensor(0), 0.0) for name, b in B.items()}
    without = rule_gradient(make(SLTT, net, feedback=only, loss_fn=lambda o, y: o["b"].sum() / N), x, y)
    assert_live(half["body.0.weight"])
    torch.testing.assert_close(half, without, rtol=0, atol=1e-12)


def test_steps_that_do_not_learn_send_nothing():
    net, (x, y) = mlp(), batch()
    B = {"1": torch.randn(3, 7).double(), "3": torch.randn(3, 6).double()}
    last = rule_gradient(make(SLTT, net, feedback=B, learn_last=1), x, y)
    expected = by_hand(net, x, y, B)
    before = by_hand(net, x[:-1], y, B)
    expected = {name: g - before[name] for name, g in expected.items()}
    torch.testing.assert_close(last, expected, rtol=0, atol=1e-12)


def test_memory_is_that_of_one_step_and_a_stream_learns():
    net, (x, y) = mlp(), batch()
    before = net[0].weight.clone()
    for _ in make(SLTT, net, feedback="random").stream((x_t, y) for x_t in x):
        pass
    assert (net[0].weight != before).any()


@pytest.mark.parametrize(
    ("feedback", "message"),
    [
        ("fixed", "feedback='fixed' is not one of 'symmetric', 'random'"),
        ({"2": torch.ones(3, 6)}, "feedback names '2', which is none of the neurons 1, 3"),
        (
            {"3": torch.ones(6, 3)},
            r"feedback\['3'\] has the shape \(6, 3\), but is to be \[outputs, units\] = \(3, 6\)",
        ),
    ],
)
def test_what_does_not_fit_is_named(feedback, message):
    net, (x, y) = mlp(), batch()
    with pytest.raises(ValueError, match=message):
        make(SLTT, net, feedback=feedback).train_step(x, y)


def test_rules_of_more_steps_refuse():
    with pytest.raises(ValueError, match="feedback='random', but STOL has only 'symmetric'"):
        make(STOL, mlp(), feedback="random")
    with pytest.raises(TypeError, match="feedback"):
        make(BPTT, mlp(), feedback="random")


class Block(nn.Sequential):
    pass


def test_memopt_is_refused():
    (x, y), plain = batch(), mlp()
    net = nn.Sequential(Block(plain[0], plain[1]), plain[4])
    net[1] = layer.Linear(7, 3).double()
    memopt.optimize_memory(net, Block, example_forward=lambda net: net(x[0]), level=1)
    functional.reset_net(net)
    with pytest.raises(ValueError, match="'0' is run again in backward"):
        make(SLTT, net, feedback="random").train_step(x, y)
