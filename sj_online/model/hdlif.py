"""The networks of EM-PF and HD-LIF: float spikes or spikes of n bits, binary or ternary inner convolutions."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from torch import nn

from sj_online import registry
from sj_online.layer import SECA
from sj_online.model import blocks, factories
from sj_online.model.blocks import Parts, Residual
from sj_online.model.factories import NeuronFactory

PARALLEL = {"none": (False, False), "half": (False, True), "all": (True, True)}
ATTENTION = {"none": 0, "seca1": 1, "seca2": 2}
STEM = {"float": True, "same": False}
"""Whether the first convolution keeps float weights."""


def _node(
    neuron: str | NeuronFactory, num_steps: int | None, options: dict[str, Any] | None, membrane_norm: bool
) -> Callable[..., nn.Module]:
    """``node(channels, parallel=False)``: a neuron; the membrane is normalised if it has one and channels are given."""

    def node(channels: int | None, parallel: bool = False) -> nn.Module:
        special: dict[str, Any] = {"parallel": True} if parallel else {}
        if membrane_norm and channels is not None and not parallel:
            special["membrane_norm"] = channels
        for name in special.keys() - factories.options_of(neuron):
            raise ValueError(f"neuron={neuron!r} has no {name}; 'empf' and 'hdlif' have")
        return factories.neuron_factory(neuron, num_steps, **special, **(options or {}))()

    return node


def _check_membrane_norm(membrane_norm: bool, parallel: bool) -> None:
    if membrane_norm and parallel:
        raise ValueError("membrane_norm=True, but all neurons are parallel: there is no membrane to normalise")


def _block(
    parts: Parts,
    first: Callable[[int], nn.Module],
    second: Callable[[int], nn.Module],
    attention: int,
    seca: Callable[[], nn.Module] = SECA,
) -> Callable[[int, int, int], nn.Module]:
    """The pre-activation block of EM-PF, Fig. 3; a shortcut that changes shape takes the float current, no spikes."""

    def build(in_channels: int, channels: int, stride: int) -> nn.Module:
        same = in_channels == channels and stride == 1
        enter = nn.Sequential(first(in_channels), parts.conv_norm(in_channels, channels, 3, stride))
        leave = nn.Sequential(second(channels), parts.conv_norm(channels, channels))
        shortcut = None if same else parts.conv_norm(in_channels, channels, 1, stride)
        if attention == 0:
            return Residual(nn.Sequential(enter, leave), shortcut)
        if attention == 1:
            return Residual(nn.Sequential(enter, seca(), leave, seca()), shortcut)
        # SECA-II attends to input plus output of a convolution; one that changes shape has no such sum.
        leave = nn.Sequential(Residual(leave), seca())
        if same:
            return nn.Sequential(Residual(enter), seca(), leave)
        return Residual(nn.Sequential(enter, seca(), leave), shortcut)

    return build


@registry.cite("EM-PF / HD-LIF")
def hdlif_resnet(
    num_classes: int = 10,
    in_channels: int = 3,
    num_steps: int | None = 4,
    *,
    depths: Sequence[int] = (2, 2, 2, 2),
    multiples: Sequence[int] = (1, 2, 4, 8),
    hidden: int | None = None,
    imagenet: bool = False,
    neuron: str | NeuronFactory = "hdlif",
    neuron_options: dict[str, Any] | None = None,
    membrane_norm: bool = False,
    parallel: str = "none",
    attention: str = "none",
    attention_sign: bool = False,
    synapse: str = "binary",
    stem: str = "float",
    width: int = 64,
    step_mode: str = "s",
) -> nn.Sequential:
    """Pre-activation ResNet of EM-PF and HD-LIF (EM-PF, Fig. 3): no neuron behind the stem and before the readout.

    The readout has float weights, and so has the stem unless told otherwise; other convolutions have quantised ones.

    Args:
        num_classes: outputs of the readout.
        in_channels: C of the input.
        num_steps: T of the neurons' per-step parameters; None: shared by any number of steps.
        depths: blocks of each stage.
        multiples: channels of each stage, in widths.
        hidden: units of a layer of neurons before the readout, in widths; None: without.
        imagenet: a 7x7 stem of stride 2 and a max pool.
        neuron: ``'hdlif'``, ``'empf'``, another registered name, or a factory.
        neuron_options: further arguments of a registered neuron, e.g. ``{"spike_bits": None}``.
        membrane_norm: batch normalisation of the membranes that are followed by a convolution.
        parallel: neurons without a membrane: ``'none'``, ``'half'`` (the second of each block) or ``'all'``.
        attention: ``'none'``, ``'seca1'`` (SECA behind each norm) or ``'seca2'`` (of the sum of input and output).
        attention_sign: with the sign that EM-PF's Eq. 9 prints, see :class:`sj_online.layer.SECA`.
        synapse: ``'binary'``, ``'ternary'``, ``'float'`` or ``'ws'``.
        stem: weights of the first convolution: ``'float'``, or ``'same'`` as the others, as the papers have it where
            it sees events.
        width: channels behind the stem.
        step_mode: ``'s'``: [N, C, H, W] to [N, classes]; ``'m'``: [T, N, C, H, W] to [T, N, classes].

    Raises:
        ValueError: an unknown name, or an option that the neuron does not have.

    Example:
        >>> import torch
        >>> hdlif_resnet(width=8, parallel="half")(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    parts = Parts(conv=factories.choice("synapse", synapse, factories.SYNAPSES))
    float_stem = factories.choice("stem", stem, STEM)
    node = _node(neuron, num_steps, neuron_options, membrane_norm)
    is_parallel = factories.choice("parallel", parallel, PARALLEL)
    _check_membrane_norm(membrane_norm, all(is_parallel))
    first, second = (partial(node, parallel=p) for p in is_parallel)
    seca = partial(SECA, sign=attention_sign)
    block = _block(parts, first, second, factories.choice("attention", attention, ATTENTION), seca)
    widths = [multiple * width for multiple in multiples]
    hidden = hidden and hidden * width
    return blocks.network(
        step_mode,
        stem=blocks.stem(parts, in_channels, width, imagenet=imagenet, float_weights=float_stem),
        stages=blocks.stages(block, width, widths, depths),
        readout=blocks.pooled_readout(widths[-1], num_classes, hidden=hidden, neuron=partial(first, None)),
    )


@registry.cite("EM-PF / HD-LIF")
def hdlif_vgg(
    num_classes: int = 10,
    in_channels: int = 2,
    num_steps: int | None = 10,
    *,
    plan: Sequence[int | str],
    image_size: int | None = None,
    neuron: str | NeuronFactory = "hdlif",
    neuron_options: dict[str, Any] | None = None,
    membrane_norm: bool = False,
    parallel: bool = False,
    attention: bool = False,
    attention_sign: bool = False,
    synapse: str = "binary",
    stem: str = "float",
    width: int = 64,
    step_mode: str = "s",
) -> nn.Sequential:
    """VGG of EM-PF and HD-LIF: convolution, batch norm, [SECA], neuron.

    Args:
        num_classes: outputs of the readout.
        in_channels: C of the input.
        num_steps: T of the neurons' per-step parameters; None: shared by any number of steps.
        plan: output channels of the convolutions in widths, and 'A' for an average pool of 2.
        image_size: H = W of the input, whose last features are all read out; None: they are averaged first.
        neuron: see :func:`hdlif_resnet`, as for the others.
        neuron_options: further arguments of a registered neuron.
        membrane_norm: batch normalisation of the membranes.
        parallel: neurons without a membrane.
        attention: SECA behind each norm.
        attention_sign: see :func:`hdlif_resnet`.
        synapse: ``'binary'``, ``'ternary'``, ``'float'`` or ``'ws'``.
        stem: weights of the first convolution, see :func:`hdlif_resnet`.
        width: channels of the first convolution.
        step_mode: ``'s'`` or ``'m'``.

    Raises:
        ValueError: an unknown name, or an option that the neuron does not have.

    Example:
        >>> import torch
        >>> hdlif_vgg(plan=(1, "A", 2), width=8)(torch.rand(2, 2, 8, 8)).shape
        torch.Size([2, 10])
    """
    parts = Parts(conv=factories.choice("synapse", synapse, factories.SYNAPSES))
    float_stem = factories.choice("stem", stem, STEM)
    node = _node(neuron, num_steps, neuron_options, membrane_norm)
    _check_membrane_norm(membrane_norm, parallel)

    def unit(channels: int, out_channels: int, first: bool) -> Iterable[nn.Module]:
        seca = [SECA(sign=attention_sign)] if attention else []
        conv = parts.conv_norm(channels, out_channels, stem=first and float_stem)
        return [conv, *seca, node(out_channels, parallel=parallel)]

    plan = blocks.widen(plan, width)
    return blocks.network(
        step_mode,
        features=blocks.vgg(plan, in_channels, unit),
        readout=blocks.vgg_readout(plan, image_size, num_classes),
    )


hdlif_resnet18 = hdlif_resnet
hdlif_resnet19 = factories.variant(hdlif_resnet, depths=(3, 3, 2), multiples=(2, 4, 8), hidden=4)
hdlif_resnet34 = factories.variant(
    hdlif_resnet, num_classes=1000, depths=(3, 4, 6, 3), imagenet=True, synapse="ternary"
)
"""For ImageNet-1k, where HD-LIF has ternary weights and EM-PF binary ones."""
hdlif_vgg13 = factories.variant(
    hdlif_vgg,
    num_classes=200,
    in_channels=3,
    num_steps=4,
    plan=(1, 1, "A", 2, 2, "A", 4, 4, "A", 8, 8, 8, "A", 8),
)
hdlif_vgg_snn = factories.variant(
    hdlif_vgg, plan=(1, 2, "A", 4, 4, "A", 8, 8, "A", 8, 8, "A"), image_size=48, stem="same"
)
"""For events, which the first convolution takes by binary weights too."""
small_vgg = factories.variant(
    hdlif_vgg, in_channels=1, num_steps=4, plan=(1, "A", 2, "A", 4, "A"), neuron="empf", width=32
)
"""For images of a few pixels."""
