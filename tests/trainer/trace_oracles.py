"""Oracles of traced synapses: the same network in plain autograd, with the trace written beside each synapse."""

import torch
from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn
from torch.func import functional_call

from sj_online.trainer import OTTT, SLTT

T, N, D = 5, 4, 6


def lif(tau: float = 2.0) -> neuron.LIFNode:
    return neuron.LIFNode(tau, decay_input=False, v_threshold=0.5, v_reset=None, detach_reset=True)


class Oracle(nn.Module):
    """y = f(s, W), whose gradient of s is that of f(s, W) and whose gradient of W is that of f(a, W)."""

    def __init__(self, synapse: nn.Module, leak: float = 0.5) -> None:
        super().__init__()
        self.synapse, self.leak = synapse, leak
        self.a: Tensor | float = 0.0

    def forward(self, s: Tensor) -> Tensor:
        self.a = self.leak * self.a + s.detach()
        fixed = {name: p.detach() for name, p in self.synapse.named_parameters()}
        of_trace = self.synapse(self.a)
        return functional_call(self.synapse, fixed, (s,)) + of_trace - of_trace.detach()


class Between(nn.Module):
    """A synapse between two neurons, and a readout."""

    def __init__(self, synapse: nn.Module, shape: tuple[int, ...] = (D,), taus: tuple[float, float] = (4.0, 2.0)):
        super().__init__()
        self.n1, self.syn, self.n2 = lif(taus[0]), synapse, lif(taus[1])
        self.shape = shape
        with torch.no_grad():
            units = synapse(torch.rand(N, *shape, dtype=torch.float64)).flatten(1).shape[1]
        self.o = nn.Linear(units, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.n2(self.syn(self.n1(x))).flatten(1))


def batch(shape: tuple[int, ...] = (D,)) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return 1.5 * torch.rand(T, N, *shape, dtype=torch.float64), torch.tensor([0, 1, 2, 0])


def by_hand(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The gradients of a loop of one step at a time over a network in which oracles stand."""
    net.zero_grad()
    functional.reset_net(net)
    for x_t in x:
        (nn.functional.cross_entropy(net(x_t), y) / len(x)).backward()
        functional.detach_net(net)
    functional.reset_net(net)
    return {name.replace(".synapse", ""): p.grad for name, p in net.named_parameters() if p.grad is not None}


def gradients(net: nn.Module, x: Tensor, y: Tensor, rule: type = OTTT, **kwargs) -> dict[str, Tensor]:
    """The gradients of a rule."""
    net.zero_grad()
    made = rule(net, torch.optim.SGD(net.parameters(), 0.1), **kwargs)
    for _ in made.gradients(x, y):
        pass
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def assert_traced(net: nn.Module, oracle: nn.Module, xy: tuple[Tensor, Tensor], *names: str, **kwargs) -> None:
    """OTTT gives the oracle's gradients, and for the parameters ``names`` SLTT gives others."""
    got, plain = gradients(net, *xy, **kwargs), gradients(net, *xy, rule=SLTT)
    expected = by_hand(oracle, *xy)
    assert got.keys() == expected.keys()
    for name, g in got.items():
        torch.testing.assert_close(g, expected[name], rtol=0, atol=1e-12, msg=lambda text, name=name: f"{name} {text}")
    for name in names:
        assert (plain[name] - expected[name]).abs().max() > 1e-4, name


def rule(net: nn.Module, **kwargs) -> OTTT:
    return OTTT(net, torch.optim.SGD(net.parameters(), 0.1), **kwargs)


def roles(made: OTTT) -> dict[str, str]:
    return {name: place.role for name, place in made.places.items()}
