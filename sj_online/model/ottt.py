"""The networks of OTTT: no batch norm, standardised weights, and a scale behind every neuron."""

from typing import Any

import torch
from spikingjelly.activation_based import layer
from spikingjelly.activation_based.model.spiking_vggws_ottt import OTTTSpikingVGG, Scale
from torch import Tensor, nn

from sj_online import registry
from sj_online.layer import Feedback, ScaledWSConv2d
from sj_online.model import blocks, factories
from sj_online.model.blocks import Residual
from sj_online.model.factories import NeuronFactory

GAIN = 2.74
"""Brings the second moment of a neuron's spikes back to one, where weights are standardised."""


class SkipGain(nn.Module):
    """y = alpha gain x, with a learnable scalar gain that starts at 0 (normaliser-free networks)."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Scale."""
        return self.alpha * self.gain * x


def _initialise(*nets: nn.Module) -> None:
    """Convolutions, latent weights too: He et al., by fan-out; readouts: N(0, 0.01); no bias."""
    for module in (module for net in nets for module in net.modules()):
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def _first(synapse: str) -> type[layer.Conv2d]:
    """The first convolution sees the image: its weights are standardised as all others, but never quantised."""
    return ScaledWSConv2d if synapse == "ws" else layer.Conv2d


@registry.cite("OTTT (Xiao et al. 2022)")
def ottt_vgg(
    num_classes: int = 10,
    in_channels: int = 3,
    num_steps: int | None = None,
    *,
    feedback: bool = False,
    neuron: str | NeuronFactory = "ottt_lif",
    neuron_options: dict[str, Any] | None = None,
    synapse: str = "ws",
    dropout: float = 0.0,
    width: int = 64,
    step_mode: str = "s",
) -> nn.Sequential:
    """VGG of OTTT, and VGG-F: 64-128-A-256-256-A-512-512-A-512-512, global average pool, readout.

    It is the host's ``ottt_spiking_vggws`` with the convolutions of ``synapse``. The first convolution and the readout
    have float weights.

    Args:
        num_classes: outputs of the readout.
        in_channels: C of the input.
        num_steps: T of the per-step parameters of a neuron that has such; a LIF neuron takes any T.
        feedback: a connection from the last features to the first convolution's output (VGG-F).
        neuron: a name of :data:`~.factories.LIF`, a registered name, or a factory.
        neuron_options: further arguments of a named neuron.
        synapse: ``'ws'``, ``'float'``, ``'binary'`` or ``'ternary'``.
        dropout: of the spikes, one mask for all steps; 0.1 in the paper for events.
        width: channels of the first convolution.
        step_mode: ``'s'``: [N, C, H, W] to [N, classes]; ``'m'``: [T, N, C, H, W] to [T, N, classes].

    Raises:
        ValueError: an unknown name.

    Example:
        >>> ottt_vgg(width=8, feedback=True)(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 10])
    """
    conv = factories.choice("synapse", synapse, factories.SYNAPSES)
    node = factories.neuron_factory(neuron, num_steps, **(neuron_options or {}))
    plan = blocks.widen((1, 2, "A", 4, 4, "A", 8, 8, "A", 8, 8), width)
    layers = nn.Sequential(*OTTTSpikingVGG.make_layers(plan, True, node, dropout))
    for i, host in enumerate(layers):
        if isinstance(host, layer.WSConv2d):
            make, channels = (conv, host.in_channels) if i else (_first(synapse), in_channels)
            layers[i] = make(channels, host.out_channels, 3, padding=1, bias=True)
    readout = blocks.vgg_readout(plan, None, num_classes)
    _initialise(layers, readout)
    features: nn.Module = layers
    if feedback:
        entry, *body = layers
        back = layer.Conv2d(8 * width, width, 3, padding=1)
        nn.init.zeros_(back.weight)
        nn.init.zeros_(back.bias)
        connection = blocks.row(up=layer.Upsample(scale_factor=2 ** plan.count("A"), mode="nearest"), conv=back)
        features = Feedback(entry, nn.Sequential(*body), connection)
    return blocks.network(step_mode, features=features, readout=readout)


@registry.cite("OTTT (Xiao et al. 2022)")
def nf_resnet34(
    num_classes: int = 1000,
    in_channels: int = 3,
    num_steps: int | None = None,
    *,
    neuron: str | NeuronFactory = "ottt_lif",
    neuron_options: dict[str, Any] | None = None,
    synapse: str = "ws",
    width: int = 64,
    step_mode: str = "s",
) -> nn.Sequential:
    """Normaliser-free ResNet-34 of OTTT, for ImageNet.

    A block sees x / beta, beta^2 the variance that x is expected to have: each block adds alpha^2 = 0.04, and one that
    changes the shape starts again from 1. The first convolution and the readout have float weights. OTTT's authors do
    not trace this readout, which has no neuron before it: ``OTTT(..., trace_readout=False)``.

    Args:
        num_classes: outputs of the readout, whose weights start at zero.
        in_channels: C of the input.
        num_steps: as in :func:`ottt_vgg`, and so are all others.
        neuron: a name or a factory.
        neuron_options: further arguments of a named neuron.
        synapse: ``'ws'``, ``'float'``, ``'binary'`` or ``'ternary'``.
        width: channels of the first stage.
        step_mode: ``'s'`` or ``'m'``.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> nf_resnet34(num_classes=5, width=4)(torch.rand(1, 3, 64, 64)).shape
        torch.Size([1, 5])
    """
    conv = factories.choice("synapse", synapse, factories.SYNAPSES)
    node = factories.neuron_factory(neuron, num_steps, **(neuron_options or {}))
    alpha, variance = 0.2, 1.0

    def block(channels: int, out_channels: int, stride: int) -> nn.Module:
        nonlocal variance
        same = channels == out_channels and stride == 1
        enter = [Scale(variance**-0.5), node(), Scale(GAIN)]
        variance = (variance if same else 1.0) + alpha**2
        branch = [
            conv(channels, out_channels, 3, stride, 1, bias=True),
            node(),
            Scale(GAIN),
            conv(out_channels, out_channels, 3, padding=1, bias=True),
            SkipGain(alpha),
        ]
        if same:
            return Residual(nn.Sequential(*enter, *branch))
        shortcut = conv(channels, out_channels, 1, stride, bias=True)
        return nn.Sequential(*enter, Residual(nn.Sequential(*branch), shortcut))

    stem = blocks.row(conv=_first(synapse)(in_channels, width, 7, 2, 3, bias=True), pool=layer.AvgPool2d(3, 2, 1))
    stages = blocks.stages(block, width, [width, 2 * width, 4 * width, 8 * width], (3, 4, 6, 3))
    readout = blocks.pooled_readout(8 * width, num_classes)
    _initialise(stem, stages, readout)
    nn.init.zeros_(readout.get_parameter("2.weight"))
    return blocks.network(step_mode, stem=stem, stages=stages, readout=readout)


ottt_vgg_f = factories.variant(ottt_vgg, feedback=True)
