"""Convolutions and linear layers with binary or ternary weights, in the place of the host's."""

from collections.abc import Callable

import torch.nn.functional as F
from spikingjelly.activation_based import layer
from torch import Tensor, nn

from sj_online.layer.quantizer import binarize, binary_levels, ternarize, ternary_levels


class QuantConv2d(layer.Conv2d):
    """The host's ``Conv2d`` whose ``weight`` is latent: the forward pass sees ``quantize(weight)``.

    Subclasses name the quantiser. Arguments and shapes are the host's; there is no bias unless asked for.
    """

    bits: int
    quantize: Callable[[Tensor], Tensor]
    levels: Callable[[Tensor], tuple[Tensor, Tensor]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: str = "zeros",
        step_mode: str = "s",
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, step_mode
        )

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, self.quantize(weight), bias)


class QuantLinear(layer.Linear):
    """The host's ``Linear`` whose ``weight`` is latent, see :class:`QuantConv2d`."""

    bits: int
    quantize: Callable[[Tensor], Tensor]
    levels: Callable[[Tensor], tuple[Tensor, Tensor]]

    def __init__(self, in_features: int, out_features: int, bias: bool = False, step_mode: str = "s") -> None:
        super().__init__(in_features, out_features, bias, step_mode)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., in_features]`` to ``[..., out_features]``."""
        return F.linear(x, self.quantize(self.weight), self.bias)


class _Binary:
    """What the two binary layers share: quantiser, bits and the latent weights' start in U(0, 1e-3)."""

    paper = "EM-PF, Eq. 3; ReActNet (Liu et al. 2020)"
    bits = 1
    quantize = staticmethod(binarize)
    levels = staticmethod(binary_levels)

    weight: nn.Parameter

    def reset_parameters(self) -> None:
        """Draw latent weights from U(0, 1e-3), as ReActNet does; the bias as the host does."""
        super().reset_parameters()  # type: ignore[misc]
        nn.init.uniform_(self.weight, 0.0, 1e-3)


class _Ternary:
    """What the two ternary layers share; the latent weights start as the host's weights do."""

    paper = "HD-LIF; TWN (Li et al. 2016)"
    bits = 2
    quantize = staticmethod(ternarize)
    levels = staticmethod(ternary_levels)


class BinaryConv2d(_Binary, QuantConv2d):
    """2-D convolution with one bit per weight and one scale per output channel, see :func:`~.quantizer.binarize`.

    Args and shapes are those of the host's ``layer.Conv2d``: ``[N, C, H, W]`` step by step, ``[T, N, C, H, W]`` in
    multi-step mode. ``bias`` is False by default: a batch norm follows. ``weight`` holds the latent weights, which
    weight decay acts on.

    Example:
        >>> import torch
        >>> conv = BinaryConv2d(3, 8, kernel_size=3, padding=1, step_mode="m")
        >>> conv(torch.rand(4, 2, 3, 16, 16)).shape
        torch.Size([4, 2, 8, 16, 16])
    """


class BinaryLinear(_Binary, QuantLinear):
    """Linear layer with one bit per weight and one scale per output feature, see :class:`BinaryConv2d`.

    Example:
        >>> import torch
        >>> BinaryLinear(16, 4)(torch.rand(2, 16)).shape
        torch.Size([2, 4])
    """


class TernaryConv2d(_Ternary, QuantConv2d):
    """2-D convolution with weights in {-a, 0, a}, one a per tensor ("1.5 bit"), see :func:`~.quantizer.ternarize`.

    Args and shapes as :class:`BinaryConv2d`.

    Example:
        >>> import torch
        >>> TernaryConv2d(3, 8, kernel_size=3, padding=1)(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 8, 16, 16])
    """


class TernaryLinear(_Ternary, QuantLinear):
    """Linear layer with weights in {-a, 0, a}, see :class:`TernaryConv2d`.

    Example:
        >>> import torch
        >>> TernaryLinear(16, 4)(torch.rand(2, 16)).shape
        torch.Size([2, 4])
    """
