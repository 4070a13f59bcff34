"""Rules whose weight gradients come from traces kept in the synapses."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn, optim

from sj_online import check
from sj_online.frames import Frames
from sj_online.install import replaced_forwards
from sj_online.layer import is_synapse
from sj_online.topology import Place, display_name
from sj_online.trainer import leak
from sj_online.trainer.base import Options, Rule
from sj_online.trainer.functional import Functional
from sj_online.trainer.synapse import Trace
from sj_online.trainer.table import Way
from sj_online.unroll import Unroll

UNSEEN = Place("hidden", ())


class TracedOptions(Options, total=False):
    """The options that every traced rule takes by keyword; see :class:`TracedRule`."""

    trace: Mapping[str, bool] | None
    trace_decay: Mapping[str, float] | float | None


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

    def __init__(
        self,
        net: nn.Module,
        optimizer: optim.Optimizer,
        *,
        trace: Mapping[str, bool] | None = None,
        trace_decay: Mapping[str, float] | float | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(net, optimizer, **options)
        self.trace = dict(trace or {})
        self.trace_decay = trace_decay if isinstance(trace_decay, int | float) else dict(trace_decay or {})
        self.places: dict[str, Place] = {}
        self.traces: dict[str, Trace] = {}
        self.functional: set[str] = set()
        self._unseen: set[str] = set()
        known = {name for name, module in net.named_modules() if is_synapse(module)}
        known |= {display_name(name) for name, _ in net.named_parameters(remove_duplicate=False)}
        named: list[tuple[str, str]] = [("trace", name) for name in self.trace]
        if isinstance(self.trace_decay, dict):
            named += [("trace_decay", name) for name in self.trace_decay]
            for name, value in self.trace_decay.items():
                check.between(f"trace_decay[{name!r}]", value, 0, 1)
        else:
            check.between("trace_decay", self.trace_decay, 0, 1)
        for argument, name in named:
            if name not in known:
                synapses = ", ".join(name for name, module in net.named_modules() if is_synapse(module))
                raise ValueError(f"{argument} names {name!r}, which is none of the synapses {synapses}")

    def synapse(self, place: Place) -> Trace | None:
        """The trace that a synapse at this place keeps, a new one; None: its gradient is made of the spikes."""
        raise NotImplementedError

    def looked(self, frames: Frames) -> None:
        """Place a trace in every synapse, and check that each has one leak."""
        found = self.inspection.found
        for name in found.products:
            check.warn(
                f"the weight {name!r} is not linear in one input (a bilinear layer, or a product that is not traced):"
                " its gradient is made of the spikes of the step"
            )
        known = self.places  # their leaks were one when they were found
        self._build(found.places, found.functional)
        new = {name: place for name, place in self.places.items() if name in self.traces and place != known.get(name)}
        leak.check_all(self.net, new, self._given)

    def _build(self, places: dict[str, Place], functional: set[str]) -> None:
        self.places, self.functional = dict(places), set(functional)
        modules = {name: module for name, module in self.net.named_modules() if is_synapse(module)}
        self._unseen = modules.keys() - places.keys()
        self.traces = {}
        for name, place in [*places.items(), *((name, UNSEEN) for name in sorted(self._unseen))]:
            made = self.synapse(place) if self.trace.get(name, True) else None
            bias = getattr(modules.get(name), "bias", None)
            if made is not None and (made.weight or bias is not None):
                made.bias = made.bias and bias is not None
                self.traces[name] = made

    def forward(self, unroll: Unroll, steps: range) -> Any:
        """One step, behind the leak of the traces."""
        with torch.no_grad():
            for name, trace in self.traces.items():
                trace.begin(self._leak(name, steps.start) if trace.uses else 0.0)
        with ExitStack() as stack:
            if self.functional & self.traces.keys():
                stack.enter_context(torch.compiler.set_stance("force_eager"))
                stack.enter_context(Functional(self.net, self.traces, self._name))
            outputs = super().forward(unroll, steps)
        for trace in self.traces.values():
            trace.end()
        return outputs

    def propagate(self, loss: Tensor) -> None:
        """The backward pass; a synapse whose weight gets a gradient past its trace is an error."""
        before = self._gradients_now()
        super().propagate(loss)
        for name, (traced, now) in self._gradients_now().items():
            if traced and now != before[name][1] and not self.traces[name].use:
                raise RuntimeError(
                    f"the synapse {name!r} is to be traced, but its weight got a gradient from a call that was not seen"
                    f" when the rule looked at the network: make a new rule, or give trace={{{name!r}: False}}"
                )

    def _gradients_now(self) -> dict[str, tuple[bool, Any]]:
        """Of every synapse with a module, whether its weight is traced, and which gradient it has."""
        return {
            name: (trace.weight, None if weight.grad is None else (id(weight.grad), weight.grad._version))
            for name, trace in self.traces.items()
            if (weight := self._weight(name)) is not None
        }

    def _weight(self, name: str) -> Tensor | None:
        module = self._modules_by_name.get(name)
        return None if module is None else module._parameters.get("weight")

    @property
    def _modules_by_name(self) -> dict[str, nn.Module]:
        return {name: self.net.get_submodule(name) for name in self.traces if name not in self.functional}

    def _name(self, parameter: str) -> str:
        return display_name(parameter)

    def _forwards(self) -> dict[nn.Module, Callable[..., Any]]:
        """The forwards that the traces are in."""
        modules = dict(self.net.named_modules())
        return {
            modules[name]: trace.around(modules[name])
            for name, trace in self.traces.items()
            if name in modules and is_synapse(modules[name])
        }

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The traces, in their synapses for the time of a sequence."""
        try:
            with replaced_forwards(self._forwards()):
                yield
        finally:
            for trace in self.traces.values():
                trace.clear()

    def state_dict(self) -> dict[str, Any]:
        """The places found: leaks that were one at first may since have been learnt apart."""
        return {
            "places": {name: [place.role, list(place.neurons)] for name, place in self.places.items()},
            "functional": sorted(self.functional),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the places."""
        places = {name: Place(role, tuple(neurons)) for name, (role, neurons) in state["places"].items()}
        self._build(places, set(state.get("functional", ())))

    def _given(self, name: str) -> float | None:
        """The leak that the user gave a synapse."""
        return self.trace_decay.get(name) if isinstance(self.trace_decay, dict) else self.trace_decay

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
        return {
            name: Way(self.places[name].role if name in self.places else "not yet called", self._describe(name))
            for name in [*self.places, *sorted(self._unseen)]
        }

    def _describe(self, name: str) -> str:
        if not self.trace.get(name, True):
            return "spike, opted out of the trace"
        if name not in self.traces:
            return "spike"
        what = "traced" if self.traces[name].weight else "bias traced"
        if self._given(name) is not None:
            return f"{what}, {leak.describe(self._given(name))} given"
        if name in self._unseen:
            return f"{what} when called"
        first, *others = self.places[name].neurons or ("",)
        of = f"of {first}{f' and {len(others)} more' if others else ''}"
        return f"{what}, {leak.of_place_described(self.net, self.places[name])} {of}"
