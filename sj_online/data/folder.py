"""Folders of images, a folder a class: any of the user's own, Tiny-ImageNet and ImageNet."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from sj_online.data.base import DataSet, Shape, describes
from sj_online.data.images import ImageBatch, Images, in_memory
from sj_online.data.root import data_folder
from sj_online.data.split import stratified

Listing = tuple[list[Path], list[int]]
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TINY = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Images read from their files when asked for; an item is (uint8 [3, size, size], label).

    An image of another size is cut: for training anywhere and at any scale from 0.08 (torchvision's RandomResizedCrop),
    else out of the middle, the shorter side resized to 8/7 of ``size`` (256 for 224).

    Args:
        listing: the files and their labels.
        size: of both sides.
        training: cut at random.

    Raises:
        ValueError: a file that cannot be read as an image, when it is asked for.
    """

    def __init__(self, listing: Listing, size: int, training: bool = False) -> None:
        from torchvision.transforms import v2

        self.paths, self.labels = listing
        self.size = size
        evaluation: list[Any] = [v2.Resize(round(size * 8 / 7), antialias=True), v2.CenterCrop(size)]
        self.cut = v2.RandomResizedCrop(size, antialias=True) if training else v2.Compose(evaluation)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """An image and its label."""
        from PIL import Image
        from torchvision.transforms.v2.functional import pil_to_tensor

        path = self.paths[index]
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except Exception as error:  # Pillow's readers fail in any way on a damaged file
            raise ValueError(f"{path} is missing or not an image: {error}") from error
        if image.size != (self.size, self.size):
            image = self.cut(image)
        return pil_to_tensor(image), self.labels[index]

    def load(self) -> Images:
        """All images, in memory."""
        from tqdm import tqdm

        images = torch.empty(len(self), 3, self.size, self.size, dtype=torch.uint8)
        for index in tqdm(range(len(self)), desc="reading images", disable=None, leave=False):
            images[index] = self[index][0]
        return Images(images, torch.tensor(self.labels))


def _shape(classes: int, size: int) -> Shape:
    return Shape(classes=classes, shape=(3, size, size))


@describes(_shape)
def image_folder(
    root: str | None = None,
    *,
    download: bool = False,
    classes: int,
    size: int,
    validation: float = 0.1,
    memory: bool = False,
    mean: Sequence[float] = IMAGENET[0],
    std: Sequence[float] = IMAGENET[1],
) -> DataSet:
    """Images in ROOT/train/<class>/ and ROOT/test/<class>/, or ROOT/val/<class>/ where there is no test/.

    Args:
        root: holds train/ and test/ or val/; classes are numbered in the order of their names.
        download: not possible.
        classes: how many there are.
        size: of the images the network gets; others are cut, see `ImageFiles`.
        validation: the fraction of the training images to validate, of every class the same.
        memory: read all images once and keep them as bytes; only images of ``size`` should be kept, as they are cut
            once, out of the middle.
        mean: of the images in 0 .. 1, one a channel.
        std: likewise.

    Raises:
        ValueError: missing folders, another number of classes, or damaged images.

    Example:
        >>> image_folder.describe(classes=10, size=32)
        Shape(classes=10, shape=(3, 32, 32), steps=None, per_step_targets=False)
    """
    expected = "train/<class>/ and test/<class>/ or val/<class>/"
    folder = data_folder("image_folder", root, expected, download, can=False)
    test = "test" if (folder / "test").is_dir() else "val"
    train, held_out = _listing(folder / "train", classes), _listing(folder / test, classes)
    if [path.name for path in _classes(folder / "train")] != [path.name for path in _classes(folder / test)]:
        raise ValueError(f"{folder}: train/ and {test}/ have not the same classes")
    return _parts(_shape(classes, size), train, held_out, validation, memory, mean, std)


@describes(lambda: _shape(1000, 224))
def imagenet(root: str | None = None, *, download: bool = False, validation: float = 0.01) -> DataSet:
    """ImageNet-1k (Russakovsky et al. 2015), unpacked as train/<wnid>/ and val/<wnid>/; val/ is the test data.

    Args:
        root: holds train/ and val/, 1000 folders each.
        download: not possible.
        validation: the fraction of the training images to validate, of every class the same.

    Raises:
        ValueError: missing folders or damaged images.
    """
    folder = data_folder("imagenet", root, "train/<wnid>/ and val/<wnid>/", download, can=False)
    train, test = _listing(folder / "train", 1000), _listing(folder / "val", 1000)
    return _parts(imagenet.describe(), train, test, validation, False, *IMAGENET)


@describes(lambda: _shape(200, 64))
def tiny_imagenet(
    root: str | None = None, *, download: bool = False, validation: float = 0.1, memory: bool = False
) -> DataSet:
    """Tiny-ImageNet, "ImageNet-200" of the papers: 100,000 images of 3x64x64; the 10,000 of val/ are the test data.

    Args:
        root: holds train/<wnid>/images/ and val/images/ with val/val_annotations.txt.
        download: not possible.
        validation: the fraction of the training images to validate, of every class the same.
        memory: read all images once and keep them, 1.4 GB of bytes.

    Raises:
        ValueError: missing folders or damaged images.
    """
    expected = "train/<wnid>/images/, val/images/ and val/val_annotations.txt"
    folder = data_folder("tiny_imagenet", root, expected, download, can=False)
    train = _listing(folder / "train", 200, inside="images")
    numbers = {path.name: number for number, path in enumerate(_classes(folder / "train"))}
    annotations = folder / "val" / "val_annotations.txt"
    try:
        rows = [line.split("\t")[:2] for line in annotations.read_text().splitlines() if line]
        test = [folder / "val" / "images" / name for name, _ in rows], [numbers[wnid] for _, wnid in rows]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{annotations} should name a file and a class of train/ in each line: {error}") from error
    return _parts(tiny_imagenet.describe(), train, test, validation, memory, *TINY)


def _classes(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _listing(folder: Path, classes: int, inside: str = "") -> Listing:
    """The image files of the class folders, sorted."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    found = _classes(folder) if folder.is_dir() else []
    if len(found) != classes:
        raise ValueError(f"{folder} should hold a folder for each of {classes} classes, and holds {len(found)}")
    paths: list[Path] = []
    labels: list[int] = []
    for label, member in enumerate(found):
        files = sorted((member / inside).rglob("*")) if (member / inside).is_dir() else []
        files = [file for file in files if file.suffix.lower() in IMG_EXTENSIONS]
        if not files:
            raise ValueError(f"{member / inside} holds no images ({' '.join(IMG_EXTENSIONS)})")
        paths += files
        labels += [label] * len(files)
    return paths, labels


def _parts(
    shape: Shape,
    train: Listing,
    test: Listing,
    validation: float,
    memory: bool,
    mean: Sequence[float],
    std: Sequence[float],
) -> DataSet:
    size, collate = shape.shape[-1], ImageBatch(tuple(mean), tuple(std))
    middle = ImageFiles(train, size)
    if memory:
        return in_memory(shape, middle.load(), ImageFiles(test, size).load(), validation, collate)
    learn, validate = stratified(train[1], validation)
    return DataSet(
        **vars(shape),
        train=Subset(ImageFiles(train, size, training=True), learn),
        validation=Subset(middle, validate) if validate else None,
        test=ImageFiles(test, size),
        collate=collate,
    )
