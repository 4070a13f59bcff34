"""Whatever is linear in one input is traced, however it is written: against plain autograd on the trace."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trace_oracles import Between, D, Oracle, assert_traced, batch

TRANSPOSED = {
    "1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1, groups=2), (4, 5)),
    "1d, dilated": (lambda: nn.ConvTranspose1d(4, 3, 3, dilation=2, padding=1, bias=False), (4, 5)),
    "2d": (lambda: nn.ConvTranspose2d(4, 3, 1), (4, 3, 3)),
    "2d, all of it": (
        lambda: nn.ConvTranspose2d(4, 2, (3, 2), (2, 3), (1, 0), (1, 2), groups=2, dilation=(1, 2)),
        (4, 3, 3),
    ),
    "3d": (lambda: nn.ConvTranspose3d(2, 4, 2, stride=2, output_padding=(1, 0, 1), groups=2), (2, 2, 3, 2)),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolutions(name):
    torch.manual_seed(0)
    make, shape = TRANSPOSED[name]
    net = Between(make().double(), shape)
    nn.init.normal_(net.syn.weight, 0.2, 0.5)
    oracle = copy.deepcopy(net)
    oracle.syn, oracle.o = Oracle(oracle.syn), Oracle(oracle.o)
    assert_traced(net, oracle, batch(shape), "syn.weight", "o.weight")


class Product(nn.Module):
    """A product with the weights W, b and others."""

    def __init__(self, forward, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.call = forward
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(0.2 + 0.7 * torch.randn(shape, dtype=torch.float64)))
        self.register_buffer("mask", (torch.arange(5 * D).view(5, D) % 3 > 0).double())
        self.inner = nn.Linear(D, 5).double()
        nn.init.normal_(self.inner.weight, 0.2, 0.5)

    def forward(self, s: Tensor) -> Tensor:
        return self.call(self, s)


class Halved(nn.Module):
    """A parametrisation."""

    def forward(self, W: Tensor) -> Tensor:
        return W * 0.5


def parametrised() -> nn.Module:
    made = nn.Linear(D, 5).double()
    nn.utils.parametrize.register_parametrization(made, "weight", Halved())
    return made


W, G = {"W": (5, D)}, {"W": (2, D // 2, 5)}
PRODUCTS = {
    "F.linear with another module's weight": lambda: Product(lambda m, s: F.linear(s, m.inner.weight)),
    "F.linear with its bias": lambda: Product(lambda m, s: F.linear(s, weight=m.inner.weight, bias=m.inner.bias)),
    "F.linear by names": lambda: Product(lambda m, s: F.linear(input=s, weight=m.W), **W),
    "s @ W.T": lambda: Product(lambda m, s: s @ m.W.T, **W),
    "s.matmul(W.t())": lambda: Product(lambda m, s: s.matmul(m.W.t()), **W),
    "W @ s": lambda: Product(lambda m, s: (m.W @ s.t()).t(), **W),
    "torch.mm": lambda: Product(lambda m, s: torch.mm(s, mat2=m.W.transpose(0, 1)), **W),
    "einsum": lambda: Product(lambda m, s: torch.einsum("ni,oi->no", s, m.W), **W),
    "einsum, W first": lambda: Product(lambda m, s: torch.einsum("oi,...i->...o", m.W, s), **W),
    "tensordot": lambda: Product(lambda m, s: torch.tensordot(s, m.W, dims=([1], [1])), **W),
    "inner": lambda: Product(lambda m, s: torch.inner(s, m.W), **W),
    "addmm": lambda: Product(lambda m, s: torch.addmm(m.b, s, m.W.t(), beta=2.0, alpha=0.5), **W, b=(5,)),
    "b.addmm": lambda: Product(lambda m, s: m.b.addmm(s, m.W.t()), **W, b=(1, 5)),
    "bmm": lambda: Product(lambda m, s: torch.bmm(s.view(-1, 2, D // 2).transpose(0, 1), m.W).sum(0), **G),
    "baddbmm": lambda: Product(
        lambda m, s: torch.baddbmm(m.b, s.view(-1, 2, D // 2).transpose(0, 1), m.W).sum(0), **G, b=(2, 1, 5)
    ),
    "W * mask": lambda: Product(lambda m, s: F.linear(s, m.W * m.mask), **W),
    "U @ V": lambda: Product(lambda m, s: s @ (m.U @ m.V), U=(D, 2), V=(2, 5)),
    "U @ V, one after the other": lambda: Product(lambda m, s: s @ m.U, U=(D, 4)),
    "W made of two": lambda: Product(lambda m, s: F.linear(s, torch.cat([m.W, m.inner.weight])), **W),
    "a standardised weight": lambda: Product(lambda m, s: F.linear(s, (m.W - m.W.mean()) / m.W.std()), **W),
    "a parametrised weight": parametrised,
    "F.conv1d": lambda: Product(lambda m, s: F.conv1d(s[:, None], m.W, m.b, padding=1), W=(2, 1, 3), b=(2,)),
    "F.conv_transpose1d": lambda: Product(
        lambda m, s: F.conv_transpose1d(s.view(-1, 2, 3), m.W, stride=2, output_padding=1), W=(2, 3, 3)
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name):
    torch.manual_seed(0)
    net = Between(PRODUCTS[name]())
    oracle = copy.deepcopy(net)
    oracle.syn, oracle.o = Oracle(oracle.syn), Oracle(oracle.o)
    learnt = [n for n, p in net.syn.named_parameters() if not n.endswith(("b", "bias")) and not n.startswith("inner")]
    assert_traced(net, oracle, batch(), "o.weight", *(f"syn.{n}" for n in learnt))
