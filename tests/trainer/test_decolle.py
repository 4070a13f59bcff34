"""DECOLLE: every layer against backpropagation through time of its own loss, in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, memopt, neuron, surrogate
from torch import Tensor, nn

from sj_online.analysis import SavedBytes
from sj_online.loss import one_hot_smooth_l1
from sj_online.testing import assert_differ, assert_live, rule_gradient
from sj_online.trainer import DECOLLE, SLTT

T, N = 6, 4


def lif() -> neuron.LIFNode:
    return neuron.LIFNode(4.0, False, v_reset=None, detach_reset=True, surrogate_function=surrogate.Sigmoid(4.0))


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(layer.Linear(8, 7), lif(), layer.Linear(7, 6), lif(), layer.Linear(6, 3)).double()
    for synapse in net[::2]:
        nn.init.normal_(synapse.weight, 0.2, 0.5)
    return net


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return 2 * torch.rand(T, N, 8, dtype=torch.float64), torch.randint(3, (N,))


def make(net: nn.Module, rule=DECOLLE, **kwargs):
    return rule(net, torch.optim.SGD(net.parameters(), lr=0.1), **kwargs)


def by_autograd(net: nn.Sequential, x: Tensor, y: Tensor, G: dict[str, Tensor], burn_in: int = 0, cut: bool = False):
    """Each layer in a graph of its own over all steps; ``cut``: over one step."""
    grads = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    s_in = x
    for i in (0, 2, 4):
        functional.reset_net(net)
        outputs, spikes = [], []
        for s_t in s_in:
            h = net[i](s_t.detach())
            if i < 4:
                spikes.append(net[i + 1](h))
                h = spikes[-1] @ G[str(i + 1)]
            outputs.append(h)
            if cut:
                functional.detach_net(net)
        loss = sum(one_hot_smooth_l1(o, y) for o in outputs[burn_in:])
        for name, g in zip(("weight", "bias"), torch.autograd.grad(loss, list(net[i].parameters())), strict=True):
            grads[f"{i}.{name}"] = g
        s_in = spikes
    functional.reset_net(net)
    return grads


@pytest.mark.parametrize("mode", "sm")
@pytest.mark.parametrize("burn_in", [0, 2])
def test_each_layer_gets_the_exact_gradient_of_its_own_loss(burn_in, mode):
    net, (x, y) = mlp(), batch()
    functional.set_step_mode(net, mode)
    rule = make(net, burn_in=burn_in)
    got = rule_gradient(rule, x, y)
    functional.set_step_mode(net, "s")
    expected = by_autograd(net, x, y, rule.readouts.matrices, burn_in)
    assert_live(expected)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    hidden = ["0.weight", "2.weight"]
    others = by_autograd(net, x, y, rule.readouts.matrices, burn_in, cut=True)
    assert_differ([got[name] for name in hidden], [others[name] for name in hidden])
    assert_differ(got, by_autograd(net, x, y, rule.readouts.matrices, 2 - burn_in))


def test_without_traces_it_is_of_the_step_alone():
    net, (x, y) = mlp(), batch()
    rule = make(net, trace=False)
    got = rule_gradient(rule, x, y)
    torch.testing.assert_close(got, by_autograd(net, x, y, rule.readouts.matrices, cut=True), rtol=0, atol=1e-12)
    one = rule_gradient(make(net, trace={"0": False}), x, y)
    torch.testing.assert_close(one["0.weight"], got["0.weight"], rtol=0, atol=1e-12)
    assert_differ(one["2.weight"], got["2.weight"])


def test_losses_are_summed_over_layers_and_steps_unless_asked_otherwise():
    net, (x, y) = mlp(), batch()
    total = rule_gradient(make(net), x, y)
    mean = rule_gradient(make(net, step_scale="mean"), x, y)
    torch.testing.assert_close({n: g * T for n, g in mean.items()}, total, rtol=0, atol=1e-12)
    rule = make(net)
    windows = list(rule.gradients(x, y))
    assert len(windows) == T
    functional.reset_net(net)
    with torch.no_grad():
        s1 = net[1](net[0](x[0]))
        s2 = net[3](net[2](s1))
        outputs = [s1 @ rule.readouts.matrices["1"], s2 @ rule.readouts.matrices["3"], net[4](s2)]
    torch.testing.assert_close(windows[0].loss, sum(one_hot_smooth_l1(o, y) for o in outputs), rtol=0, atol=1e-12)


def test_with_a_loss_at_the_last_layer_alone_the_others_get_nothing():
    net, (x, y) = mlp(), batch()
    rule = make(net)
    got = rule_gradient(rule, x, y)
    rule.readouts.matrices["1"].zero_()
    alone = rule_gradient(rule, x, y)
    assert not alone["0.weight"].any() and not alone["0.bias"].any()
    rest = [name for name in got if name[0] != "0"]
    torch.testing.assert_close({n: alone[n] for n in rest}, {n: got[n] for n in rest}, rtol=0, atol=0)
    assert_live(got["0.weight"])


class Residual(nn.Module):
    """Convolutions with batch norm, a residual branch and pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = layer.Conv2d(2, 8, 3), layer.Conv2d(8, 8, 3, padding=1), layer.Conv2d(8, 8, 1)
        self.n0, self.n1, self.norm, self.n2 = layer.BatchNorm2d(8), lif(), layer.BatchNorm2d(8), lif()
        self.last, self.n3 = layer.Conv2d(8, 8, 3, padding=1), lif()
        self.pool, self.fc = layer.AvgPool2d(2), layer.Linear(72, 3)

    def forward(self, x: Tensor) -> Tensor:
        s = self.n1(self.n0(self.stem(x)))
        s = self.n3(self.last(self.n2(self.norm(self.a(s)) + self.b(s))))
        return self.fc(self.pool(s).flatten(-3))


def peak(rule, steps: int, **kwargs) -> int:
    torch.manual_seed(0)
    net = Residual()
    x, y = 2 * torch.rand(steps, N, 2, 8, 8), torch.tensor([0, 2, 1, 1])
    made = make(net, rule, **kwargs)
    with SavedBytes(exclude=[*net.parameters(), x]) as saved:
        made.train_step(x, y)
    return saved.peak


def test_memory_is_below_that_of_one_step_of_the_network_at_any_length():
    assert peak(DECOLLE, 4) == peak(DECOLLE, 16) < 0.75 * peak(SLTT, 4)


@pytest.mark.parametrize("mode", "sm")
def test_a_residual_network_learns(mode):
    torch.manual_seed(0)
    net = Residual()
    functional.set_step_mode(net, mode)
    x, y = 2 * torch.rand(N, 2, 8, 8), torch.tensor([0, 2, 1, 1])
    rule = DECOLLE(net, torch.optim.Adam(net.parameters(), 1e-2), num_steps=4)
    before = [p.detach().clone() for p in net.parameters()]
    losses = [rule.train_step(x, y).loss.item() for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]
    assert all((p != old).any() for p, old in zip(net.parameters(), before, strict=True))


def test_blocks_may_have_heads_of_their_own_that_learn():
    net, (x, y) = mlp(), batch()
    torch.manual_seed(2)
    head = nn.Linear(6, 3).double()
    rule = DECOLLE(
        net, torch.optim.SGD([*net.parameters(), *head.parameters()], 0.1), readouts={"3": head},
        loss_fn=F.cross_entropy, trace=False, update="sequence",
    )  # fmt: skip
    got = rule_gradient(rule, x, y)
    of_head = head.weight.grad.clone()
    block = nn.Sequential(*copy.deepcopy(net)[:4], copy.deepcopy(head))
    expected = rule_gradient(make(block, SLTT, step_scale="sum"), x, y)
    torch.testing.assert_close(of_head, expected["4.weight"], rtol=0, atol=1e-12)
    names = ["0.weight", "0.bias", "2.weight", "2.bias"]  # the block's layers learn through each other
    torch.testing.assert_close([got[n] for n in names], [expected[n] for n in names], rtol=0, atol=1e-12)
    whole = rule_gradient(make(net, SLTT, step_scale="sum"), x, y)
    torch.testing.assert_close(got["4.weight"], whole["4.weight"], rtol=0, atol=1e-12)
    before = head.weight.detach().clone()
    rule.train_step(x, y)
    assert_differ(head.weight, before)


class Shortcut(nn.Module):
    """The current of the first layer enters the second neuron too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.n1, self.b, self.n2, self.out = nn.Linear(8, 7), lif(), nn.Linear(7, 7), lif(), nn.Linear(7, 3)
        nn.init.normal_(self.a.weight, 0.2, 0.5)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        current = self.a(x)
        return self.out(self.n2(current + self.b(self.n1(current))))


def test_a_current_that_enters_two_neurons_learns_from_both():
    net, (x, y) = Shortcut(), batch()
    rule = make(net, trace=False)
    got = rule_gradient(rule, x, y)
    G = rule.readouts.matrices
    functional.reset_net(net)
    expected = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    first = torch.zeros_like(net.a.weight)
    for x_t in x:
        current = net.a(x_t)
        s1 = net.n1(current)
        s2 = net.n2(current + net.b(s1.detach()))
        losses = [one_hot_smooth_l1(o, y) for o in (s1 @ G["n1"], s2 @ G["n2"], net.out(s2.detach()))]
        first += torch.autograd.grad(losses[0], net.a.weight, retain_graph=True)[0]
        for name, g in zip(expected, torch.autograd.grad(sum(losses), list(net.parameters())), strict=True):
            expected[name] += g
        functional.detach_net(net)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert_differ(got["a.weight"], first)


@pytest.mark.parametrize("heads", [False, True])
def test_readouts_belong_to_the_rule_and_resume(heads):
    net, (x, y) = mlp(), batch()
    rules = []
    for seed in (3, 4):
        torch.manual_seed(seed)
        modules = {"1": nn.Linear(7, 3).double(), "3": nn.Linear(6, 3).double()}
        generator = torch.Generator().manual_seed(seed)
        rules.append(make(net, readouts=modules) if heads else make(net, generator=generator))
    first, other = (rule_gradient(rule, x, y) for rule in rules)
    assert_differ(first["0.weight"], other["0.weight"])
    rules[1].load_state_dict(rules[0].state_dict())
    torch.testing.assert_close(rule_gradient(rules[1], x, y), first, rtol=0, atol=0)
    assert not any("readout" in name for name in net.state_dict())


def test_a_spiking_output_has_a_readout_too():
    net, x, y = mlp()[:4], batch()[0], torch.tensor([0, 1, 2, 5])
    before = net[2].weight.detach().clone()
    assert make(net).train_step(x, y).output.shape == (N, 6)
    assert_differ(net[2].weight, before, 1e-7)


def test_a_stream_learns_behind_the_burn_in():
    net, (x, y) = mlp(), batch()
    before, moved = net[0].weight.detach().clone(), []
    for _ in make(net, burn_in=2).stream((x_t, y) for x_t in x):
        moved.append(bool((net[0].weight != before).any()))
    assert moved == [False, False, True, True, True, True]


class Block(nn.Sequential):
    pass


def test_what_it_cannot_do_is_named():
    net, (x, y) = mlp(), batch()
    for options, message in [
        ({"readouts": "learnt"}, "readouts='learnt' is not one of 'random'"),
        ({"readouts": {"0": nn.Linear(7, 3)}}, "'0' is none of the neurons 1, 3"),
        ({"burn_in": -1}, "burn_in=-1"),
        ({"feedback": "random"}, "DECOLLE has only 'symmetric'"),
    ]:
        with pytest.raises(ValueError, match=message):
            make(net, **options)
    with pytest.raises(ValueError, match="burn_in=6 leaves none of the T=6 steps"):
        make(net, burn_in=6).train_step(x, y)
    treated = nn.Sequential(Block(net[0], net[1]), layer.Linear(7, 3).double())
    memopt.optimize_memory(treated, Block, example_forward=lambda net: net(x[0]), level=1)
    functional.reset_net(treated)
    with pytest.raises(ValueError, match="'0' is run again in backward"):
        make(treated)
