"""Augmentation: of items, of whole batches, and of frames of events, where all T frames get the same draw.

A transform of an item takes and gives x [..., H, W]: an image [C, H, W] or frames [T, C, H, W]; it draws from torch's
global generator, which `Augmented` seeds for each item. A `BatchTransform` takes (x, y) of a batch and gives soft
targets [N, classes].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Transform = Callable[[Tensor], Tensor]


def _between(low: int, high: int, count: int = 1) -> list[int]:
    """Whole numbers from ``low`` to ``high``, both included."""
    return torch.randint(low, high + 1, (count,)).tolist()


@dataclass(frozen=True)
class PadAndCrop:
    """Pad with zeros on all sides and cut the old size out anywhere: a shift by up to ``padding`` pixels.

    Example:
        >>> PadAndCrop(1)(torch.ones(1, 8, 8)).sum().item() in (49, 56, 64)
        True
    """

    padding: int = 4

    def __post_init__(self) -> None:
        """Check the padding."""
        _at_least("padding", self.padding, 0)

    def __call__(self, x: Tensor) -> Tensor:
        """Shift x [..., H, W]."""
        down, right = _between(-self.padding, self.padding, 2)
        H, W = x.shape[-2:]
        down, right = max(-H, min(H, down)), max(-W, min(W, right))
        out = torch.zeros_like(x)
        to, of = _overlap(down, H), _overlap(-down, H)
        out[..., to, _overlap(right, W)] = x[..., of, _overlap(-right, W)]
        return out


def _overlap(shift: int, size: int) -> slice:
    return slice(max(shift, 0), size + min(shift, 0))


@dataclass(frozen=True)
class Flip:
    """Mirror left and right with probability ``p``."""

    p: float = 0.5

    def __post_init__(self) -> None:
        """Check the probability."""
        if not 0 <= self.p <= 1:
            raise ValueError(f"p={self.p} must be from 0 to 1")

    def __call__(self, x: Tensor) -> Tensor:
        """Mirror x [..., H, W] or not."""
        return x.flip(-1) if torch.rand(()).item() < self.p else x


@dataclass(frozen=True)
class Roll:
    """Shift by up to ``pixels`` in both directions; what goes out on one side comes in on the other."""

    pixels: int = 5

    def __post_init__(self) -> None:
        """Check the shift."""
        _at_least("pixels", self.pixels, 0)

    def __call__(self, x: Tensor) -> Tensor:
        """Roll x [..., H, W]."""
        down, right = _between(-self.pixels, self.pixels, 2)
        return x.roll((down, right), (-2, -1))


@dataclass(frozen=True)
class Rotate:
    """Turn about the middle by up to ``degrees`` either way, to the nearest pixel; zeros come in."""

    degrees: float = 30.0

    def __call__(self, x: Tensor) -> Tensor:
        """Turn x [..., H, W]."""
        from torchvision.transforms.v2.functional import rotate

        return rotate(x, (2 * torch.rand(()).item() - 1) * self.degrees)


@dataclass(frozen=True)
class Cutout:
    """Cutout (DeVries and Taylor 2017): squares with the middle anywhere are set to one value.

    Args:
        length: of a side; a whole number of pixels, or below 1 a part of the height.
        holes: how many squares.
        fill: the value, one for all or one a channel, in the units of x: images are bytes before they are normalised,
            so the mean of the data set, times 255, is what is 0 after it.

    Example:
        >>> int((Cutout(4, fill=9)(torch.zeros(1, 8, 8)) == 9).sum()) in (4, 6, 8, 9, 12, 16)
        True
    """

    length: float = 16
    holes: int = 1
    fill: float | Sequence[float] = 0

    def __post_init__(self) -> None:
        """Check the sizes."""
        _at_least("holes", self.holes, 1)
        if not self.length > 0 or (self.length > 1 and self.length != int(self.length)):
            raise ValueError(f"length={self.length} must be a number of pixels or a part below 1")

    def __call__(self, x: Tensor) -> Tensor:
        """Cut out of x [..., C, H, W]."""
        H, W = x.shape[-2:]
        side = round(self.length * H) if self.length < 1 else int(self.length)
        fill = torch.as_tensor(self.fill, dtype=x.dtype).view(-1, 1, 1)
        x = x.clone()
        for _ in range(self.holes):
            top, left = _between(0, H - 1)[0] - side // 2, _between(0, W - 1)[0] - side // 2
            x[..., max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = fill
        return x


@dataclass(frozen=True)
class RollRotateCutout:
    """One of three, drawn anew for each recording, as LM-H does with events: roll, rotate or cutout.

    Args:
        pixels: of `Roll`.
        degrees: of `Rotate`.
        length: of `Cutout`.
    """

    pixels: int = 5
    degrees: float = 30.0
    length: float = 1 / 3
    choices: tuple[Transform, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Make the three."""
        choices = Roll(self.pixels), Rotate(self.degrees), Cutout(self.length)
        object.__setattr__(self, "choices", choices)

    def __call__(self, x: Tensor) -> Tensor:
        """Change x [..., H, W] in one way."""
        return self.choices[_between(0, 2)[0]](x)


def auto_augment(policy: str = "cifar10") -> Transform:
    """AutoAugment (Cubuk et al. 2019) of torchvision, on uint8 images.

    Args:
        policy: 'cifar10', 'imagenet' or 'svhn'.

    Raises:
        ValueError: an unknown policy.
    """
    from torchvision.transforms import v2

    known = {member.value: member for member in v2.AutoAugmentPolicy}
    if policy not in known:
        raise ValueError(f"policy={policy!r} is not one of {', '.join(known)}")
    return v2.AutoAugment(known[policy])


@dataclass(frozen=True)
class BatchTransform:
    """Mixes the items of a batch; draws from torch's global generator.

    Args:
        mixes: torchvision transforms of (x [N, ...], y [N]) that give y [N, classes], one of which is drawn a batch.
        sequences: x is [T, N, C, H, W].
    """

    mixes: tuple[Any, ...]
    sequences: bool = False

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The mixed batch, in the shape of x, and soft targets [N, classes]."""
        mix = self.mixes[_between(0, len(self.mixes) - 1)[0]]
        if not self.sequences:
            return mix(x, y)
        T = len(x)
        mixed, targets = mix(x.transpose(0, 1).flatten(1, 2), y)  # time among the channels: the same draw for all steps
        return mixed.unflatten(1, (T, -1)).transpose(0, 1), targets


def mixup(classes: int, steps: int | None = None, *, alpha: float = 0.8) -> BatchTransform:
    """Mixup (Zhang et al. 2018): x and y of each item are averaged with those of another.

    Args:
        classes: of the data set.
        steps: T of the data set; None: static.
        alpha: of the Beta distribution of the weights.

    Example:
        >>> x, y = mixup(3)(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]))
        >>> x.shape, y.shape, y.sum(1).allclose(torch.ones(4))
        (torch.Size([4, 1, 8, 8]), torch.Size([4, 3]), True)
    """
    return mixup_or_cutmix(classes, steps, mixup_alpha=alpha, cutmix_alpha=0)


def cutmix(classes: int, steps: int | None = None, *, alpha: float = 1.0) -> BatchTransform:
    """CutMix (Yun et al. 2019): a rectangle of each image is taken from another, y by its area; see `mixup`."""
    return mixup_or_cutmix(classes, steps, mixup_alpha=0, cutmix_alpha=alpha)


def mixup_or_cutmix(
    classes: int, steps: int | None = None, *, mixup_alpha: float = 0.8, cutmix_alpha: float = 1.0
) -> BatchTransform:
    """Mixup or CutMix, one of them for each batch, as HD-LIF does; alpha = 0 leaves one out."""
    from torchvision.transforms import v2

    if mixup_alpha < 0 or cutmix_alpha < 0 or not mixup_alpha + cutmix_alpha > 0:
        raise ValueError(f"mixup alpha={mixup_alpha} and cutmix alpha={cutmix_alpha}: one must be above 0, none below")
    made = (v2.MixUp, mixup_alpha), (v2.CutMix, cutmix_alpha)
    mixes = tuple(make(alpha=alpha, num_classes=classes) for make, alpha in made if alpha)
    return BatchTransform(mixes, sequences=steps is not None)


def _at_least(name: str, value: float, least: float) -> None:
    if value < least:
        raise ValueError(f"{name}={value} must be at least {least}")
