"""The networks of LM-H."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from spikingjelly.activation_based import layer
from torch import nn

from sj_online import registry
from sj_online.model import blocks, factories
from sj_online.model.blocks import Parts, Residual
from sj_online.model.factories import NeuronFactory

PAPER = "LM-H (Hao et al. 2024)"
Block = Callable[[int, int, int], nn.Module]


def _parts(synapse: str, norm: str, bias: bool = False) -> Parts:
    conv = factories.choice("synapse", synapse, factories.SYNAPSES)
    return Parts(conv, factories.choice("norm", norm, factories.NORMS), bias)


def _dropped(node: NeuronFactory, dropout: float) -> NeuronFactory:
    return lambda: nn.Sequential(node(), layer.Dropout(dropout))


def _post_activation(parts: Parts, node: NeuronFactory) -> Block:
    """The block of He et al., with neurons for ReLU."""

    def build(channels: int, out_channels: int, stride: int) -> nn.Module:
        same = channels == out_channels and stride == 1
        enter = parts.conv_norm(channels, out_channels, 3, stride)
        body = nn.Sequential(enter, node(), parts.conv_norm(out_channels, out_channels))
        shortcut = None if same else parts.conv_norm(channels, out_channels, 1, stride)
        return nn.Sequential(Residual(body, shortcut), node())

    return build


def _last_size(image_size: int, halvings: int) -> int:
    """H = W of the last features, behind strided convolutions and pools and then a pool of 2."""
    size = -(-image_size >> halvings) >> 1
    if size < 1:
        raise ValueError(f"image_size={image_size!r} is too small, nothing is left of it")
    return size


@registry.cite(PAPER)
def lmh_resnet(
    num_classes: int = 10,
    in_channels: int = 3,
    num_steps: int | None = None,
    *,
    depths: Sequence[int] = (2, 2, 2, 2),
    multiples: Sequence[int] = (1, 2, 4, 8),
    hidden: int | None = None,
    hidden_neurons: bool = True,
    image_size: int | None = None,
    dropout: float = 0.0,
    imagenet: bool = False,
    neuron: str | NeuronFactory = "lmh",
    neuron_options: dict[str, Any] | None = None,
    synapse: str = "float",
    norm: str = "batch",
    width: int = 64,
    step_mode: str = "s",
) -> nn.Sequential:
    """ResNet of LM-H: post-activation blocks, or for ImageNet MS-ResNet's, then without a neuron at the end.

    Args:
        num_classes: outputs of the readout.
        in_channels: C of the input.
        num_steps: T of radical LM-H's per-step factors; None: vanilla LM-H, any T.
        depths: blocks of each stage.
        multiples: channels of each stage, in widths.
        hidden: units of a layer before the readout, in widths; None: without.
        hidden_neurons: whether its units are neurons; else the two layers are linear, without anything between.
        image_size: H = W of the input, whose last features are pooled by 2 and all read out; None: they are averaged.
        dropout: of the hidden units, one mask for all steps; without hidden neurons also of the features.
        imagenet: a 7x7 stem of stride 2 with an average pool, and MS-ResNet's blocks.
        neuron: ``'lmh'``, another registered name, or a factory.
        neuron_options: further arguments of a named neuron.
        synapse: ``'float'``, ``'binary'``, ``'ternary'`` or ``'ws'``.
        norm: ``'batch'``, ``'step'`` to normalise each step of a sequence by itself, ``'td'`` for the host's tdBN (in
            step mode ``'m'``), or ``'none'``.
        width: channels behind the stem.
        step_mode: ``'s'``: [N, C, H, W] to [N, classes]; ``'m'``: [T, N, C, H, W] to [T, N, classes].

    Raises:
        ValueError: an unknown name, an image too small for the pools, or dropout without hidden units.

    Example:
        >>> import torch
        >>> lmh_resnet(width=8)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    if dropout and hidden is None:
        raise ValueError(f"dropout={dropout!r} is of the hidden units, but hidden=None")
    if not hidden_neurons and hidden is None:
        raise ValueError("hidden_neurons=False is of the hidden units, but hidden=None")
    parts = _parts(synapse, norm)
    node = factories.neuron_factory(neuron, num_steps, **(neuron_options or {}))
    widths = [multiple * width for multiple in multiples]
    stem = blocks.stem(parts, in_channels, width, imagenet=imagenet, pool=layer.AvgPool2d)
    block = (blocks.membrane_shortcut if imagenet else _post_activation)(parts, node)
    if not imagenet:
        stem.append(node())
    pool: nn.Module | None = None
    size = 1
    if image_size is not None:
        pool, size = layer.AvgPool2d(2), _last_size(image_size, len(widths) - 1 + 2 * imagenet)
    units = hidden and hidden * width
    if hidden_neurons:
        fire = _dropped(node, dropout)
    else:
        pool = nn.Sequential(pool or layer.AdaptiveAvgPool2d(1), layer.Dropout(dropout))
        fire = partial(layer.Dropout, dropout)
    readout = blocks.pooled_readout(widths[-1] * size**2, num_classes, pool=pool, hidden=units, neuron=fire)
    stages = blocks.stages(block, width, widths, depths)
    return blocks.network(step_mode, stem=stem, stages=stages, readout=readout)


@registry.cite(PAPER)
def lmh_vgg(
    num_classes: int = 100,
    in_channels: int = 3,
    num_steps: int | None = None,
    *,
    plan: Sequence[int | str],
    image_size: int = 32,
    hidden: int = 64,
    neuron: str | NeuronFactory = "lmh",
    neuron_options: dict[str, Any] | None = None,
    synapse: str = "float",
    norm: str = "batch",
    dropout: float = 0.0,
    width: int = 64,
    step_mode: str = "s",
) -> nn.Sequential:
    """VGG of LM-H: convolution with bias, norm, neuron; two hidden layers of neurons before the readout.

    Args:
        num_classes: outputs of the readout.
        in_channels: C of the input.
        num_steps: T of radical LM-H's per-step factors; None: vanilla LM-H, any T.
        plan: output channels of the convolutions in widths, and 'A' for an average pool of 2.
        image_size: H = W of the input.
        hidden: units of each hidden layer, in widths.
        neuron: see :func:`lmh_resnet`, as for the others.
        neuron_options: further arguments of a named neuron.
        synapse: ``'float'``, ``'binary'``, ``'ternary'`` or ``'ws'``.
        norm: ``'batch'``, ``'step'``, ``'td'`` or ``'none'``.
        dropout: of the hidden units, one mask for all steps.
        width: channels of the first convolution.
        step_mode: ``'s'`` or ``'m'``.

    Raises:
        ValueError: an unknown name, or an image too small for the pools.

    Example:
        >>> import torch
        >>> lmh_vgg(plan=(1, "A", 2), image_size=8, width=4, hidden=2)(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 100])
    """
    parts = _parts(synapse, norm, bias=True)
    node = factories.neuron_factory(neuron, num_steps, **(neuron_options or {}))

    def unit(channels: int, out_channels: int, first: bool) -> Iterable[nn.Module]:
        return [parts.conv_norm(channels, out_channels, stem=first), node()]

    plan = blocks.widen(plan, width)
    units, fire = hidden * width, _dropped(node, dropout)
    readout = blocks.vgg_readout(plan, image_size, units)
    readout.extend([fire(), layer.Linear(units, units), fire(), layer.Linear(units, num_classes)])
    return blocks.network(step_mode, features=blocks.vgg(plan, in_channels, unit), readout=readout)


lmh_resnet18 = lmh_resnet
lmh_resnet19 = factories.variant(lmh_resnet, depths=(3, 3, 2), multiples=(2, 4, 8), hidden=4)
lmh_resnet19_wide = factories.variant(
    lmh_resnet,
    depths=(3, 3, 2),
    multiples=(1, 2, 4),
    width=128,
    hidden=2,
    hidden_neurons=False,
    image_size=32,
    dropout=0.25,
)
lmh_resnet20 = factories.variant(lmh_resnet, depths=(3, 3, 3), multiples=(1, 2, 4), width=16)
lmh_ms_resnet34 = factories.variant(lmh_resnet, num_classes=1000, depths=(3, 4, 6, 3), imagenet=True)
lmh_vgg13 = factories.variant(lmh_vgg, plan=(1, 1, "A", 2, 2, "A", 4, 4, "A", 8, 8, "A", 8, 8, "A"))
lmh_vgg16 = factories.variant(lmh_vgg, plan=(1, 1, "A", 2, 2, "A", 4, 4, 4, "A", 8, 8, 8, "A", 8, 8, 8, "A"))
