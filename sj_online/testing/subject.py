"""The neuron under test, and what its checks share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from spikingjelly.activation_based import base
from spikingjelly.activation_based.neuron import BaseNode
from torch import Tensor, nn

T = 4


@dataclass(frozen=True)
class Subject:
    """The neuron under test."""

    factory: Callable[..., BaseNode]
    shape: tuple[int, ...]

    def node(self, step_mode: str, **kwargs: Any) -> BaseNode:
        """A new neuron, always with the same parameters, which differ from their defaults."""
        node = self.factory(step_mode=step_mode, **kwargs)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in node.parameters():
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
        return node

    def x(self, steps: int = T, **kwargs: Any) -> Tensor:
        """Input [T, N, C, H, W] that needs a gradient."""
        return torch.randn(steps, *self.shape, **kwargs).requires_grad_()


def run(node: nn.Module, x_seq: Tensor, step_mode: str) -> Tensor:
    """Output [T, N, ...] of a neuron in either step mode."""
    return node(x_seq) if step_mode == "m" else torch.stack([node(x) for x in x_seq])


def gradients(node: nn.Module, outputs: Tensor, x: Tensor) -> list[Tensor]:
    """Gradients of x and of every parameter for fixed weights on the outputs; zeros where nothing flows."""
    weights = torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype).view(outputs.shape)
    inputs = [x, *node.parameters()]
    return list(torch.autograd.grad((outputs * weights).sum(), inputs, materialize_grads=True))


def state(node: nn.Module) -> list[Any]:
    """The memories, detached."""
    return [m.detach().clone() if isinstance(m, Tensor) else m for m in base.extract_memories(node)]


def same(actual: Any, expected: Any, what: str, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Assert that two values or lists of values are equal, exactly unless a tolerance says otherwise."""
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, msg=lambda m: f"{what}: {m}")


def both_modes(check: Callable[[Subject, str], None]) -> Callable[[Subject], None]:
    """Run a check in ``'s'`` and in ``'m'``."""

    def run_both(subject: Subject) -> None:
        for step_mode in "sm":
            try:
                check(subject, step_mode)
            except Exception as error:
                raise AssertionError(f"step_mode={step_mode!r}: {error}") from error

    run_both.__name__ = check.__name__
    return run_both
