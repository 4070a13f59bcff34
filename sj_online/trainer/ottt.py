"""OTTT: online training through time, by a trace of what enters each synapse."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn, optim
from torch.autograd.forward_ad import unpack_dual

from sj_online.loss import Loss
from sj_online.trainer import check, leak, ndot, topology
from sj_online.trainer.base import Rule, Window
from sj_online.trainer.sequence import Sequence
from sj_online.trainer.synapse import Trace, replaced_forwards
from sj_online.trainer.topology import Place


class OTTT(Rule):
    r"""Online training through time: gradients of one step, weight gradients from presynaptic traces (OTTT, Eq. 4-5).

    :math:`\nabla_W L[t] = g_u[t] \, \hat a[t]^\top` with the trace :math:`\hat a[t] = \lambda \hat a[t-1] + s[t]` of
    what enters the synapse (behind a dropout, say), where :math:`\lambda` is the leak of the neuron that receives its
    current. Equal to BPTT in a last layer that spikes (soft reset, detached), approximate below. A readout has no
    membrane behind it; it is traced with the leak of the neurons that feed it, as the authors do.

    ``update='sequence'`` is the paper's OTTT_A, ``'step'`` its OTTT_O. ``trace_input=True, trace_bias=True,
    trace_readout=False`` is what Eq. 4 says of every layer; the defaults are what the authors run.

    Args:
        net: see :class:`~sj_online.trainer.base.Rule`, as the arguments not named here.
        optimizer: see there.
        trace_input: trace the input of the synapses that no neuron feeds.
        trace_bias: trace the constant input of biases.
        trace_readout: trace the input of the synapses that reach no neuron.
        trace_decay: leaks by name of the synapse, where the network gives none: several that differ behind one
            synapse, or none (LM-H). Leaks that are equal at first and learnt apart count by their mean.
        variant: ``'ndot'``: see :mod:`sj_online.trainer.ndot`.

    Raises:
        ValueError: an argument out of range; at the first step, a synapse that needs a ``trace_decay``.

    Example:
        >>> import torch
        >>> from spikingjelly.activation_based import layer, neuron
        >>> net = nn.Sequential(layer.Linear(8, 4), neuron.LIFNode(), layer.Linear(4, 3))
        >>> rule = OTTT(net, torch.optim.SGD(net.parameters(), lr=0.1), num_steps=6)
        >>> result = rule.train_step(torch.rand(2, 8), torch.tensor([0, 2]))
        >>> print(rule)
        OTTT (OTTT (Xiao et al. 2022); approximate; horizon 1 step; update per sequence; loss mean over steps)
          0  Linear  input    not traced
          2  Linear  readout  traced, leak 0.5 of 1
    """

    paper = "OTTT (Xiao et al. 2022)"
    exact = False

    def __init__(
        self,
        net: nn.Module,
        optimizer: optim.Optimizer,
        *,
        trace_input: bool = False,
        trace_bias: bool = False,
        trace_readout: bool = True,
        trace_decay: Mapping[str, float] | None = None,
        variant: str | None = None,
        loss_fn: Loss = F.cross_entropy,
        num_steps: int | None = None,
        update: str = "sequence",
        step_scale: str = "mean",
        backward: Callable[[Tensor], None] | None = None,
        before_step: Callable[[], bool | None] | None = None,
    ) -> None:
        check.one_of("variant", variant, (None, "ndot"))
        self.trace_input = trace_input
        self.trace_bias = trace_bias
        self.trace_readout = trace_readout
        self.trace_decay = dict(trace_decay or {})
        self.variant = variant
        self.places: dict[str, Place] = {}
        self.traces: dict[str, Trace] = {}
        self.emissions: dict[nn.Module, ndot.Emission] = {}
        self.forwards: dict[nn.Module, Callable[..., Any]] = {}
        super().__init__(
            net,
            optimizer,
            loss_fn=loss_fn,
            num_steps=num_steps,
            update=update,
            step_scale=step_scale,
            backward=backward,
            before_step=before_step,
        )
        synapses = topology.synapses(net)
        for name, value in self.trace_decay.items():
            if name not in synapses:
                raise ValueError(f"trace_decay names {name!r}, which is none of the synapses {', '.join(synapses)}")
            if not 0 <= value <= 1:
                raise ValueError(f"trace_decay[{name!r}]={value!r} is not in [0, 1]")

    def run(self, x: Tensor, y: Tensor) -> Iterator[Window]:
        """The loop; the first time, behind a look at the network (a single step has no past to trace)."""
        frames = Sequence(x, y, self.num_steps)
        if not self.places and frames.T > 1:
            places = topology.find(self.net, frames)
            for name, place in places.items():
                if name not in self.trace_decay and any(self._traced(name, place)):
                    leak.check_one(self.net, name, place)
            self._build(places)
        yield from super().run(x, y)

    def forward(self, x: Sequence, steps: range) -> Tensor:
        """One step, behind the leak of the traces."""
        for name, trace in self.traces.items():
            trace.begin(self._leak(name, steps.start))
        if self.variant is None:
            return super().forward(x, steps)
        with ndot.travelling():
            return unpack_dual(super().forward(x, steps)).primal

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The traces, in their synapses for the time of a sequence."""
        with replaced_forwards(self.forwards):
            try:
                yield
            finally:
                for trace in self.traces.values():
                    trace.clear()
                for emission in self.emissions.values():
                    emission.clear()

    def state_dict(self) -> dict[str, Any]:
        """The places found: leaks that were one at first may since have been learnt apart."""
        return {"places": {name: [place.role, list(place.neurons)] for name, place in self.places.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the places."""
        self._build({name: Place(role, tuple(neurons)) for name, (role, neurons) in state["places"].items()})

    def table(self) -> str:
        """The synapses: name, class, place, whether traced, leak."""
        if not self.places:
            return f"{super().table()}\n  (places and leaks are found at the first training step)"
        rows = [(name, type(self.net.get_submodule(name)).__name__, place.role) for name, place in self.places.items()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  " + "  ".join([*map(str.ljust, row, widths), self._describe(row[0])]) for row in rows)

    def _traced(self, name: str, place: Place) -> tuple[bool, bool]:
        """Whether the weight of a synapse is traced, and its bias."""
        weight = {"input": self.trace_input, "readout": self.trace_readout}.get(place.role, True)
        has_bias = self.net.get_submodule(name).bias is not None
        return weight, has_bias and self.trace_bias and (weight or place.role == "input")

    def _build(self, places: dict[str, Place]) -> None:
        self.places, self.traces, self.forwards = places, {}, {}
        for name, place in places.items():
            weight, bias = self._traced(name, place)
            if weight or bias:
                module = self.net.get_submodule(name)
                self.traces[name] = (ndot.Trace if self.variant else Trace)(weight, bias)
                self.forwards[module] = self.traces[name].around(module)
        if self.variant:
            self.emissions = ndot.emissions(self.net)
            self.forwards |= {node: emission.around(node) for node, emission in self.emissions.items()}

    def _leak(self, name: str, t: int) -> leak.Leak:
        if name in self.trace_decay:
            return self.trace_decay[name]
        return leak.of_place(self.net, self.places[name], t)

    def _describe(self, name: str) -> str:
        if name not in self.traces:
            return "not traced"
        what = "traced" if self.traces[name].weight else "bias traced"
        first, *others = self.places[name].neurons or ("",)
        of = f"of {first}{f' and {len(others)} more' if others else ''}"
        return f"{what}, {leak.describe(self._leak(name, 0))} {'given' if name in self.trace_decay else of}"
