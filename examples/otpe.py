"""OTPE as a rule of one's own: what a spike of today does to the next membrane for many steps (Summe et al. 2023)."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from sj_online.neuron.leak import is_neuron, of_neuron
from sj_online.topology import Place
from sj_online.trainer import TracedRule
from sj_online.trainer.derivatives import Derivatives, Local, Sloped
from sj_online.trainer.eligibility import Eligibility, straight
from sj_online.trainer.leaky import LeakySum
from sj_online.trainer.synapse import Trace


class TwoSums(Trace):
    """Approximate OTPE: a[t] = lam a[t-1] + x[t], z[t] = lam z[t-1] + a[t], and z in the weight's gradient."""

    z: Tensor | float = 0.0

    def begin(self, leak: Tensor | float) -> None:
        self.z = leak * self.z if self.uses else 0.0
        super().begin(leak)

    def add(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        s, a, a_b = super().add(s)
        self.z = self.z + a
        return s, self.z, a_b


class Synapses(Eligibility):
    """OTPE: E[t] = dv'/dv E[t-1] + dv'/dx x, D = ds/dv E[t-1] + ds/dx x, R = lam R[t-1] + D; OSTL: lam = 0, so D."""

    def __init__(self, leak: float) -> None:
        self.leak = leak
        super().__init__(False, False)

    def clear(self) -> None:
        super().clear()
        self.E = self.R = self.n = 0.0

    def follow(self, x: Tensor, derivatives: Derivatives) -> None:
        s, v, self.n = derivatives.spike, derivatives.states["v"], self.leak * self.n + 1
        x = nn.functional.pad(x, (0, 1), value=1.0)[:, None]  # the last input is the bias'
        self.R = self.leak * self.R + s["v"][..., None] * self.E + s["x"][..., None] * x
        self.E = v["v"][..., None] * self.E + v["x"][..., None] * x
        self.e, self.e_b, self.slope = self.R[..., :-1], self.R[..., -1], self.slope + (s["x"] - self.slope) / self.n


class Mean(Local):
    """A neuron whose gradient has the leaky mean of its surrogate derivatives, gbar."""

    leak = n = mean = 0.0

    def each(self, x: Tensor, s: Tensor, derivatives: Derivatives) -> Tensor:
        self.n = self.leak * self.n + 1
        self.mean = self.mean + (derivatives.spike["x"] - self.mean) / self.n
        return Sloped.apply(s, x, self.mean)


class OTPE(TracedRule):
    """One leak for all layers; approximate=False: Linear synapses alone; leaky_output: F-OTPE."""

    paper = "OTPE (Summe et al. 2023)"
    exact = False

    def __init__(
        self, net: nn.Module, optimizer: Any, *, approximate: bool = True, leaky_output: bool = False, **options: Any
    ) -> None:
        self.approximate, self.leaky_output = approximate, leaky_output
        super().__init__(net, optimizer, **options)

    def _leak_for(self, name: str) -> float:
        """Of a neuron; 0 where no membrane follows it, because it feeds the readout or is the output."""
        read = {node for place in self.places.values() if place.role == "readout" for node in place.neurons}
        ends = set() if self.leaky_output else read or set([*self.places.values()][-1].neurons)
        return 0.0 if name in ends else float(of_neuron(self.net.get_submodule(name), 0) or 0.0)

    def synapse(self, place: Place) -> Trace | None:
        leak = max(map(self._leak_for, place.neurons), default=0.0)
        made = Synapses(leak) if not self.approximate else TwoSums() if leak else Trace()
        return None if place.role == "readout" else made

    def forwards(self) -> dict[nn.Module, Callable[..., Any]]:
        nodes = {name: module for name, module in self.net.named_modules() if is_neuron(module)}
        self.out = LeakySum(float(of_neuron([*nodes.values()][-1], 0) or 0.0) * self.leaky_output)
        if not self.approximate:
            return super().forwards() | straight(nodes, self.traces, self.places)
        means = [Mean(name, node) for name, node in nodes.items()]
        for mean, name in zip(means, nodes, strict=True):
            mean.leak = self._leak_for(name)
        return super().forwards() | {mean.node: partial(mean.run, each=mean.each) for mean in means}

    def forward(self, unroll: Any, steps: range) -> Any:
        return self.out(super().forward(unroll, steps))
