"""Scaled weight standardisation (sWS), which OTTT uses in the place of batch normalisation."""

from spikingjelly.activation_based import layer
from torch import Tensor


class ScaledWSConv2d(layer.WSConv2d):
    r"""2-D convolution with standardised weights and a learnable gain per output channel (OTTT, Appendix; NF-Nets).

    :math:`\hat W = g \, (W - \mu) / \sqrt{N \sigma^2 + 10^{-4}}`, with mean and unbiased variance of the fan-in N of
    each output channel. It is the host's ``WSConv2d``, but heeds ``padding_mode``; arguments and shapes are its.

    Example:
        >>> import torch
        >>> ScaledWSConv2d(3, 8, kernel_size=3, padding=1)(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 8, 16, 16])
    """

    paper = "OTTT (Xiao et al. 2022)"

    def _forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.get_weight(), self.bias)


class ScaledWSLinear(layer.WSLinear):
    """Linear layer with standardised weights, see :class:`ScaledWSConv2d`; it is the host's ``WSLinear``.

    Example:
        >>> import torch
        >>> ScaledWSLinear(16, 4)(torch.rand(2, 16)).shape
        torch.Size([2, 4])
    """

    paper = "OTTT (Xiao et al. 2022)"
