"""The small blocks that all architectures are made of."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from spikingjelly.activation_based import functional, layer
from torch import Tensor, nn


@dataclass(frozen=True)
class Parts:
    """What a network is made of: its inner convolution, its norm, and whether convolutions have a bias."""

    conv: type[layer.Conv2d] = layer.Conv2d
    norm: Callable[[int], nn.Module] = layer.BatchNorm2d
    bias: bool = False

    def conv_norm(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, *, stem: bool = False
    ) -> nn.Sequential:
        """Convolution and norm, same padding; a ``stem`` keeps float weights."""
        conv = layer.Conv2d if stem else self.conv
        padding = kernel_size // 2
        return row(
            conv=conv(in_channels, out_channels, kernel_size, stride, padding, bias=self.bias),
            norm=self.norm(out_channels),
        )


class Residual(nn.Module):
    """y = body(x) + shortcut(x); without a shortcut, body(x) + x.

    Example:
        >>> import torch
        >>> Residual(nn.Identity())(torch.ones(1))
        tensor([2.])
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Add the two branches."""
        return self.body(x) + self.shortcut(x)


def membrane_shortcut(
    parts: Parts, node: Callable[[], nn.Module], shortcut_node: Callable[[], nn.Module] = nn.Identity
) -> Callable[[int, int, int], nn.Module]:
    """The block of MS-ResNet: neurons before the convolutions, potentials on the shortcut.

    Args:
        parts: convolution and norm.
        node: makes a neuron.
        shortcut_node: makes that of a shortcut that changes the shape; by default it has none.
    """

    def build(channels: int, out_channels: int, stride: int) -> nn.Module:
        same = channels == out_channels and stride == 1
        enter = nn.Sequential(node(), parts.conv_norm(channels, out_channels, 3, stride))
        leave = nn.Sequential(node(), parts.conv_norm(out_channels, out_channels))
        if same:
            return Residual(nn.Sequential(enter, leave))
        shortcut = nn.Sequential(shortcut_node(), parts.conv_norm(channels, out_channels, 1, stride))
        return Residual(nn.Sequential(enter, leave), shortcut)

    return build


def stem(
    parts: Parts,
    in_channels: int,
    width: int,
    *,
    imagenet: bool,
    pool: type[nn.Module] = layer.MaxPool2d,
    float_weights: bool = True,
) -> nn.Sequential:
    """The first convolution and norm: 3x3, or for ImageNet 7x7 of stride 2, behind it a pool of stride 2."""
    if not imagenet:
        return parts.conv_norm(in_channels, width, stem=float_weights)
    return nn.Sequential(parts.conv_norm(in_channels, width, 7, 2, stem=float_weights), pool(3, 2, 1))


def stages(
    block: Callable[[int, int, int], nn.Module], channels: int, widths: Iterable[int], depths: Iterable[int]
) -> nn.Sequential:
    """Stages of ``block(in_channels, out_channels, stride)``; every stage but the first halves the image.

    Args:
        block: builds one block.
        channels: channels that enter the first stage.
        widths: channels of each stage.
        depths: blocks of each stage.
    """
    net = nn.Sequential()
    for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        stage = nn.Sequential()
        for i in range(depth):
            stage.append(block(channels, width, 2 if i == 0 and index > 0 else 1))
            channels = width
        net.append(stage)
    return net


def vgg(
    plan: Sequence[int | str], channels: int, unit: Callable[[int, int, bool], Iterable[nn.Module]]
) -> nn.Sequential:
    """Convolutional units in a row, and average pools.

    Args:
        plan: for each unit its output channels, and 'A' for a pool that halves the image.
        channels: channels of the input.
        unit: ``unit(in_channels, out_channels, first)`` gives the modules of one unit.
    """
    net = nn.Sequential()
    first = True
    for item in plan:
        if isinstance(item, str):
            net.append(layer.AvgPool2d(2))
        else:
            net.extend(unit(channels, item, first))
            channels, first = item, False
    return net


def widen(plan: Sequence[int | str], width: int) -> list[int | str]:
    """A plan in channels, from one in multiples of ``width``."""
    return [item if isinstance(item, str) else item * width for item in plan]


def vgg_readout(plan: Sequence[int | str], image_size: int | None, num_classes: int) -> nn.Sequential:
    """A float linear readout of the last features of :func:`vgg`; without the image's size they are averaged first."""
    channels = [item for item in plan if isinstance(item, int)][-1]
    if image_size is None:
        return pooled_readout(channels, num_classes)
    return nn.Sequential(layer.Flatten(), layer.Linear(channels * features_size(plan, image_size) ** 2, num_classes))


def features_size(plan: Sequence[int | str], image_size: int) -> int:
    """H = W of the last features of :func:`vgg`.

    Raises:
        ValueError: nothing is left of the image.
    """
    size = image_size >> plan.count("A")
    if size < 1:
        raise ValueError(f"image_size={image_size!r} is too small for {plan.count('A')} pools of 2")
    return size


def pooled_readout(
    features: int,
    num_classes: int,
    *,
    pool: nn.Module | None = None,
    hidden: int | None = None,
    neuron: Callable[[], nn.Module] = nn.Identity,
) -> nn.Sequential:
    """A pool, by default over the whole image, and a float linear readout, with a layer of hidden neurons or without.

    Args:
        features: what the pool leaves, flattened.
        num_classes: outputs.
        pool: the pool.
        hidden: hidden neurons.
        neuron: makes them.
    """
    net = nn.Sequential(pool or layer.AdaptiveAvgPool2d(1), layer.Flatten())
    if hidden is not None:
        net.extend([layer.Linear(features, hidden), neuron()])
    return net.append(layer.Linear(hidden or features, num_classes))


def row(**modules: nn.Module) -> nn.Sequential:
    """Named modules in a row."""
    return nn.Sequential(OrderedDict(modules))


def network(step_mode: str, **modules: nn.Module) -> nn.Sequential:
    """A row in a step mode: [N, C, H, W] to [N, classes] in 's', [T, N, C, H, W] to [T, N, classes] in 'm'."""
    net = row(**modules)
    if step_mode == "s" and any(isinstance(module, layer.ThresholdDependentBatchNorm2d) for module in net.modules()):
        raise ValueError("norm='td' normalises over all steps together, which step_mode='s' does not give: take 'm'")
    functional.set_step_mode(net, step_mode)
    return net
