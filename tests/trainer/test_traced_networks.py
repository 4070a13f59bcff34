"""Networks whose synapses are hard to see: attention, shared weights, recurrences, layers that come and go."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trace_oracles import Between, D, N, Oracle, T, assert_traced, batch, by_hand, gradients, lif, roles, rule

from sj_online.trainer import SLTT

L, E = 3, 4  # tokens, channels


class Attention(nn.Module):
    """q, k and v by layers; their product is a product of data alone."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(E, E).double() for _ in range(4))

    def forward(self, s: Tensor) -> Tensor:
        s = s.view(-1, L, E)
        q, k, v = self.q(s), self.k(s), self.v(s)
        scores = torch.matmul(q, k.transpose(-2, -1)) / E**0.5
        return self.out(torch.einsum("nij,njd->nid", scores.softmax(-1), v)).flatten(1)


class MultiHead(nn.Module):
    """PyTorch's attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(E, 1, batch_first=True).double()

    def forward(self, s: Tensor) -> Tensor:
        s = s.view(-1, L, E)
        return self.attn(s, s, s)[0].flatten(1)


def with_oracles(net: Between) -> Between:
    """The network with explicit layers, of which each has an oracle."""
    oracle = copy.deepcopy(net)
    if isinstance(net.syn, MultiHead):
        oracle.syn = Attention()
        for part, W, b in zip("qkv", net.syn.attn.in_proj_weight.chunk(3), net.syn.attn.in_proj_bias.chunk(3)):  # noqa: B905
            oracle.syn.get_submodule(part).load_state_dict({"weight": W, "bias": b})
        oracle.syn.out.load_state_dict(net.syn.attn.out_proj.state_dict())
    for name in ("q", "k", "v", "out"):
        setattr(oracle.syn, name, Oracle(oracle.syn.get_submodule(name)))
    oracle.o = Oracle(oracle.o)
    return oracle


@pytest.mark.parametrize("kind", [Attention, MultiHead])
def test_attention(kind):
    torch.manual_seed(0)
    net = Between(kind(), (L * E,))
    for p in net.syn.parameters():
        nn.init.normal_(p, 0.2, 0.6)
    x, y = batch((L * E,))
    expected = by_hand(with_oracles(net), x, y)
    if kind is MultiHead:
        for what in ("weight", "bias"):
            parts = [expected.pop(f"syn.{part}.{what}") for part in "qkv"]
            expected[f"syn.attn.in_proj_{what}"] = torch.cat(parts)
            expected[f"syn.attn.out_proj.{what}"] = expected.pop(f"syn.out.{what}")
    got, plain = gradients(net, x, y), gradients(net, x, y, rule=SLTT)
    assert got.keys() == expected.keys()
    for name, g in got.items():
        torch.testing.assert_close(g, expected[name], rtol=0, atol=1e-12)
        if name.endswith("weight"):
            assert (g - plain[name]).abs().max() > 1e-6
    made = rule(net)
    made.train_step(x, y)
    names = ["syn.attn.in_proj_weight", "syn.attn.out_proj"] if kind is MultiHead else [f"syn.{n}" for n in "qkv"]
    assert set(names) < set(made.places) and len(made.places) == len(names) + (1 if kind is MultiHead else 2)


class Shared(nn.Module):
    """An embedding of the input whose weight is also the readout."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(3, D, dtype=torch.float64))
        self.n = lif()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.n(F.linear(x, self.W.t())), self.W)


def test_a_weight_at_both_ends_is_one_synapse_with_a_trace_of_each_call():
    torch.manual_seed(0)
    net = Shared()
    x, y = torch.rand(T, N, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    a, b, expected = 0.0, 0.0, 0.0
    node, W = lif(), net.W.detach()
    for x_t in x:
        current = (x_t @ W).requires_grad_()
        s = node(current)
        out = (s @ W.t()).detach().requires_grad_()
        (g_out,) = torch.autograd.grad(F.cross_entropy(out, y) / T, out)
        (g_u,) = torch.autograd.grad(s, current, g_out @ W)
        a, b = 0.5 * a + x_t, 0.5 * b + s.detach()
        expected = expected + a.t() @ g_u + g_out.t() @ b
        node.detach()
    torch.testing.assert_close(gradients(net, x, y)["W"], expected, rtol=0, atol=1e-12)
    assert (gradients(net, x, y, rule=SLTT)["W"] - expected).abs().max() > 1e-3
    made = rule(net)
    made.train_step(x, y)
    assert list(made.places) == ["W"] and "W" in repr(made)


class TiedModules(nn.Module):
    """Two layers with one weight, of which the second is called in later steps only."""

    def __init__(self) -> None:
        super().__init__()
        self.n, self.a, self.b, self.t = lif(), nn.Linear(D, 3).double(), nn.Linear(D, 3).double(), 0
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        s = self.n(x)
        self.t += 1
        used = [self.a, self.b] if self.t % T == 0 else [self.a]
        return sum(m(s) for m in used)


def test_layers_that_share_a_weight_have_a_trace_each():
    torch.manual_seed(0)
    net = TiedModules()
    oracle = copy.deepcopy(net)
    oracle.a, oracle.b = Oracle(oracle.a), Oracle(oracle.b)
    assert_traced(net, oracle, batch(), "a.weight")


class Heads(nn.Module):
    """A head that only training has, and one that eval has."""

    def __init__(self) -> None:
        super().__init__()
        self.n, self.o, self.aux, self.test = lif(), nn.Linear(D, 3), nn.Linear(D, 3), nn.Linear(D, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        s = self.n(x)
        return self.o(s) + (self.aux(s) if self.training else self.test(s))


def test_a_head_of_training_alone_is_traced():
    net = Heads()
    oracle = copy.deepcopy(net)
    oracle.o, oracle.aux = Oracle(oracle.o), Oracle(oracle.aux)
    assert_traced(net, oracle, batch(), "o.weight", "aux.weight")
    made = rule(net)
    made.train_step(*batch())
    assert roles(made) == {"o": "readout", "aux": "readout"}
    assert "test  Linear  not yet called  traced when called" in repr(made)


class Late(Heads):
    """A head that is called from its own time on: not while the network is looked at."""

    from_now = False

    def forward(self, x: Tensor) -> Tensor:
        s = self.n(x)
        return self.o(s) + (self.aux(s) if self.from_now else 0)


def test_a_layer_that_is_first_called_later_is_traced():
    net = Late()
    x, y = batch()
    made = rule(net)
    made.train_step(x, y)
    assert "aux   Linear  not yet called  traced when called" in repr(made)
    net.from_now = True
    net.zero_grad()
    for _ in made.gradients(x, y):
        pass
    got = net.aux.weight.grad.clone()
    torch.testing.assert_close(got, net.o.weight.grad, rtol=0, atol=1e-12)
    assert (gradients(net, x, y, rule=SLTT)["aux.weight"] - got).abs().max() > 1e-4
