"""NDOT (Jiang et al. 2024): OTTT whose trace decays, element by element, as the membrane of the emitting neuron does.

The trace belongs to the neuron and travels with its spikes as their tangent (forward-mode differentiation), through
pooling, scaling, dropout, flattening and sums of branches, to the synapses, as the authors pass it beside the spikes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from spikingjelly.activation_based import base
from torch import Tensor, nn
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual

from sj_online.neuron.leak import of_neuron
from sj_online.trainer import synapse, topology


class Trace(synapse.Trace):
    """A synapse's trace that comes with the spikes; where none comes (raw input, feedback), the trace of OTTT."""

    def add(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """See :meth:`sj_online.trainer.synapse.Trace.add`."""
        s, tangent = unpack_dual(s)
        s, a, a_b = super().add(s)
        return s, a if tangent is None or not self.weight else tangent, a_b


class Emission:
    r"""The trace of a neuron's spikes (NDOT).

    :math:`\hat a[t] = e[t-1] \, \hat a[t-1] + s[t]`, where :math:`e[t] = v[t] / v[t-1]` is the ratio of the membrane
    potentials behind the reset, clamped to plus and minus the leak.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the sequence."""
        self.t = 0
        self.a: Tensor | None = None
        self.v: Tensor | None = None
        self.e: Tensor | float = 0.0

    @torch.no_grad()
    def add(self, s: Tensor, v: Tensor, leak: Tensor | float) -> Tensor:
        """Add the spikes of this step to the trace.

        Args:
            s: the spikes ``[N, ...]``.
            v: the potential that they leave, of the same shape.
            leak: of the step.
        """
        self.a = s if self.a is None else self.e * self.a + s
        before = torch.zeros_like(v) if self.v is None else self.v
        # Over a potential of zero the ratio is infinite, with the sign of the potential now.
        ratio = torch.where(before == 0, v.sign() * torch.inf, v / before).nan_to_num(0.0, torch.inf, -torch.inf)
        bound = torch.as_tensor(leak).to(v)
        self.e = ratio.clamp(-bound, bound)
        self.v = v
        self.t += 1
        return self.a

    def around(self, node: base.MemoryModule) -> Callable[[Tensor], Tensor]:
        """The forward of ``node`` with the trace beside its spikes."""
        inner = node.forward

        def forward(x: Tensor) -> Tensor:
            s = inner(unpack_dual(x).primal)
            decay = of_neuron(node, self.t)
            assert decay is not None
            a = self.add(s.detach(), node.v.detach().expand_as(s), decay)
            return make_dual(s, a.to(s.dtype))

        return forward


def emissions(net: nn.Module) -> dict[nn.Module, Emission]:
    """A trace for each neuron of a network.

    Raises:
        ValueError: a neuron without a single leak.
    """
    nodes = {name: module for name, module in net.named_modules() if topology.is_neuron(module)}
    for name, node in nodes.items():
        if of_neuron(node, 0) is None:
            raise ValueError(f"variant='ndot' needs the leak of {name!r}, but {type(node).__name__} has no single leak")
    return {node: Emission() for node in nodes.values()}


@contextmanager
def travelling() -> Iterator[None]:
    """Let traces travel with spikes; eager, because a compiled network knows no tangents."""
    with dual_level(), torch.compiler.set_stance("force_eager"):
        yield
