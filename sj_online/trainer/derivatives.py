"""The local derivatives of one step of a neuron, whatever its equation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from sj_online import host


@dataclass(frozen=True)
class Derivatives:
    """Of what a step of a neuron gives, element by element, by the names of what it was given.

    Attributes:
        spike: of the spikes, by ``'x'`` and the names of the memories before the step: ds/dx, ds/dv.
        states: of each memory behind the step, the same: ``states['v']['v']`` is dv'/dv.
    """

    spike: dict[str, Tensor]
    states: dict[str, dict[str, Tensor]]

    def push(self, tangents: Mapping[str, Tensor | float]) -> tuple[Tensor, dict[str, Tensor]]:
        """The tangents of spikes and memories behind the step, of those before it; a name that is left out has 0."""

        def along(row: dict[str, Tensor]) -> Tensor:
            parts = [row[name] * tangent for name, tangent in tangents.items() if name in row]
            return sum(parts[1:], parts[0])

        return along(self.spike), {name: along(row) for name, row in self.states.items()}


class Local:
    """A neuron that tells the derivatives of each of its steps; they cost one vector-Jacobian product per output.

    Args:
        name: of the neuron, for errors.
        node: the neuron.

    Raises:
        ValueError: at its first step, if it mixes its elements, or cuts its own past.

    Example:
        >>> node = neuron.LIFNode(tau=4.0, decay_input=False, v_reset=None, detach_reset=True)
        >>> s, local = Local("n", node).step(torch.tensor([0.5]))
        >>> local.states["v"]["v"].item(), local.states["v"]["x"].item()
        (0.75, 1.0)
    """

    def __init__(self, name: str, node: nn.Module) -> None:
        self.name = host.shown(name)
        self.node: Any = node
        self.forward = node.forward
        self.checked = False
        if getattr(node, "temporal_grad", True) is False or isinstance(node, neuron.SLTTLIFNode):
            raise ValueError(
                f"{self.name!r} ({type(node).__name__}) cuts its own past, so that its local derivatives cannot be told"
                ": set temporal_grad=True, or take LIFNode"
            )

    def run(self, x: Tensor, each: Callable[[Tensor, Tensor, Derivatives], Tensor]) -> Tensor:
        """``each(x_t, s_t, derivatives)`` of the step, or in step mode 'm' of every step, stacked."""
        if getattr(self.node, "step_mode", "s") == "s":
            return each(x, *self.step(x))
        self.node.step_mode = "s"
        try:
            return torch.stack([each(x_t, *self.step(x_t)) for x_t in x])
        finally:
            self.node.step_mode = "m"

    @torch.enable_grad()
    def step(self, x: Tensor) -> tuple[Tensor, Derivatives]:
        """Run one step, ``[N, ...]``; returns the spikes, without a graph, and the derivatives."""
        memories = host.memories(self.node)
        given = {"x": x.detach().requires_grad_()}
        for name, value in memories.items():
            if isinstance(value, float) or (isinstance(value, Tensor) and value.is_floating_point()):
                value = torch.full_like(x, value) if isinstance(value, float) else value.detach()
                memories[name] = given[name] = value.requires_grad_()
        s = self.forward(given["x"])
        self._check(s, given["x"])
        spike = _row(s, given)
        states = {name: _row(memories[name], given) for name in given if name != "x"}
        for name in states:
            memories[name] = memories[name].detach()
        return s.detach(), Derivatives(spike, states)

    def _check(self, s: Tensor, x: Tensor) -> None:
        """Whether the product with any vector is that with ones, element by element."""
        if self.checked or not s.requires_grad:
            return
        # Of powers of two, with which products are exact in half precision too.
        vector = torch.where(torch.arange(s.numel(), device=s.device).cos() > 0, 1.0, -2.0).view_as(s).to(s.dtype)
        (ones,), (any_,) = (torch.autograd.grad(s, x, g, retain_graph=True) for g in (torch.ones_like(s), vector))
        if s.shape != x.shape or not torch.allclose(any_, vector * ones, rtol=1e-3, atol=1e-6):
            raise ValueError(
                f"{self.name!r} ({type(self.node).__name__}) mixes the elements of what enters it, so that it has no"
                " local derivatives: this rule needs a neuron that is elementwise"
            )
        self.checked = True


def _row(output: Tensor, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not output.requires_grad:
        return {name: torch.zeros_like(each) for name, each in given.items()}
    ones = torch.ones_like(output)
    found = torch.autograd.grad(output, list(given.values()), ones, retain_graph=True, materialize_grads=True)
    return dict(zip(given, found, strict=True))


class Sloped(torch.autograd.Function):
    """The value ``s``, with the derivative ``slope`` with respect to ``x``, all of the same shape."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, x: Tensor, slope: Tensor | None) -> Tensor:
        """See the class; a slope of None is 1."""
        ctx.save_for_backward(slope)
        return s.view_as(s)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        """Times the slope."""
        (slope,) = ctx.saved_tensors
        return None, gradient if slope is None else gradient * slope, None
