"""Weight quantisers: the levels that are deployed, and the straight-through functions that train them.

Every quantised weight is ``scale * levels``. Only the levels are stored as bits; the scale stays in floating point.
Masks are made in the weights' dtype: selecting by a mask of bools takes several times as long.
"""

from typing import Any

from torch import Tensor
from torch.autograd import Function


def binary_levels(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Signs of the weights and the mean magnitude of each output channel (ReActNet's BConv).

    The sign of zero is +1, so that one bit holds a weight exactly.

    Args:
        weight: latent weights, ``[C_out, ...]``.

    Returns:
        levels in {-1, +1}, of the shape of ``weight``, and scale = mean|W|, ``[C_out, 1, ...]``.

    Example:
        >>> import torch
        >>> levels, scale = binary_levels(torch.tensor([[0.5, -0.5, 0.0, -0.0]]))
        >>> levels.tolist(), scale.item()
        ([[1.0, -1.0, 1.0, 1.0]], 0.25)
    """
    levels = weight.sign().add_(0.5).sign_()
    return levels, weight.abs().mean(dim=tuple(range(1, weight.dim())), keepdim=True)


def ternary_levels(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Ternary weight networks (TWN): 0 up to Delta = 0.7 mean|W|, the mean magnitude of the rest beyond.

    Both statistics are of the whole tensor, of the weights clipped to [-1, 1].

    Args:
        weight: latent weights, of any shape.

    Returns:
        levels in {-1, 0, +1}, of the shape of ``weight``, and the scalar scale = mean of |W| over |W| > Delta.

    Example:
        >>> import torch
        >>> levels, scale = ternary_levels(torch.tensor([0.5, -3.0, 0.125, -0.0]))
        >>> levels.tolist(), scale.item()
        ([1.0, -1.0, 0.0, 0.0], 0.75)
    """
    magnitude = weight.abs().clamp_(max=1)
    delta = 0.7 * magnitude.mean()
    kept = magnitude.clone().gt_(delta)
    scale = magnitude.mul_(kept).mean() / kept.mean().clamp(min=1 / weight.numel())  # sums overflow in half precision
    return weight.sign().mul_(kept), scale


class _BinaryPass(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, quantised: Tensor) -> Tensor:
        return quantised.view_as(quantised)  # its memory: what the synapse saves for backward is no second copy

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return weight.abs().le_(1).mul(grad), None  # in place it could not be mapped over a batch


class _TernaryPass(_BinaryPass):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return weight.abs().lt_(1).mul(grad), None


def binarize(weight: Tensor, quantised: Tensor | None = None) -> Tensor:
    r"""Binary weights (ReActNet's BConv, used by EM-PF, Eq. 3, and HD-LIF).

    Forward: :math:`W_b = \mathrm{mean}|W| \, \mathrm{sign}(W)`, per output channel, sign(0) = +1.
    Pseudo-gradient: :math:`dL/dW = dL/dW_b \, 1[|W| \le 1]`; the scale is detached.

    Args:
        weight: latent weights, ``[C_out, ...]``.
        quantised: what an earlier call returned for these weights, detached; it is not computed again.

    Example:
        >>> import torch
        >>> W = torch.tensor([[0.5, -1.5]], requires_grad=True)
        >>> W_b = binarize(W)
        >>> W_b.sum().backward()
        >>> W_b.tolist(), W.grad.tolist()
        ([[1.0, -1.0]], [[1.0, 0.0]])
    """
    if quantised is None:
        levels, scale = binary_levels(weight.detach())
        quantised = scale * levels
    return _BinaryPass.apply(weight, quantised)


def ternarize(weight: Tensor, quantised: Tensor | None = None) -> Tensor:
    r"""Ternary ("1.5-bit") weights (TWN, used by HD-LIF).

    Forward: :math:`W_t = a \, \mathrm{sign}(W) \, 1[|W| > \Delta]`, see :func:`ternary_levels`.
    Pseudo-gradient: :math:`dL/dW = dL/dW_t \, 1[|W| < 1]`; scale and :math:`\Delta` are detached.

    Args:
        weight: latent weights, of any shape.
        quantised: see :func:`binarize`.

    Example:
        >>> import torch
        >>> W = torch.tensor([0.5, -1.0, 0.125], requires_grad=True)
        >>> W_t = ternarize(W)
        >>> W_t.sum().backward()
        >>> W_t.tolist(), W.grad.tolist()
        ([0.75, -0.75, 0.0], [1.0, 0.0, 1.0])
    """
    if quantised is None:
        levels, scale = ternary_levels(weight.detach())
        quantised = scale * levels
    return _TernaryPass.apply(weight, quantised)
