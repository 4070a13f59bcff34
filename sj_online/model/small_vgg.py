"""A small VGG-like network with binary weights, for images of a few pixels."""

from collections.abc import Sequence

from spikingjelly.activation_based import layer
from torch import nn

from sj_online.layer import BinaryConv2d
from sj_online.neuron import EMPFNode


def small_vgg(
    num_classes: int = 10,
    in_channels: int = 1,
    num_steps: int | None = 4,
    widths: Sequence[Sequence[int]] = ((32,), (64,), (128,)),
) -> nn.Sequential:
    """Stages of 3x3 convolution, batch norm and EM-PF neuron, each stage ending in an average pool, and a readout.

    The first convolution and the readout have float weights, as in EM-PF and HD-LIF; all others are binary.

    Args:
        num_classes: outputs of the readout.
        in_channels: C of the input ``[N, C, H, W]``.
        num_steps: T of the neurons' per-step parameters; None for one value per neuron layer and any T.
        widths: output channels of the convolutions, stage by stage.

    Returns:
        The network in step mode 's': ``[N, C, H, W]`` to ``[N, num_classes]``.

    Example:
        >>> import torch
        >>> small_vgg(widths=[[8, 16], [16]])(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    net = nn.Sequential()
    channels = in_channels
    for stage in widths:
        for width in stage:
            conv = BinaryConv2d if net else layer.Conv2d
            net.append(conv(channels, width, kernel_size=3, padding=1, bias=False))
            net.append(layer.BatchNorm2d(width))
            net.append(EMPFNode(num_steps))
            channels = width
        net.append(layer.AvgPool2d(2))
    return net.extend([layer.AdaptiveAvgPool2d(1), layer.Flatten(), layer.Linear(channels, num_classes)])


small_vgg.paper = "VGG-like, binary as in EM-PF"  # type: ignore[attr-defined]
