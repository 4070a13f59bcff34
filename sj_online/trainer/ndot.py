"""NDOT (Jiang et al. 2024): OTTT whose trace decays, element by element, as the membrane of the emitting neuron does.

The trace belongs to the neuron and travels with its spikes as their tangent (forward-mode differentiation), through
pooling, scaling, dropout, flattening and sums of branches, to the synapses, as the authors pass it beside the spikes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import ref

import torch
from spikingjelly.activation_based import base
from torch import Tensor, nn
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual

from sj_online import host
from sj_online.frames import Frames
from sj_online.neuron.leak import is_neuron, of_neuron
from sj_online.topology import Place
from sj_online.trainer import synapse
from sj_online.trainer.ottt import OTTT
from sj_online.tree import tree_map
from sj_online.unroll import Unroll

_running: "dict[str, ref[_Turn]]" = {}


class _Turn:
    """One sequence's right to train: it ends when it is given back, or with the frame that an interrupt has left."""

    def __init__(self) -> None:
        # No lock: an interrupt between taking and giving back would leave it taken for ever.
        mine, held = ref(self), _running.setdefault("turn", ref(self))
        if held() is None:
            _running["turn"] = held = mine
        if held is not mine:
            raise RuntimeError("NDOT is training another network: only one sequence at a time can, in all threads")

    def give_back(self) -> None:
        if _running.get("turn") is ref(self):
            del _running["turn"]


class NDOT(OTTT):
    r"""OTTT with the traces of the emitting neurons (NDOT, Jiang et al. 2024).

    The trace of a neuron's spikes, :math:`\hat a[t] = e[t-1] \, \hat a[t-1] + s[t]`, decays element by element as its
    membrane does, see :class:`Emission`. What enters the network, and what comes from an earlier step, has no emitting
    neuron and the trace of OTTT. Arguments as of :class:`~sj_online.trainer.ottt.OTTT`.

    Raises:
        ValueError: a neuron without a single leak; a network that the host's memopt has treated.
        RuntimeError: NDOT is training in another thread: forward-mode differentiation belongs to the process.

    Example:
        >>> from spikingjelly.activation_based import layer, neuron
        >>> net = nn.Sequential(layer.Linear(8, 4), neuron.LIFNode(), layer.Linear(4, 3))
        >>> rule = NDOT(net, torch.optim.SGD(net.parameters(), lr=0.1), num_steps=6)
        >>> rule.train_step(torch.rand(2, 8), torch.tensor([0, 2])).output.shape
        torch.Size([2, 3])
    """

    paper = "NDOT (Jiang et al. 2024)"

    def looked(self, frames: Frames) -> None:
        """Place the traces, in synapses and neurons."""
        for inner in host.checkpointed(self.net).values():
            names = {module: host.shown(name) for name, module in self.net.named_modules()}
            raise ValueError(f"{names[inner]!r} is run again in backward (memopt), without tangents: use OTTT")
        self.emissions = emissions(self.net)
        super().looked(frames)

    def synapse(self, place: Place) -> "Trace | None":
        """As of OTTT, of another kind."""
        made = super().synapse(place)
        return None if made is None else Trace(made.weight, made.bias)

    def forward(self, unroll: Unroll, steps: range) -> Any:
        """One step, eager, because a compiled network knows no tangents."""
        with dual_level(), torch.compiler.set_stance("force_eager"):
            return tree_map(lambda output: unpack_dual(output).primal, super().forward(unroll, steps))

    def forwards(self) -> dict[nn.Module, Callable[..., Any]]:
        """The traces in synapses and neurons."""
        inner = super().forwards()
        return inner | {node: each.around(node, inner.get(node, node.forward)) for node, each in self.emissions.items()}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The traces, in their synapses and neurons for the time of a sequence."""
        turn = _Turn()
        try:
            with super().installed():
                yield
        finally:
            turn.give_back()
            for emission in self.emissions.values():
                emission.clear()


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
        # A copy, as the network may go on to change its spikes in place.
        self.a = s.clone() if self.a is None else self.e * self.a + s
        before = torch.zeros_like(v) if self.v is None else self.v
        # Over a potential of zero the ratio is infinite, with the sign of the potential now.
        ratio = torch.where(before == 0, v.sign() * torch.inf, v / before).nan_to_num(0.0, torch.inf, -torch.inf)
        bound = torch.as_tensor(leak).to(v)
        self.e = ratio.clamp(-bound, bound)
        self.v = v
        self.t += 1
        return self.a

    def around(self, node: base.MemoryModule, inner: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The forward ``inner`` of ``node`` with the trace beside its spikes."""

        def forward(x: Tensor) -> Tensor:
            s = inner(unpack_dual(x).primal)
            decay = of_neuron(node, self.t)
            assert decay is not None
            a = self.add(s.detach(), node.v.detach().expand_as(s), decay)
            return make_dual(s, a.to(s.dtype, copy=True))

        return forward


def emissions(net: nn.Module) -> dict[nn.Module, Emission]:
    """A trace for each neuron of a network.

    Raises:
        ValueError: a neuron without a single leak.
    """
    nodes = {name: module for name, module in net.named_modules() if is_neuron(module)}
    for name, node in nodes.items():
        if of_neuron(node, 0) is None:
            raise ValueError(f"NDOT needs the leak of {name!r}, but {type(node).__name__} has no single leak")
    return {node: Emission() for node in nodes.values()}
