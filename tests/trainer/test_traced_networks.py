"""Networks whose synapses are hard to see: attention, shared weights, recurrences, layers that come and go."""

import copy

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import base, layer, memopt, neuron
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from trace_oracles import D, N, T, Between, Oracle, assert_traced, batch, by_hand, gradients, lif

from sj_online.convert import quantize_synapses
from sj_online.trainer import NDOT, OTTT, SLTT

L, E = 3, 4  # tokens, channels


def rule(net: nn.Module, **kwargs) -> OTTT:
    return OTTT(net, torch.optim.SGD(net.parameters(), 0.1), **kwargs)


def roles(made: OTTT) -> dict[str, str]:
    return {name: place.role for name, place in made.places.items()}


class Attention(nn.Module):
    """q, k and v by layers; their product is a product of data alone."""

    def __init__(self, wrap=lambda module: module) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (wrap(nn.Linear(E, E).double()) for _ in range(4))

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

    def __init__(self, wrap=lambda synapse: synapse) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(3, D, dtype=torch.float64))
        self.n = lif()
        self.oracle = wrap is not None

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
        self.log: list[str] = []

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
    torch.testing.assert_close(net.aux.weight.grad, net.o.weight.grad, rtol=0, atol=1e-12)
    assert (gradients(net, x, y, rule=SLTT)["aux.weight"] - net.aux.weight.grad).abs().max() > 1e-4


class Recurrent(nn.Module):
    """u = W_in x + W s[t - delay], with the past in attributes, a buffer or a memory."""

    def __init__(self, delay: int, keep: str, detach: bool = False) -> None:
        super().__init__()
        self.i, self.back, self.n, self.o = nn.Linear(D, 5), nn.Linear(5, 5, bias=False), lif(), nn.Linear(5, 3)
        self.past = (Memory if keep == "memory" else Buffer if keep == "buffer" else Attribute)(delay, detach)
        self.double()
        nn.init.normal_(self.back.weight)

    def forward(self, x: Tensor) -> Tensor:
        old = self.past.oldest()
        s = self.n(self.i(x) + (0 if old is None else self.back(old)))
        self.past.push(s)
        return self.o(s)


class Attribute(base.MemoryModule):
    """The last spikes in a list of its own, put back by reset()."""

    def __init__(self, delay: int, detach: bool) -> None:
        super().__init__()
        self.delay, self.cut, self.kept = delay, detach, []

    def oldest(self) -> Tensor | None:
        return self.kept[-self.delay] if len(self.kept) >= self.delay else None

    def push(self, s: Tensor) -> None:
        self.kept = [*self.kept, s.detach() if self.cut else s][-self.delay :]

    def reset(self) -> None:
        super().reset()
        self.kept = []


class Memory(Attribute):
    """In a memory of the host."""

    def __init__(self, delay: int, detach: bool) -> None:
        super().__init__(delay, detach)
        del self.kept
        self.register_memory("kept", [])


class Buffer(Attribute):
    """In a buffer, filled with zeros at first."""

    def __init__(self, delay: int, detach: bool) -> None:
        super().__init__(delay, detach)
        self.register_buffer("last", torch.zeros(delay, N, 5), persistent=False)

    def oldest(self) -> Tensor:
        return self.last[0].clone()

    def push(self, s: Tensor) -> None:
        self.last = torch.cat([self.last[1:], s.detach()[None]])

    def reset(self) -> None:
        super().reset()
        self.last = torch.zeros_like(self.last)


@pytest.mark.parametrize("delay", [1, 2, 3])
@pytest.mark.parametrize("keep", ["attribute", "memory", "buffer"])
def test_recurrences_are_feedback_of_any_delay(delay, keep):
    torch.manual_seed(0)
    net = Recurrent(delay, keep)
    oracle = copy.deepcopy(net)
    oracle.back, oracle.o = Oracle(oracle.back), Oracle(oracle.o)
    assert_traced(net, oracle, batch(), "back.weight", "o.weight")
    made = rule(net)
    made.train_step(*batch())
    assert roles(made) == {"i": "input", "back": "feedback", "o": "readout"}
    assert "back  Linear  feedback  traced, leak 0.5 of n" in repr(made)
