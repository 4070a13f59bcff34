"""Static images: one image is fed to the network at every time step.

Items are uint8 images [C, H, W], as augmentation takes them; the batch is float, (x / scale - mean) / std. With
``rows=True`` an image is read row by row, as a sequence of T = H steps of C * W numbers.
"""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from sj_online.data.base import Batch, DataSet, Item, Shape, describes, stack
from sj_online.data.root import data_folder
from sj_online.data.split import stratified

CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CIFAR100 = (0.507, 0.487, 0.441), (0.267, 0.256, 0.276)


class Images(Dataset[tuple[Tensor, int]]):
    """Images uint8 [N, C, H, W] and labels [N] in memory; an item is (image [C, H, W], label)."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels: list[int] = labels.tolist()

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """An image and its label."""
        return self.images[index], self.labels[index]


@dataclass(frozen=True)
class ImageBatch:
    """Images to a normalised batch [N, C, H, W], or [H, N, C * W] row by row.

    Args:
        mean: of the images in 0 .. 1, one for all or one a channel.
        std: likewise.
        scale: the greatest value of a pixel.
        rows: one row a step.

    Example:
        >>> x, y = ImageBatch((0.5,), (0.5,))([(torch.full((1, 2, 3), 255, dtype=torch.uint8), 7)])
        >>> x.flatten().tolist(), y.tolist()
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [7])
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 255.0
    rows: bool = False

    def __call__(self, items: list[Item]) -> Batch:
        """Stack and normalise: once a batch, not once an item."""
        x, y = stack(items)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        x = x.div_(self.scale).sub_(mean).div_(std)
        return (x.permute(2, 0, 1, 3).flatten(2) if self.rows else x), y


def _small(classes: int, C: int, size: int) -> Any:
    """The shape of a set of small images, whole or row by row."""

    def shape(rows: bool) -> Shape:
        if rows:
            return Shape(classes=classes, shape=(C * size,), steps=size)
        return Shape(classes=classes, shape=(C, size, size))

    return describes(shape)


def in_memory(shape: Shape, train: Images, test: Images, validation: float, collate: ImageBatch) -> DataSet:
    """The parts of a set of small images; the validation part is taken from the training images."""
    learn, validate = stratified(train.labels, validation)
    return DataSet(
        **vars(shape),
        train=Subset(train, learn),
        validation=Subset(train, validate) if validate else None,
        test=test,
        collate=collate,
    )


@_small(10, 1, 8)
def digits(root: str | None = None, *, download: bool = False, rows: bool = False) -> DataSet:
    """The handwritten digits that scikit-learn bundles: 1,797 real images of 8x8 pixels of 0 .. 16.

    Stratified and fixed: 60 % to train, 15 % to validate, 25 % (450 images) to test.

    Args:
        root: not used, the images come with scikit-learn.
        download: not used.
        rows: row by row, T = 8 steps of 8 numbers.

    Example:
        >>> data = digits()
        >>> len(data.train), len(data.validation), len(data.test)
        (1077, 270, 450)
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    rest, test = train_test_split(range(len(labels)), test_size=0.25, stratify=labels, random_state=0)
    train, validation = train_test_split(rest, test_size=0.2, stratify=labels[rest], random_state=0)
    return DataSet(
        **vars(digits.describe(rows=rows)),
        train=Images(images[train], labels[train]),
        validation=Images(images[validation], labels[validation]),
        test=Images(images[test], labels[test]),
        collate=ImageBatch(scale=16, rows=rows),
    )


@_small(10, 1, 28)
def mnist(root: str | None = None, *, download: bool = False, validation: float = 0.1, rows: bool = False) -> DataSet:
    """MNIST (LeCun et al. 1998): 60,000 and 10,000 handwritten digits of 28x28.

    Args:
        root: holds the four idx files, packed by gzip or not, or ``MNIST/raw`` with them.
        download: by torchvision, into ``MNIST/raw``.
        validation: the fraction of the training images to validate, of every class the same.
        rows: row by row, T = 28 steps of 28 numbers.

    Raises:
        ValueError: missing or damaged files.
    """
    train, test = _idx("mnist", "MNIST", root, download)
    return in_memory(mnist.describe(rows=rows), train, test, validation, ImageBatch((0.1307,), (0.3081,), rows=rows))


@_small(10, 1, 28)
def fashion_mnist(
    root: str | None = None, *, download: bool = False, validation: float = 0.1, rows: bool = False
) -> DataSet:
    """Fashion-MNIST (Xiao et al. 2017): 60,000 and 10,000 images of clothes of 28x28.

    Args:
        root: holds the four idx files, packed by gzip or not, or ``FashionMNIST/raw`` with them.
        download: by torchvision, into ``FashionMNIST/raw``.
        validation: the fraction of the training images to validate, of every class the same.
        rows: row by row, T = 28 steps of 28 numbers.

    Raises:
        ValueError: missing or damaged files.

    Example:
        >>> fashion_mnist.describe(rows=True)
        Shape(classes=10, shape=(28,), steps=28, per_step_targets=False)
    """
    train, test = _idx("fashion_mnist", "FashionMNIST", root, download)
    return in_memory(
        fashion_mnist.describe(rows=rows), train, test, validation, ImageBatch((0.2860,), (0.3530,), rows=rows)
    )


@_small(10, 3, 32)
def cifar10(root: str | None = None, *, download: bool = False, validation: float = 0.1, rows: bool = False) -> DataSet:
    """CIFAR-10 (Krizhevsky 2009): 50,000 and 10,000 images of 3x32x32, normalised as OTTT and SLTT do.

    Args:
        root: holds ``cifar-10-batches-py``; the files are compared with torchvision's checksums before they are read.
        download: by torchvision.
        validation: the fraction of the training images to validate, of every class the same.
        rows: row by row, T = 32 steps of 96 numbers.

    Raises:
        ValueError: missing or damaged files.
    """
    train, test = _cifar("cifar10", "CIFAR10", root, download)
    return in_memory(cifar10.describe(rows=rows), train, test, validation, ImageBatch(*CIFAR10, rows=rows))


@_small(100, 3, 32)
def cifar100(
    root: str | None = None, *, download: bool = False, validation: float = 0.1, rows: bool = False
) -> DataSet:
    """CIFAR-100 (Krizhevsky 2009): as `cifar10`, in 100 classes; ``cifar-100-python`` is its folder."""
    train, test = _cifar("cifar100", "CIFAR100", root, download)
    return in_memory(cifar100.describe(rows=rows), train, test, validation, ImageBatch(*CIFAR100, rows=rows))


def _idx(name: str, host: str, root: str | None, download: bool) -> tuple[Images, Images]:
    folder = data_folder(name, root, f"the four idx files, or {host}/raw with them", download)
    if download:
        _torchvision(name, host, folder, download=True)

    def part(prefix: str) -> Images:
        images = read_idx([folder / host / "raw", folder], f"{prefix}-images-idx3-ubyte", 3)
        labels = read_idx([folder / host / "raw", folder], f"{prefix}-labels-idx1-ubyte", 1)
        if labels.numel() and int(labels.max()) > 9:
            raise ValueError(f"{folder}: label {int(labels.max())} of {prefix} is not from 0 to 9")
        if images.shape == (len(labels), 28, 28):
            return Images(images.unsqueeze(1), labels)
        raise ValueError(f"{folder} holds {prefix} images {tuple(images.shape)}, not ({len(labels)}, 28, 28)")

    return part("train"), part("t10k")


def read_idx(folders: list[Path], name: str, dims: int) -> Tensor:
    """An idx file of bytes with so many axes, from the first folder that has it, with or without .gz.

    Raises:
        ValueError: no such file, or one that is damaged.
    """
    paths = [folder / (name + end) for folder in folders for end in ("", ".gz")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise ValueError(f"{folders[-1]} holds no {name} and no {name}.gz")
    try:
        data = (gzip.decompress if path.suffix == ".gz" else bytes)(path.read_bytes())
        if data[:4] != bytes([0, 0, 8, dims]):
            raise ValueError("not an idx file of bytes")
        shape = np.frombuffer(data, ">i4", dims, offset=4).tolist()
        return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape).copy())
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _cifar(name: str, host: str, root: str | None, download: bool) -> tuple[Images, Images]:
    folder = data_folder(name, root, f"{host} as torchvision unpacks it", download)

    def part(train: bool) -> Images:
        data = _torchvision(name, host, folder, download=download, train=train)
        return Images(torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets))

    return part(True), part(False)


def _torchvision(name: str, host: str, folder: Path, **options: bool) -> Any:
    import torchvision.datasets

    try:
        return getattr(torchvision.datasets, host)(str(folder), **options)
    except Exception as error:  # of the network, the disk or an archive
        raise ValueError(f"{name} in {folder}: {' '.join(str(error).split())}") from error
