"""The network of SLTT."""

from typing import Any

from spikingjelly.activation_based import layer
from torch import nn

from sj_online import registry
from sj_online.model import blocks, factories
from sj_online.model.blocks import Residual
from sj_online.model.factories import NeuronFactory


@registry.cite("SLTT (Meng et al. 2023)")
def sltt_preact_resnet18(
    num_classes: int = 10,
    in_channels: int = 3,
    num_steps: int | None = None,
    *,
    neuron: str | NeuronFactory = "sltt_lif",
    neuron_options: dict[str, Any] | None = None,
    synapse: str = "float",
    dropout: float = 0.0,
    width: int = 64,
    step_mode: str = "s",
) -> nn.Sequential:
    """PreAct-ResNet-18 of SLTT: batch norm and neuron first, also before the shortcut; convolutions with bias.

    Args:
        num_classes: outputs of the readout.
        in_channels: C of the input.
        num_steps: T of the per-step parameters of a neuron that has such; a LIF neuron takes any T.
        neuron: a name of :data:`~.factories.LIF`, a registered name, or a factory.
        neuron_options: further arguments of a named neuron.
        synapse: ``'float'``, ``'binary'``, ``'ternary'`` or ``'ws'``.
        dropout: of the spikes before a block's second convolution and of the features, one mask for all steps.
        width: channels of the first stage.
        step_mode: ``'s'``: [N, C, H, W] to [N, classes]; ``'m'``: [T, N, C, H, W] to [T, N, classes].

    Raises:
        ValueError: an unknown name.

    Example:
        >>> import torch
        >>> sltt_preact_resnet18(width=8)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    conv = factories.choice("synapse", synapse, factories.SYNAPSES)
    node = factories.neuron_factory(neuron, num_steps, **(neuron_options or {}))

    def fire(channels: int) -> list[nn.Module]:
        return [layer.BatchNorm2d(channels), node()]

    def block(channels: int, out_channels: int, stride: int) -> nn.Module:
        same = channels == out_channels and stride == 1
        body = nn.Sequential(
            conv(channels, out_channels, 3, stride, 1, bias=True),
            *fire(out_channels),
            layer.Dropout(dropout),
            conv(out_channels, out_channels, 3, padding=1, bias=True),
        )
        shortcut = None if same else conv(channels, out_channels, 1, stride, bias=True)
        return nn.Sequential(*fire(channels), Residual(body, shortcut))

    widths = [width, 2 * width, 4 * width, 8 * width]
    return blocks.network(
        step_mode,
        stem=layer.Conv2d(in_channels, width, 3, padding=1, bias=False),
        stages=blocks.stages(block, width, widths, (2, 2, 2, 2)),
        fire=nn.Sequential(*fire(widths[-1])),
        readout=nn.Sequential(
            layer.AvgPool2d(4), layer.Flatten(), layer.Dropout(dropout), layer.Linear(widths[-1], num_classes)
        ),
    )
