"""e-prop: eligibility traces, and learning signals that need not come back through the weights."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from sj_online import check
from sj_online.neuron.leak import is_neuron
from sj_online.prediction import predict, reduced
from sj_online.topology import Place
from sj_online.trainer.derivatives import Derivatives
from sj_online.trainer.eligibility import Eligibility, straight
from sj_online.trainer.leaky import LeakySum
from sj_online.trainer.options import Options
from sj_online.trainer.synapse import Trace
from sj_online.trainer.traced import TracedRule
from sj_online.tree import at, tensors
from sj_online.unroll import Unroll


class _Options(Options, total=False):
    generator: torch.Generator | None
    trace: Mapping[str, bool] | None
    trace_decay: Mapping[str, float] | float | None


class EProp(TracedRule):
    r"""e-prop (Bellec et al. 2020) for recurrent networks, and for any that OTTT trains.

    With the trace :math:`\hat a[t] = \lambda \hat a[t-1] + s[t]` of what enters a synapse, the surrogate derivative
    :math:`\psi` of its neuron, and a readout that leaks, :math:`y[t] = \kappa y[t-1] + (1 - \kappa) o[t]`,

    .. math::
        e[t] = \psi[t] \, \hat a[t]^\top, \quad \bar e[t] = \kappa \bar e[t-1] + (1 - \kappa) e[t], \quad
        \nabla_W L = \sum_t L[t] \, \bar e[t], \quad L[t] = B^\top \partial L / \partial y[t].

    Symmetric feedback is the readout's weight, or the gradient through what is between. Symmetric e-prop is what
    automatic differentiation gives where the spikes of the step before are detached; without a leaky readout it is
    ``OTTT(exact=True)``. Adaptive thresholds have no eligibility here.

    Args:
        net: see :class:`~sj_online.trainer.traced.TracedRule`, as the arguments not named here. It gives o.
        optimizer: see there.
        feedback: ``'symmetric'``, ``'random'``, ``{neuron: B}``, or ``'adaptive'``: random, and what feeds the readout
            gets the readout's updates too, and both shrink.
        readout_decay: kappa. The rule filters the outputs itself, also in :meth:`predict`. Above 0 the eligibility is
            kept for every synapse, ``[N, out, in]``: Linear synapses directly before their neuron only.
        feedback_decay: by how much readout and feedback shrink at each update, with ``'adaptive'``.
        options: see there.

    Raises:
        ValueError: an argument out of range; at the first step, what a leaky readout cannot have.

    Example:
        >>> from spikingjelly.activation_based import layer, neuron
        >>> net = nn.Sequential(layer.Linear(8, 4), neuron.LIFNode(), layer.Linear(4, 3))
        >>> rule = EProp(net, torch.optim.SGD(net.parameters(), lr=0.1), feedback="random", readout_decay=0.5)
        >>> rule.train_step(torch.rand(6, 2, 8), torch.tensor([0, 2])).output.shape
        torch.Size([2, 3])
    """

    paper = "e-prop (Bellec et al. 2020)"
    exact = False

    def __init__(
        self,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        feedback: str | Mapping[str, Tensor] = "symmetric",
        readout_decay: float = 0.0,
        feedback_decay: float = 1e-3,
        **options: Unpack[_Options],
    ) -> None:
        check.between("readout_decay", readout_decay, 0, 1)
        check.between("feedback_decay", feedback_decay, 0, 1)
        self.kappa = readout_decay
        self.feedback_decay = feedback_decay
        self.adaptive = feedback == "adaptive"
        super().__init__(net, optimizer, feedback="random" if self.adaptive else feedback, **options)
        if self.feedback is not None:
            self.feedback.gain = 1 - readout_decay  # which the gradient through the readout's filter has

    def synapse(self, place: Place) -> Trace | None:
        """A trace of everything but a readout without memory; with a leaky one, eligibilities."""
        if place.role == "readout":
            return Trace(True, True) if self.kappa else None
        return _Filtered(self.kappa) if self.kappa else Trace(True, True)

    def _given(self, name: str) -> float | None:
        readout = name in self.places and self.places[name].role == "readout"
        return self.kappa if readout else super()._given(name)

    def forwards(self) -> dict[nn.Module, Callable[..., Any]]:
        """With a leaky readout, neurons that hand their signal on."""
        if not self.kappa:
            return super().forwards()
        nodes = {name: module for name, module in self.net.named_modules() if is_neuron(module)}
        return super().forwards() | straight(nodes, self.traces, self.places)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """A readout that starts at 0."""
        self._readout = LeakySum(self.kappa, 1 - self.kappa)
        with super().installed():
            yield

    def forward(self, unroll: Unroll, steps: range) -> Any:
        """One step, and the readout's filter."""
        o = super().forward(unroll, steps)
        return self._readout(o) if self.kappa else o

    def update_weights(self) -> None:
        """See :meth:`Rule.update_weights`; then the feedback follows the readout, if it is adaptive."""
        places = [(n, p.neurons[0]) for n, p in self.places.items() if p.role == "readout" and len(p.neurons) == 1]
        pairs = [(self._weight(name), neuron) for name, neuron in places] if self.adaptive else []
        before = [None if W is None else W.detach().clone() for W, _ in pairs]
        super().update_weights()
        assert self.feedback is not None or not pairs
        for (W, neuron), old in zip(pairs, before, strict=True):
            B = None if self.feedback is None else self.feedback.matrices.get(neuron)
            if W is not None and old is not None and B is not None and B.shape == W.shape:
                with torch.no_grad():
                    B.add_(W.detach() - old).mul_(1 - self.feedback_decay)
                    W.mul_(1 - self.feedback_decay)

    def predict(self, x: Tensor, reduce: str = "mean") -> Any:
        """See :meth:`Rule.predict`; of what the leaky readout gives."""
        if not self.kappa:
            return super().predict(x, reduce)
        check.one_of("reduce", reduce, ("mean", "none", "running"))
        outputs, readout = predict(self.net, x, self.num_steps, "none"), LeakySum(self.kappa, 1 - self.kappa)
        T = len(next(tensors(outputs)))
        return reduced((readout(at(outputs, slice(t, t + 1))) for t in range(T)), reduce, T)


class _Filtered(Eligibility):
    """The eligibility, filtered as the readout is; the factor 1 - kappa comes with the signal."""

    def __init__(self, kappa: float) -> None:
        super().__init__(True, True)
        self.kappa = kappa

    def follow(self, x: Tensor, derivatives: Derivatives) -> None:
        """One step."""
        a, a_b = self.uses[0]
        psi = self.slope = derivatives.spike["x"]
        assert a is not None
        self.e = self.kappa * self.e + psi[:, :, None] * a.reshape(len(psi), 1, -1)
        if a_b is not None:
            self.e_b = self.kappa * self.e_b + psi * a_b
