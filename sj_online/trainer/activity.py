"""What neurons did in a step, recorded for the gradients of the synapses that send them their current."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Activity:
    """One call of a neuron, detached.

    Attributes:
        name: of the neuron in its network.
        input: the current that entered, ``[N, ...]``, or ``[1, N, ...]`` in step mode 'm'.
        v: the potential that the step leaves; None for neurons that keep none.
        spike: what it emitted.
        surrogate: the derivative of each spike with respect to its input, as autograd has it: the surrogate gradient
            times what the neuron makes of its input (``1 / tau`` of a LIF with ``decay_input``).
    """

    name: str
    input: Tensor
    v: Tensor | None
    spike: Tensor
    surrogate: Tensor


class Recorder:
    """The activities of one neuron in one step, in the order of its calls.

    Args:
        name: of the neuron.
        node: the neuron.
    """

    def __init__(self, name: str, node: nn.Module) -> None:
        self.name = name
        self.node = node
        self.activities: list[Activity] = []

    def around(self) -> Callable[..., Any]:
        """The forward of the neuron with this record of it; steps that do not learn are not recorded."""
        inner = self.node.forward

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return inner(x, *args, **kwargs)
            x = (
                x if x.requires_grad else x.detach().requires_grad_()
            )  # a surrogate is there though nothing before it learns
            s = inner(x, *args, **kwargs)
            (surrogate,) = torch.autograd.grad(s, x, torch.ones_like(s), retain_graph=True)
            v = getattr(self.node, "v", None)
            # Copies, because the network may go on to change what enters and leaves in place.
            kept = v.detach().clone() if isinstance(v, Tensor) else None
            self.activities.append(Activity(self.name, x.detach().clone(), kept, s.detach().clone(), surrogate))
            return s

        return forward
