"""What is not traced: said in the table, warned about once, or an error; and what is run again in backward."""

import copy

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer, memopt, neuron
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from trace_oracles import Between, D, Oracle, assert_traced, batch, by_hand, gradients, lif, rule

from sj_online.trainer import NDOT, SLTT


class Bilinear(nn.Module):
    """A product of two data with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.bi = nn.Bilinear(D, D, 5)

    def forward(self, s: Tensor) -> Tensor:
        return self.bi(s, s + 1)


class Cell(nn.Module):
    """A GRU cell that starts from nothing at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(D, 5)

    def forward(self, s: Tensor) -> Tensor:
        return self.cell(s)


class Einsum(nn.Module):
    """A bilinear product written as one einsum of three."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(5, D, D))

    def forward(self, s: Tensor) -> Tensor:
        return torch.einsum("ni,oij,nj->no", s, self.W, s)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (Bilinear, ["syn.bi.weight"]),
        (Cell, ["syn.cell.weight_ih"]),
        (Einsum, ["syn.W"]),
        (lambda: nn.GRUCell(D, 5), ["syn.weight_ih"]),
    ],
)
def test_what_is_not_linear_in_one_input_is_warned_about_once_and_listed_as_spike(make, names):
    torch.manual_seed(0)
    net = Between(make().double())
    made, (x, y) = rule(net), batch()
    with pytest.warns(UserWarning, match=f"not linear in one input.*: {', '.join(map(repr, names))}; their"):
        made.train_step(x, y)
    rows = repr(made).splitlines()
    for name in names:
        module = name.rpartition(".")[0] if make is not Einsum else name
        assert any(
            row.split()[0] in (name, module) and row.endswith("spike, not linear in one input") for row in rows
        ), repr(made)
    oracle = copy.deepcopy(net)
    oracle.o = Oracle(oracle.o)
    net.zero_grad()
    for _ in made.gradients(x, y):  # not a second time
        pass
    net_grads = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    expected = by_hand(oracle, x, y)
    for name, g in expected.items():
        torch.testing.assert_close(net_grads[name], g, rtol=0, atol=1e-12)


class SE(nn.Module):
    """Squeeze and excitation: two layers make a factor of their own input."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(D, 3), nn.Linear(3, D)

    def forward(self, s: Tensor) -> Tensor:
        return s * self.up(self.down(s).relu()).sigmoid()


@pytest.mark.parametrize("left_out", [("syn.down", "syn.up"), ("syn.up",), ("o",)])
def test_a_synapse_that_is_opted_out_has_the_gradient_of_the_spikes(left_out):
    torch.manual_seed(0)
    net = Between(SE().double())
    oracle = copy.deepcopy(net)
    for name in {"syn.down", "syn.up", "o"} - set(left_out):
        oracle.set_submodule(name, Oracle(oracle.get_submodule(name)))
    assert_traced(net, oracle, batch(), trace=dict.fromkeys(left_out, False))
    got, plain = gradients(net, *batch(), trace=dict.fromkeys(left_out, False)), gradients(net, *batch(), rule=SLTT)
    for name in ("syn.down", "syn.up", "o"):
        same = (got[f"{name}.weight"] - plain[f"{name}.weight"]).abs().max() < 1e-12
        assert bool(same) == (name in left_out)
    made = rule(net, trace=dict.fromkeys(left_out, False))
    made.train_step(*batch())
    assert repr(made).count("spike, opted out of the trace") == len(left_out)


class PastTheTrace(nn.Module):
    """A layer whose weight is used by itself, once the network has been looked at."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.n, self.o, self.m = lif(), nn.Linear(D, 3).double(), nn.Linear(D, 3).double()
        self.how, self.later = how, False

    def forward(self, x: Tensor) -> Tensor:
        s = self.n(x)
        if not self.later:
            return self.o(s) + self.m(s)
        if self.how == "linear":
            return self.o(s) + F.linear(s, self.m.weight)
        if self.how == "sum":
            return self.o(s) + (s[:, None] * self.m.weight).sum(-1)
        return self.o(s) + s @ self.m.weight.t()


@pytest.mark.parametrize("how", ["linear", "sum", "matmul"])
def test_a_gradient_past_the_trace_is_an_error(how):
    net = PastTheTrace(how)
    made = rule(net)
    made.train_step(*batch())
    net.later = True
    with pytest.raises(RuntimeError, match="'m' is to be traced, but .* give trace={'m': False}"):
        made.train_step(*batch())
    rule(net, trace={"m": False}).train_step(*batch())
    net.later = False
    made.train_step(*batch())


class Checkpointed(nn.Module):
    """A module that is run again in backward."""

    def __init__(self, inner: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, s: Tensor) -> Tensor:
        return checkpoint(self.inner, s, use_reentrant=self.reentrant)


class Product(nn.Module):
    """Two products without a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.W, self.V = nn.Parameter(torch.randn(D, D)), nn.Parameter(torch.randn(5, D))

    def forward(self, s: Tensor) -> Tensor:
        return F.linear((s @ self.W).tanh(), self.V * 2)


INNER = {
    "linear": lambda: nn.Linear(D, 5),
    "linear, tanh, linear": lambda: nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, 5)),
    "products": Product,
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("inner", INNER)
def test_checkpointed_layers_have_the_gradients_of_plain_ones(inner, reentrant):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(D, D).double(), Between(INNER[inner]().double()))
    net = copy.deepcopy(plain)
    net[1].syn = Checkpointed(net[1].syn, reentrant)
    x, y = batch()
    expected, got = gradients(plain, x, y), gradients(net, x, y)
    for (name, e), g in zip(expected.items(), got.values(), strict=True):
        torch.testing.assert_close(g, e, rtol=0, atol=1e-12, msg=name)
    spikes = gradients(plain, x, y, rule=SLTT)
    assert sum((spikes[name] - e).abs().max() > 1e-5 for name, e in expected.items()) >= 2


class Block(nn.Sequential):
    """What the host is told to checkpoint."""


@pytest.mark.parametrize("kind", [neuron.LIFNode, layer.Linear, Block], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("compress", [False, True])
def test_what_the_hosts_memopt_has_wrapped_has_the_gradients_of_plain_layers(kind, compress):
    torch.manual_seed(0)
    plain = nn.Sequential(
        Block(layer.Linear(D, 5), lif(4.0)), Block(layer.Linear(5, 5), nn.Tanh(), lif(2.0)), layer.Linear(5, 3)
    ).double()
    for m in plain.modules():
        if isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, 0.2, 0.7)
    x, y = batch()
    net = copy.deepcopy(plain)
    net = memopt.optimize_memory(net, kind, lambda net: net(x[0]), level=1, compress=compress)
    assert any("Checkpoint" in type(m).__name__ for m in net.modules())
    expected = gradients(plain, x, y)
    got = {name.replace("_checkpoint_wrapped_module.", ""): g for name, g in gradients(net, x, y).items()}
    for name, e in expected.items():
        torch.testing.assert_close(got[name], e, rtol=0, atol=1e-12, msg=name)
    spikes = gradients(plain, x, y, rule=SLTT)
    assert sum((spikes[name] - e).abs().max() > 1e-5 for name, e in expected.items()) >= 2
    made = rule(net)
    made.train_step(x, y)
    assert "checkpoint" not in repr(made).lower()
    assert [place.role for place in made.places.values()] == ["input", "hidden", "readout"]


def test_ndot_says_that_a_checkpoint_has_no_tangents():
    net = nn.Sequential(layer.Linear(D, 5), memopt.checkpoint_module(lif()), layer.Linear(5, 3)).double()
    with pytest.raises(ValueError, match="'1' is run again in backward"):
        NDOT(net, torch.optim.SGD(net.parameters(), 0.1)).train_step(*batch())
