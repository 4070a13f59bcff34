"""Eligibility traces of single synapses: what a learning signal, not a gradient, is multiplied with."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sj_online.topology import Place
from sj_online.trainer.derivatives import Derivatives, Local, Sloped
from sj_online.trainer.synapse import Trace


class Eligibility(Trace):
    """A trace ``e [N, out, in]`` of one linear synapse directly before its neuron: dW = sum_n L[n] e[n].

    :meth:`follow` makes it, and what else :meth:`gradients` needs, at every step behind the neuron's; L is the signal
    at the neuron's output, which :func:`straight` hands on to the synapse.

    Attributes:
        e: of the weight, ``[N, out, in]``.
        e_b: of the bias, ``[N, out]``.
        slope: what the signal is multiplied with on its way down, ``[N, out]``.
    """

    def clear(self) -> None:
        """Forget the sequence."""
        super().clear()
        self.e: Tensor | float = 0.0
        self.e_b: Tensor | float = 0.0
        self.slope: Tensor | float = 1.0
        self.called = False
        self.given: Tensor | None = None
        self.current: Tensor | None = None

    def follow(self, x: Tensor, derivatives: Derivatives) -> None:
        """Make the traces of this step.

        Args:
            x: what entered the synapse, ``[N, in]``.
            derivatives: of the neuron's step.
        """
        raise NotImplementedError

    def add(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """See :meth:`Trace.add`."""
        if self.called and not self.again:
            raise ValueError(f"{self.name!r} is called twice in a step, but has one eligibility trace")
        self.called, self.given = True, s.detach().reshape(-1, s.shape[-1])
        return super().add(s)

    def begin(self, leak: Tensor | float) -> None:
        """See :meth:`Trace.begin`."""
        super().begin(leak)
        self.called = False
        if self.given is not None and self.current is not None:  # of a step without a call they are 0
            self.given, self.current = torch.zeros_like(self.given), torch.zeros_like(self.current)

    def linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """See :meth:`Trace.linear`."""
        y = super().linear(input, weight, bias)
        self.current = y.detach()
        return y

    def conv(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Refuse."""
        raise ValueError(f"{self.name!r} is a convolution, but eligibility traces of each synapse need a Linear")

    def gradients(self, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """See :meth:`Trace.gradients`; ``grad_output`` is the signal."""
        L = grad_output.reshape(-1, grad_output.shape[-1])
        _, of_weight, of_bias = self.call.needs
        dW = torch.einsum("nj,nji->ji", L, self.e) if of_weight else None
        db = (L * self.e_b).sum(0) if of_bias else None
        return self.call.grad_input((L * self.slope).view_as(grad_output)), dW, db


def straight(
    nodes: Mapping[str, nn.Module], traces: Mapping[str, Trace], places: Mapping[str, Place]
) -> dict[nn.Module, Callable[..., Any]]:
    """The forwards of neurons that hand the gradient of their spikes on to their current as it is.

    Args:
        nodes: the neurons by name.
        traces: of the synapses by name; those of :class:`Eligibility` follow their neuron.
        places: of the synapses.

    Raises:
        ValueError: neurons that learn parameters of their own; at a step, a synapse with something between it and its
            neuron, or with several neurons behind it.
    """

    def forward_of(name: str, local: Local) -> Callable[[Tensor], Tensor]:
        if any(p.requires_grad for p in local.node.parameters()):
            raise ValueError(f"{name!r} learns parameters of its own, which a signal does not reach: freeze them")
        before = {s: t for s, t in traces.items() if isinstance(t, Eligibility) and name in places[s].neurons}
        for synapse in before:
            if len(places[synapse].neurons) > 1:
                raise ValueError(f"{synapse!r} sends its current to several neurons, but has one eligibility trace")

        def each(x: Tensor, s: Tensor, derivatives: Derivatives) -> Tensor:
            followed = [(trace, trace.given, trace.current) for trace in before.values() if trace.given is not None]
            parts = [y.reshape(x.shape) for _, _, y in followed if y is not None and y.numel() == x.numel()]
            if len(parts) < len(followed) or not torch.allclose(sum(parts, torch.zeros_like(x)), x, 1e-3, 1e-5):
                raise ValueError(
                    f"the current of {name!r} is not the sum of what {', '.join(map(repr, before))} give: eligibility"
                    " traces of each synapse need Linear synapses directly before their neuron (no norm, no pooling)"
                )
            with torch.no_grad():
                for trace, given, _ in followed:
                    trace.follow(given, derivatives)
            return Sloped.apply(s, x, None)

        return lambda x: local.run(x, each)

    return {node: forward_of(name, Local(name, node)) for name, node in nodes.items()}
