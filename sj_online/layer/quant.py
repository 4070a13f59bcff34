"""Convolutions and linear layers with binary or ternary weights, in the place of the host's."""

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer
from torch import Tensor, nn

from sj_online.layer.kept import Kept, can_keep, keep
from sj_online.layer.quantizer import binarize, binary_levels, ternarize, ternary_levels


class Quantized(nn.Module):
    """A synapse whose ``weight`` is latent: the forward pass sees ``quantize(weight)``; subclasses name the quantiser.

    The quantised weight is kept until the weight changes. A write that torch does not count, as through ``.data`` or in
    another process, is seen after :func:`forget`, ``train()``, ``eval()``, ``load_state_dict()``, ``to()`` or the step
    of any optimizer.

    Attributes:
        weight: latent weights.
        bits: of a weight, packed.
        quantize: from latent to quantised weights, with the pseudo-gradient; what is known of them may be given.
        levels: from latent weights to levels and scale, whose product is the quantised weight.
    """

    weight: nn.Parameter
    bits: int
    quantize: Callable[..., Tensor]
    levels: Callable[[Tensor], tuple[Tensor, Tensor]]
    _kept: Kept | None = None

    def quantised(self, weight: Tensor) -> Tensor:
        """``quantize(weight)``, from what is kept if it was made of this weight as it is now."""
        if not can_keep(weight):
            return self.quantize(weight)
        kept = self._kept
        if kept is None or not kept.holds_for(weight):
            kept = keep(weight, self.quantize)
            self._kept = kept if type(kept.made) is Tensor else None  # a fake one is of no use later
        return self.quantize(weight, kept.made) if torch.is_grad_enabled() else kept.made

    def train(self, mode: bool = True) -> Self:
        """As of any module; what is kept is dropped."""
        self._kept = None
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self._kept = None
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._kept = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_kept"}


def forget(net: nn.Module) -> None:
    """Drop the quantised weights that the synapses of a network keep; they are made again when they are needed.

    Example:
        >>> linear = BinaryLinear(2, 1)
        >>> with torch.no_grad():
        ...     before = linear(torch.ones(2))
        ...     linear.weight.data.fill_(-3)  # torch does not count this
        ...     stale = linear(torch.ones(2))
        ...     forget(linear)
        ...     bool(stale == before), linear(torch.ones(2)).item()
        tensor([[-3., -3.]])
        (True, -6.0)
    """
    for module in net.modules():
        if isinstance(module, Quantized):
            module._kept = None


class _Conv(Quantized):
    """Mixed into a convolution of the host, which has ``_conv_forward``; there is no bias unless asked for."""

    bias: nn.Parameter | None

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
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, step_mode
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``[N, C, ...]``, or in multi-step mode ``[T, N, C, ...]``.

        A network that merges T and N itself, as around torch's own convolutions, gives ``[N, C, ...]`` in any mode.
        """
        if x.dim() == self.weight.dim():
            return self._conv_forward(x, self.weight, self.bias)
        return super().forward(x)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, self.quantised(weight), bias)  # type: ignore[misc]


class _Linear(Quantized):
    """Mixed into a linear layer of the host; there is no bias unless asked for."""

    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, bias: bool = False, step_mode: str = "s") -> None:
        super().__init__(in_features, out_features, bias, step_mode)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., in_features]`` to ``[..., out_features]``."""
        return F.linear(x, self.quantised(self.weight), self.bias)


class _Binary:
    """What binary layers share: quantiser, bits and the latent weights' start in U(0, 1e-3)."""

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
