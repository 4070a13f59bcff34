"""Recurrences of any delay, layers that are replaced, layers that are called as often as they like."""

import copy

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import base, layer
from torch import Tensor, nn
from trace_oracles import D, N, Oracle, T, assert_traced, batch, by_hand, gradients, lif, roles, rule

from sj_online.convert import quantize_synapses
from sj_online.layer import BinaryLinear
from sj_online.trainer import SLTT


class Recurrent(nn.Module):
    """u = W_in x + W s[t - delay], with the past in attributes, a buffer or a memory."""

    def __init__(self, delay: int, keep: str) -> None:
        super().__init__()
        self.i, self.back, self.n, self.o = nn.Linear(D, 5), nn.Linear(5, 5, bias=False), lif(), nn.Linear(5, 3)
        self.past = (Memory if keep == "memory" else Buffer if keep == "buffer" else Attribute)(delay)
        self.double()
        nn.init.normal_(self.back.weight)

    def forward(self, x: Tensor) -> Tensor:
        old = self.past.oldest()
        s = self.n(self.i(x) + (0 if old is None else self.back(old)))
        self.past.push(s)
        return self.o(s)


class Attribute(base.MemoryModule):
    """The last spikes in a list of its own, put back by reset()."""

    cut = False

    def __init__(self, delay: int) -> None:
        super().__init__()
        self.delay, self.kept = delay, []

    def oldest(self) -> Tensor | None:
        return self.kept[-self.delay] if len(self.kept) >= self.delay else None

    def push(self, s: Tensor) -> None:
        self.kept = [*self.kept, s.detach() if self.cut else s][-self.delay :]

    def reset(self) -> None:
        super().reset()
        self.kept = []


class Memory(Attribute):
    """In a memory of the host."""

    def __init__(self, delay: int) -> None:
        super().__init__(delay)
        del self.kept
        self.register_memory("kept", [])


class Buffer(Attribute):
    """In a buffer, filled with zeros at first."""

    def __init__(self, delay: int) -> None:
        super().__init__(delay)
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
    oracle.past.cut = True  # a rule cuts whatever is carried on
    oracle.back, oracle.o = Oracle(oracle.back), Oracle(oracle.o)
    assert_traced(net, oracle, batch(), "back.weight", "o.weight")
    made = rule(net)
    made.train_step(*batch())
    assert roles(made) == {"i": "input", "back": "feedback", "o": "readout"}
    assert "back  Linear  feedback  traced, leak 0.5 of n" in repr(made)


def stack() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(layer.Linear(D, 5), lif(4.0), layer.Linear(5, 5), lif(2.0), layer.Linear(5, 3)).double()
    for synapse in net[::2]:
        nn.init.normal_(synapse.weight, 0.2, 0.7)
    return net


def set_attribute(net: nn.Sequential) -> None:
    net[2] = nn.Linear(5, 5, bias=False).double()


def quantise(net: nn.Sequential) -> None:
    quantize_synapses(net, "binary")


def append(net: nn.Sequential) -> None:
    for module in (lif(2.0), nn.Linear(3, 3).double()):
        net.append(module)


def parametrise(net: nn.Sequential) -> None:
    nn.utils.parametrizations.weight_norm(net[2])


@pytest.mark.parametrize("change", [set_attribute, quantise, append, parametrise])
def test_layers_replaced_under_a_rule(change):
    net = stack()
    made = rule(net)
    x, y = batch()
    made.train_step(x, y)
    before = repr(made)
    change(net)
    net[4].weight.data.normal_(0.2, 0.7)
    oracle = copy.deepcopy(net)
    for i in range(2, len(net), 2):
        oracle[i] = Oracle(oracle[i])
    expected = by_hand(oracle, x, y)
    net.zero_grad()
    for _ in made.gradients(x, y):
        pass
    got = {name: p.grad.clone() for name, p in net.named_parameters()}
    for name, g in got.items():
        torch.testing.assert_close(g, expected[name], rtol=0, atol=1e-12)
    plain = gradients(net, x, y, rule=SLTT)
    after = rule(net)
    after.train_step(x, y)
    last = "4.weight" if change is not append else "6.weight"
    assert (plain[last] - expected[last]).abs().max() > 1e-4
    assert ("BinaryLinear" in repr(made)) == isinstance(net[2], BinaryLinear)
    assert repr(made) == repr(after) and (repr(made) != before or change is set_attribute)


class Varying(nn.Module):
    """A layer that is called another number of times in every step, with other weights of its outputs."""

    def __init__(self, calls: list[int]) -> None:
        super().__init__()
        self.n, self.o, self.calls, self.t = lif(), nn.Linear(D, 3, bias=False).double(), calls, base.MemoryModule()
        self.t.register_memory("now", 0)

    def forward(self, x: Tensor) -> Tensor:
        s = self.n(x)
        self.t.now += 1
        return sum((i + 1) * self.o(s * (i + 1)) for i in range(self.calls[self.t.now - 1]))


@pytest.mark.parametrize("calls", [[1, 2, 1, 3, 2], [2, 2, 2, 2, 2], [3, 1, 1, 2, 1]])
def test_a_layer_called_a_varying_number_of_times(calls):
    """Each call has a trace; where there are fewer, what is left joins that of the last."""
    torch.manual_seed(0)
    net = Varying(calls)
    x, y = batch()
    node, W, expected, traces = lif(), net.o.weight.detach(), 0.0, []
    for x_t, count in zip(x, calls, strict=True):
        s = node(x_t)
        traces = [0.5 * a for a in traces]
        traces += [torch.zeros_like(s)] * (count - len(traces))
        traces = [*traces[: count - 1], sum(traces[count - 1 :])]
        traces = [a + (i + 1) * s for i, a in enumerate(traces)]
        out = sum((i + 1) ** 2 for i in range(count)) * (s @ W.t())
        out.requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(out, y) / T, out)
        expected = expected + sum((i + 1) * g.t() @ a for i, a in enumerate(traces))
    torch.testing.assert_close(gradients(net, x, y)["o.weight"], expected, rtol=0, atol=1e-12)
    assert (gradients(net, x, y, rule=SLTT)["o.weight"] - expected).abs().max() > 1e-4
