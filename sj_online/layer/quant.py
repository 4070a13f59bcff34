"""Convolutions and linear layers with binary or ternary weights, in the place of the host's."""

import torch.nn.functional as F
from spikingjelly.activation_based import layer
from torch import Tensor, nn

from sj_online.layer.quantized import Quantized
from sj_online.layer.quantizer import binarize, binary_levels, ternarize, ternary_levels


class _Conv(Quantized):
    """Mixed into a convolution of the host, which has ``_conv_forward``; there is no bias unless asked for."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: str = "zeros",
        step_mode: str = "s",
        *,
        integer: bool = False,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, step_mode
        )
        self.integer = integer

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``[N, C, ...]``, or in multi-step mode ``[T, N, C, ...]``.

        A network that merges T and N itself, as around torch's own convolutions, gives ``[N, C, ...]`` in any mode.
        """
        if x.dim() == self.weight.dim():
            return self._conv_forward(x, self.weight, self.bias)
        return super().forward(x)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = self._as_integers(input) if input.dim() == weight.dim() else None
        # The host's convolution beside this class has it, which the bases here do not say.
        return super()._conv_forward(input, self.quantised(weight), bias) if y is None else y  # type: ignore[misc]


class _Linear(Quantized):
    """Mixed into a linear layer of the host; there is no bias unless asked for."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        step_mode: str = "s",
        *,
        integer: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, bias, step_mode)
        self.integer = integer

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., in_features]`` to ``[..., out_features]``."""
        y = self._as_integers(x)
        return F.linear(x, self.quantised(self.weight), self.bias) if y is None else y


class _Binary:
    """What binary layers share: quantiser, bits and the latent weights' start in U(0, 1e-3)."""

    paper = "EM-PF, Eq. 3; ReActNet (Liu et al. 2020)"
    bits = 1
    quantize = staticmethod(binarize)
    levels = staticmethod(binary_levels)
    weight: nn.Parameter

    def reset_parameters(self) -> None:
        """Draw latent weights from U(0, 1e-3), as ReActNet does; the bias as the host does."""
        super().reset_parameters()  # type: ignore[misc]  # of the host's layer beside this class
        nn.init.uniform_(self.weight, 0.0, 1e-3)


class _Ternary:
    """What ternary layers share; the latent weights start as the host's weights do."""

    paper = "HD-LIF; TWN (Li et al. 2016)"
    bits = 2
    quantize = staticmethod(ternarize)
    levels = staticmethod(ternary_levels)


class BinaryConv1d(_Binary, _Conv, layer.Conv1d):
    """1-D convolution with one bit per weight, see :class:`BinaryConv2d`; ``[N, C, L]`` or ``[T, N, C, L]``.

    Example:
        >>> import torch
        >>> BinaryConv1d(3, 8, kernel_size=1)(torch.rand(2, 3, 16)).shape
        torch.Size([2, 8, 16])
    """


class BinaryConv2d(_Binary, _Conv, layer.Conv2d):
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


class BinaryLinear(_Binary, _Linear, layer.Linear):
    """Linear layer with one bit per weight and one scale per output feature, see :class:`BinaryConv2d`.

    Example:
        >>> import torch
        >>> BinaryLinear(16, 4)(torch.rand(2, 16)).shape
        torch.Size([2, 4])
    """


class TernaryConv1d(_Ternary, _Conv, layer.Conv1d):
    """1-D convolution with weights in {-a, 0, a}, see :class:`TernaryConv2d`; ``[N, C, L]`` or ``[T, N, C, L]``.

    Example:
        >>> import torch
        >>> TernaryConv1d(3, 8, kernel_size=1)(torch.rand(2, 3, 16)).shape
        torch.Size([2, 8, 16])
    """


class TernaryConv2d(_Ternary, _Conv, layer.Conv2d):
    """2-D convolution with weights in {-a, 0, a}, one a per tensor ("1.5 bit"), see :func:`~.quantizer.ternarize`.

    Args and shapes as :class:`BinaryConv2d`.

    Example:
        >>> import torch
        >>> TernaryConv2d(3, 8, kernel_size=3, padding=1)(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 8, 16, 16])
    """


class TernaryLinear(_Ternary, _Linear, layer.Linear):
    """Linear layer with weights in {-a, 0, a}, see :class:`TernaryConv2d`.

    Example:
        >>> import torch
        >>> TernaryLinear(16, 4)(torch.rand(2, 16)).shape
        torch.Size([2, 4])
    """
