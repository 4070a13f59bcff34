"""Which calls are linear in one input, and which operand is a weight."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from sj_online import contraction
from sj_online.contraction import Weights, operands, product

S, W, B = torch.rand(4, 6), nn.Parameter(torch.rand(6, 5)), torch.rand(5)
CALLS = {
    "matmul": lambda: S @ W,
    "mm by name": lambda: torch.mm(input=S, mat2=W),
    "bmm": lambda: torch.bmm(S[None], W[None]),
    "mv": lambda: torch.mv(W.t(), S[0]),
    "inner": lambda: torch.inner(S, W.t()),
    "tensordot": lambda: torch.tensordot(S, W, dims=1),
    "tensordot by axes": lambda: torch.tensordot(S, W, ([1], [0])),
    "einsum": lambda: torch.einsum("ni,io->no", S, W),
    "einsum of a list": lambda: torch.einsum("ni,io->no", [S, W]),
    "einsum by axes": lambda: torch.einsum(S, [0, 1], W, [1, 2]),
    "addmm": lambda: torch.addmm(B, S, W, beta=0.5, alpha=2.0),
    "baddbmm": lambda: torch.baddbmm(B, S[None], W[None]),
    "addmv": lambda: B.addmv(W.t(), S[0], alpha=3.0),
}


class Seen(TorchFunctionMode):
    """Keeps every call of a product."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in contraction.CALLS:
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CALLS)
def test_a_product_computes_what_the_call_does(name):
    with Seen() as seen:
        expected = CALLS[name]()
    found = product(*seen.calls[0])
    got = found.fn(found.a, found.b)
    torch.testing.assert_close(got if found.rest is None else found.rest + got, expected)


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.einsum("ni,io,no->n", S, W, S[:, :5]),
        lambda: torch.mm(S, W.detach(), out=torch.empty(4, 5)),
    ],
)
def test_what_is_no_product_of_two(call):
    with Seen() as seen:
        call()
    assert all(product(*each) is None for each in seen.calls)


def test_operands_are_data_and_one_weight():
    net = nn.Linear(6, 5)
    weights = Weights(net)

    def found(func, *args, **kwargs):
        return [(id(a), id(b)) for a, b in operands(func, args, kwargs, weights)]

    pair = [(id(S), id(net.weight))]
    assert found(F.linear, S, net.weight) == found(F.linear, input=S, weight=net.weight) == pair
    assert found(torch.matmul, net.weight, S) == pair
    assert found(torch.matmul, S, S) == found(torch.matmul, net.weight, net.weight) == []
    assert found(F.linear, net.weight, S) == []
    assert found(F.relu, S) == []


def test_weights_follow_what_is_made_of_them_alone():
    net = nn.Module()
    net.U, net.V = nn.Parameter(torch.rand(6, 2)), nn.Parameter(torch.rand(2, 5))
    net.register_buffer("mask", torch.ones(6, 5))
    weights, data = Weights(net), torch.rand(6, 5)
    low = net.U @ net.V
    weights.follow((net.U, net.V), {}, low)
    assert weights.names(low) == ("U", "V")
    for args in ((low, net.mask), ([low, low],), (low, 2.0)):
        made = low * 1
        weights.follow(args, {}, made)
        assert weights.names(made) == ("U", "V")
    drawn = torch.rand(6, 5)
    weights.follow((6, 5), {}, drawn)  # made of no tensor
    masked = low * drawn
    weights.follow((low, drawn), {}, masked)
    assert weights.names(masked) == ("U", "V") and weights.names(drawn) == weights.names(net.mask) == ()
    mixed = low * data
    weights.follow((low, data), {}, mixed)
    assert weights.names(mixed) == ()
    with torch.no_grad():
        masked.add_(data)  # another thing is written into it
        net.U.mul_(2)  # a parameter stays one
    assert weights.names(masked) == () and weights.names(net.U) == ("U",)
