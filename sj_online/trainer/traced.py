"""Rules whose weight gradients come from traces kept in the synapses."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn, optim

from sj_online import check, host
from sj_online.frames import Frames
from sj_online.layer import is_synapse
from sj_online.neuron.leak import is_neuron
from sj_online.topology import Place, display_name
from sj_online.trainer import leak
from sj_online.trainer.activity import Recorder
from sj_online.trainer.base import Rule
from sj_online.trainer.functional import Functional
from sj_online.trainer.options import OfOneStep, check_traced
from sj_online.trainer.synapse import Trace
from sj_online.trainer.table import Way
from sj_online.unroll import Unroll

UNSEEN = Place("hidden", ())


class TracedRule(Rule):
    """A rule of one step whose synapses keep traces of their input; :meth:`synapse` says which.

    Args:
        net: see :class:`~sj_online.trainer.base.Rule`, as the arguments not named here.
        optimizer: see there.
        trace: ``{name: False}`` leaves a synapse out: its weight gradient is made of the spikes of the step.
        trace_decay: leaks by name of the synapse, or one for all, where the network gives none: several that differ
            behind one synapse, or none (LM-H). Learnt leaks that are close to each other count by their mean.
        options: see there.

    Raises:
        ValueError: an argument out of range; at the first step, synapses that need a ``trace_decay``.
    """

    looks_at_all_steps: ClassVar[bool] = True
    watches_neurons: ClassVar[bool] = False
    """Whether :attr:`Trace.neurons` tells what the neurons did behind a synapse; its network then runs eagerly."""

    def __init__(
        self,
        net: nn.Module,
        optimizer: optim.Optimizer,
        *,
        trace: Mapping[str, bool] | None = None,
        trace_decay: Mapping[str, float] | float | None = None,
        **options: Unpack[OfOneStep],
    ) -> None:
        super().__init__(net, optimizer, **options)
        self.trace = dict(trace or {})
        self.trace_decay = trace_decay if isinstance(trace_decay, int | float) else dict(trace_decay or {})
        self.places: dict[str, Place] = {}
        self.traces: dict[str, Trace] = {}
        self.functional: dict[str, tuple[str, ...]] = {}
        self.products: tuple[str, ...] = ()
        self.recorders: dict[str, Recorder] = {}
        self._unseen: set[str] = set()
        check_traced(net, self.trace, self.trace_decay)

    def synapse(self, place: Place) -> Trace | None:
        """The trace that a synapse at this place keeps, a new one; None: its gradient is made of the spikes."""
        raise NotImplementedError

    def looked(self, frames: Frames) -> None:
        """Place a trace in every synapse, and check that each has one leak."""
        found = self.inspection.found
        before, self.products = self.products, tuple(map(host.shown, found.products))
        if self.products and self.products != before:
            names = ", ".join(map(repr, self.products))
            check.warn(
                f"not linear in one input (a bilinear layer, or a product that is not traced): {names}; their gradients"
                " are made of the spikes of the step"
            )
        known = self.places  # their leaks were one when they were found
        self._build(found.places, {name: found.parameters[name] for name in found.functional})
        new = {name: place for name, place in self.places.items() if name in self.traces and place != known.get(name)}
        leak.check_all(self.net, new, self._given)

    def _build(self, places: dict[str, Place], functional: dict[str, tuple[str, ...]]) -> None:
        self.places, self.functional = dict(places), dict(functional)
        modules = {name: module for name, module in self.net.named_modules() if is_synapse(module)}
        in_calls = {p for parameters in functional.values() for p in parameters}
        covered = {id(p) for name, p in self.net.named_parameters() if name in in_calls}
        self._unseen = {
            name
            for name, module in modules.items()
            if name not in places and id(module._parameters.get("weight")) not in covered
        }
        self.traces = {}
        for name, place in [*places.items(), *((name, UNSEEN) for name in sorted(self._unseen))]:
            made = None if self._opted_out(name) else self.synapse(place)
            bias = getattr(modules.get(name), "bias", None)
            if made is not None and (made.weight or bias is not None):
                made.name = name
                made.bias = made.bias and bias is not None
                self.traces[name] = made

    def forward(self, unroll: Unroll, steps: range) -> Any:
        """One step, behind the leak of the traces."""
        with torch.no_grad():
            for name, trace in self.traces.items():
                trace.begin(self._leak(name, steps.start) if trace.uses else 0.0)
        for recorder in self.recorders.values():
            recorder.activities = []
        with self._functional():
            outputs = super().forward(unroll, steps)
        for name, trace in self.traces.items():
            trace.end()
            nodes = self.places[name].neurons if self.recorders and name in self.places else ()
            trace.neurons = tuple(activity for node in nodes for activity in self.recorders[node].activities)
        return outputs

    def propagate(self, loss: Tensor) -> None:
        """The backward pass; a synapse whose weight gets a gradient past its trace is an error."""
        before = self._gradients_now()
        with self._functional(again=True):  # what is checkpointed runs again in there
            super().propagate(loss)
        used = {id(self._weight(name)) for name, trace in self.traces.items() if trace.use}
        for name, now in self._gradients_now().items():
            if now != before[name] and id(self._weight(name)) not in used:
                name = host.shown(name)
                raise RuntimeError(
                    f"the synapse {name!r} is to be traced, but its weight got a gradient from a call that was not seen"
                    f" when the rule looked at the network: make a new rule, or give trace={{{name!r}: False}}"
                )

    @contextmanager
    def _functional(self, again: bool = False) -> Iterator[None]:
        with ExitStack() as stack:
            if self.functional.keys() & self.traces.keys() or self.recorders:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            if self.functional.keys() & self.traces.keys():
                stack.enter_context(Functional(self.net, self.traces, again))
            yield

    def _gradients_now(self) -> dict[str, Any]:
        """Of every synapse's module whose weight is traced, which gradient it has."""
        return {
            name: None if weight.grad is None else (id(weight.grad), weight.grad._version)
            for name, trace in self.traces.items()
            if trace.weight and name not in self.functional and (weight := self._weight(name)) is not None
        }

    def _weight(self, name: str) -> Tensor | None:
        if name in self.functional:
            return self.net.get_parameter(self.functional[name][0])
        return self.net.get_submodule(name)._parameters.get("weight")

    def _opted_out(self, name: str) -> bool:
        names = {name, *map(display_name, self.functional.get(name, ()))}
        return not all(self.trace.get(host.shown(each), True) for each in names)

    def forwards(self) -> dict[nn.Module, Callable[..., Any]]:
        """The forwards that the traces are in."""
        modules = dict(self.net.named_modules())
        doors = {inner: wrapper for wrapper, inner in host.checkpointed(self.net).items()}
        seen = {name: modules[name] for name in self.traces if name in modules and is_synapse(modules[name])}
        nodes = modules.items() if self.watches_neurons else ()
        self.recorders = {name: Recorder(name, module) for name, module in nodes if is_neuron(module)}
        forwards = {doors.get(module, module): self.traces[name].around(module) for name, module in seen.items()}
        return forwards | {recorder.node: recorder.around() for recorder in self.recorders.values()}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The traces, in their synapses for the time of a sequence."""
        try:
            with super().installed():
                yield
        finally:
            self.recorders = {}
            for trace in self.traces.values():
                trace.clear()

    def state_dict(self) -> dict[str, Any]:
        """The places found: leaks that were one at first may since have been learnt apart."""
        return super().state_dict() | {
            "places": {name: [place.role, list(place.neurons)] for name, place in self.places.items()},
            "functional": {name: list(parameters) for name, parameters in self.functional.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the places."""
        super().load_state_dict(state)
        places = {name: Place(role, tuple(neurons)) for name, (role, neurons) in state["places"].items()}
        self._build(places, {name: tuple(parameters) for name, parameters in state["functional"].items()})

    def _given(self, name: str) -> float | None:
        """The leak that the user gave a synapse."""
        return self.trace_decay.get(host.shown(name)) if isinstance(self.trace_decay, dict) else self.trace_decay

    def _leak(self, name: str, t: int) -> leak.Leak:
        given = self._given(name)
        if given is not None:
            return given
        return (
            leak.of_network(self.net, name, t)
            if name in self._unseen
            else leak.of_place(self.net, self.places[name], t)
        )

    def ways(self) -> dict[str, Way]:
        """The synapses: their place, and trace, spike or opted out."""
        if not self.places:
            return {name: Way("", "place and leak are found at the first training step") for name in super().ways()}
        ways = {
            name: Way(self.places[name].role if name in self.places else "not yet called", self._describe(name))
            for name in [*self.places, *sorted(self._unseen)]
        }
        for name, (_, *others) in self.functional.items():
            for other in map(display_name, others):
                ways.setdefault(other, Way(ways[name].role, f"{ways[name].how}, with {name}"))
        for name in map(display_name, self.products):
            ways.setdefault(name, Way("", "spike, not linear in one input"))
        return ways

    def _describe(self, name: str) -> str:
        if self._opted_out(name):
            return "spike, opted out of the trace"
        if name not in self.traces:
            return "spike"
        what = "traced" if self.traces[name].weight else "bias traced"
        if self._given(name) is not None:
            return f"{what}, {leak.describe(self._given(name))} given"
        if name in self._unseen:
            return f"{what} when called"
        first, *others = self.places[name].neurons or ("",)
        of = f"of {host.shown(first)}{f' and {len(others)} more' if others else ''}"
        return f"{what}, {leak.of_place_described(self.net, self.places[name])} {of}"
