"""Static images: one image is fed to the network at every time step."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Images ``[C, H, W]`` and labels in memory, with augmentation by a random shift.

    Args:
        images: ``[N, C, H, W]``.
        labels: ``[N]``.
        shift: images are moved by up to so many pixels in both directions, drawn anew each time; zeros move in.

    Example:
        >>> image, label = Images(torch.ones(1, 1, 8, 8), torch.tensor([3]), shift=1)[0]
        >>> image.shape, int(image.sum()) in (49, 56, 64)
        (torch.Size([1, 8, 8]), True)
    """

    def __init__(self, images: Tensor, labels: Tensor, shift: int = 0) -> None:
        self.size = images.shape[-2:]
        self.padded = F.pad(images, (shift,) * 4)
        self.labels = labels
        self.shift = shift

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """An image ``[C, H, W]`` and its label."""
        top, left = torch.randint(2 * self.shift + 1, (2,)).tolist()
        H, W = self.size
        return self.padded[index, :, top : top + H, left : left + W], self.labels[index]


@dataclass(frozen=True)
class Splits:
    """A data set in three parts.

    Args:
        train: what the network learns from.
        val: taken from the training data, to choose the best epoch by.
        test: used once, at the end.
    """

    train: Images
    val: Images
    test: Images

    @property
    def labels(self) -> Tensor:
        """All labels of all parts."""
        return torch.cat([self.train.labels, self.val.labels, self.test.labels])


def digits(root: str | None = None, *, shift: int = 1) -> Splits:
    """The handwritten digits that scikit-learn bundles: 1,797 real images of 8x8 pixels in [0, 1].

    Stratified and fixed: 60 % to train, 15 % to validate, 25 % (450 images) to test.

    Args:
        root: not used, nothing is downloaded.
        shift: training images are moved by up to so many pixels.

    Raises:
        ValueError: a shift below 0.

    Example:
        >>> splits = digits()
        >>> [len(part) for part in (splits.train, splits.val, splits.test)]
        [1077, 270, 450]
    """
    if shift < 0:
        raise ValueError(f"shift={shift} must be at least 0")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    images = torch.from_numpy(data.images).float().div(16).unsqueeze(1)
    labels = torch.from_numpy(data.target).long()
    rest, test = train_test_split(range(len(labels)), test_size=0.25, stratify=labels, random_state=0)
    train, val = train_test_split(rest, test_size=0.2, stratify=labels[rest], random_state=0)
    return Splits(
        Images(images[train], labels[train], shift),
        Images(images[val], labels[val]),
        Images(images[test], labels[test]),
    )
