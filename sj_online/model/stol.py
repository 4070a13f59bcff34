"""The networks of STOL."""

from collections.abc import Iterable
from typing import Any

from spikingjelly.activation_based import functional, layer
from spikingjelly.activation_based.model import sew_resnet
from torch import nn

from sj_online import registry
from sj_online.layer.replace import KINDS, quantize_synapses
from sj_online.model import blocks, factories
from sj_online.model.blocks import Parts
from sj_online.model.factories import NeuronFactory

PAPER = "STOL (Xue et al.)"


@registry.cite(PAPER)
def stol_ms_resnet18(
    num_classes: int = 10,
    in_channels: int = 3,
    num_steps: int | None = None,
    *,
    neuron: str | NeuronFactory = "stol_lif",
    neuron_options: dict[str, Any] | None = None,
    synapse: str = "float",
    norm: str = "batch",
    width: int = 64,
    step_mode: str = "s",
) -> nn.Sequential:
    """MS-ResNet-18 of STOL: a shortcut that changes shape has a neuron of its own, 20 neurons in all.

    Args:
        num_classes: outputs of the readout.
        in_channels: C of the input.
        num_steps: T of the per-step parameters of a neuron that has such; a LIF neuron takes any T.
        neuron: a name of :data:`~.factories.LIF`, a registered name, or a factory.
        neuron_options: further arguments of a named neuron.
        synapse: ``'float'``, ``'binary'``, ``'ternary'`` or ``'ws'``.
        norm: ``'batch'``, ``'step'``, ``'td'``, or ``'none'`` as in the paper's ablation of k.
        width: channels of the first stage.
        step_mode: ``'s'``: [N, C, H, W] to [N, classes]; ``'m'``: [T, N, C, H, W] to [T, N, classes].

    Raises:
        ValueError: an unknown name.

    Example:
        >>> import torch
        >>> stol_ms_resnet18(width=8)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    conv = factories.choice("synapse", synapse, factories.SYNAPSES)
    parts = Parts(conv, factories.choice("norm", norm, factories.NORMS))
    node = factories.neuron_factory(neuron, num_steps, **(neuron_options or {}))

    widths = [width, 2 * width, 4 * width, 8 * width]
    return blocks.network(
        step_mode,
        stem=parts.conv_norm(in_channels, width, stem=True),
        stages=blocks.stages(blocks.membrane_shortcut(parts, node, node), width, widths, (2, 2, 2, 2)),
        neuron=node(),
        readout=blocks.pooled_readout(widths[-1], num_classes),
    )


@registry.cite(PAPER)
def stol_vgg11(
    num_classes: int = 10,
    in_channels: int = 2,
    num_steps: int | None = None,
    *,
    neuron: str | NeuronFactory = "stol_lif",
    neuron_options: dict[str, Any] | None = None,
    synapse: str = "float",
    dropout: float = 0.3,
    width: int = 64,
    step_mode: str = "s",
) -> nn.Sequential:
    """VGG-11 of STOL, for events: 64-A-128-A-256-256-A-512-512-A-512-512-A, features of 7x7, readout.

    The paper's tau is 2 for DVS128 Gesture, which is the default, and 4 for CIFAR10-DVS: ``{"tau": 4 / 3}``.

    Args:
        num_classes: outputs of the readout.
        in_channels: C of the input.
        num_steps: as in :func:`stol_ms_resnet18`, and so are all others.
        neuron: a name of :data:`~.factories.LIF`, a registered name, or a factory.
        neuron_options: further arguments of a named neuron.
        synapse: ``'float'``, ``'binary'``, ``'ternary'`` or ``'ws'``.
        dropout: of the features, one mask for all steps.
        width: channels of the first convolution.
        step_mode: ``'s'`` or ``'m'``.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> import torch
        >>> stol_vgg11(width=8)(torch.rand(1, 2, 48, 48)).shape
        torch.Size([1, 10])
    """
    parts = Parts(conv=factories.choice("synapse", synapse, factories.SYNAPSES), bias=True)
    node = factories.neuron_factory(neuron, num_steps, **(neuron_options or {}))

    def unit(channels: int, out_channels: int, first: bool) -> Iterable[nn.Module]:
        return [parts.conv_norm(channels, out_channels, stem=first), node()]

    plan = blocks.widen((1, "A", 2, "A", 4, 4, "A", 8, 8, "A", 8, 8, "A"), width)
    features = blocks.vgg(plan, in_channels, unit)
    readout = nn.Sequential(
        layer.AdaptiveAvgPool2d(7),
        layer.Dropout(dropout),
        layer.Flatten(),
        layer.Linear(8 * width * 49, num_classes),
    )
    return blocks.network(step_mode, features=features, readout=readout)


@registry.cite(PAPER)
def stol_sew_resnet34(
    num_classes: int = 1000,
    in_channels: int = 3,
    num_steps: int | None = None,
    *,
    neuron: str | NeuronFactory = "stol_lif",
    neuron_options: dict[str, Any] | None = None,
    synapse: str = "float",
    step_mode: str = "s",
) -> nn.Module:
    """SEW-ResNet-34 (ADD), for ImageNet: the host's ``sew_resnet34``.

    Args:
        num_classes: outputs of the readout.
        in_channels: C of the input.
        num_steps: as in :func:`stol_ms_resnet18`, and so are all others.
        neuron: a name of :data:`~.factories.LIF`, a registered name, or a factory.
        neuron_options: further arguments of a named neuron.
        synapse: ``'float'``, ``'binary'`` or ``'ternary'``, for all convolutions but the first; latent weights start as
            the float ones do.
        step_mode: ``'s'`` or ``'m'``.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     stol_sew_resnet34(num_classes=5).fc
        Linear(in_features=512, out_features=5, bias=True)
    """
    node = factories.neuron_factory(neuron, num_steps, **(neuron_options or {}))
    net = sew_resnet.sew_resnet34(cnf="ADD", spiking_neuron=node, num_classes=num_classes)
    if synapse != "float":
        factories.choice("synapse", synapse, dict.fromkeys(("float", *KINDS)))
        quantize_synapses(net, synapse)
    if in_channels != net.conv1.in_channels:
        net.conv1 = layer.Conv2d(in_channels, net.conv1.out_channels, 7, 2, 3, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    functional.set_step_mode(net, step_mode)
    return net
