"""The surrogate derivatives of the papers' LIF neurons, by name."""

from typing import Any

import torch
from spikingjelly.activation_based import surrogate
from spikingjelly.activation_based.surrogate import SurrogateFunctionBase
from torch import Tensor


class _QuasiClamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x >= 0).to(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= 1)


class QuasiClamp(SurrogateFunctionBase):
    """A spike where x >= 0, with the derivative 1 for abs(x) <= 1 and 0 elsewhere (OTTT, Sec. 4.2).

    Example:
        >>> x = torch.tensor([-1.5, -1.0, 0.0, 1.5], requires_grad=True)
        >>> QuasiClamp()(x).sum().backward()
        >>> x.grad.tolist()
        [0.0, 1.0, 1.0, 0.0]
    """

    @staticmethod
    def spiking_function(x: Tensor) -> Tensor:
        """The spikes."""
        return _QuasiClamp.apply(x)

    @staticmethod
    def primitive_function(x: Tensor) -> Tensor:
        """What has this derivative."""
        return (x + 1).clamp(0, 2)


def named(function: SurrogateFunctionBase | str) -> SurrogateFunctionBase:
    """A surrogate, which may be given by name: 'sigmoid' (OTTT), 'triangle' (SLTT, STOL) or 'quasi_clamp' (OTTT).

    Raises:
        ValueError: an unknown name.

    Example:
        >>> named("sigmoid").alpha
        4.0
    """
    match function:
        case "sigmoid":
            return surrogate.Sigmoid(alpha=4.0)
        case "triangle":
            return surrogate.PiecewiseQuadratic(alpha=1.0)
        case "quasi_clamp":
            return QuasiClamp()
        case str():
            raise ValueError(f"surrogate_function={function!r} is not one of 'sigmoid', 'triangle', 'quasi_clamp'")
    return function
