"""Recordings of event cameras, as frames [T, 2, H, W]: read by the host's data sets, integrated once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset

from sj_online.data.base import Batch, DataSet, Item, Shape, describes, stack_sequences
from sj_online.data.frames import Integration, prepare
from sj_online.data.recordings import raw_events
from sj_online.data.root import data_folder
from sj_online.data.split import stratified

Listing = tuple[list[Path], list[int]]


def _recordings(classes: int, size: int) -> Any:
    return describes(lambda frames, resize: _shape(classes, (size, size), frames, resize))


def _shape(classes: int, size: Sequence[int], frames: int, resize: int | None) -> Shape:
    return Shape(classes=classes, shape=(2, resize or size[0], resize or size[1]), steps=frames)


@_recordings(11, 128)
def dvs_gesture(
    root: str | None = None,
    *,
    download: bool = False,
    frames: int = 20,
    by: str = "number",
    duration: int | None = None,
    resize: int | None = None,
    validation: float = 0.1,
) -> DataSet:
    """DVS128 Gesture (Amir et al. 2017): 1,176 and 288 recordings of 11 gestures, split by persons as published.

    Args:
        root: holds ``download/`` with DvsGesture.tar.gz and its three small files, or what the host made of them.
        download: not possible.
        frames: T.
        by: 'number' or 'time', see `Integration`.
        duration: microseconds of a frame, with by='time'.
        resize: both sides of the frames, 48 in the papers that resize; None: as they are.
        validation: the fraction of the training recordings to validate, of every class the same.

    Raises:
        ValueError: missing or damaged files.

    Example:
        >>> dvs_gesture.describe(frames=10).shape
        (2, 128, 128)
    """
    integration = Integration(frames, by, duration, (128, 128), resize)
    folder = raw_events("dvs_gesture", "DVS128Gesture", root, download)
    return _given(dvs_gesture.describe(frames=frames, resize=resize), folder, integration, validation)


@_recordings(10, 34)
def n_mnist(
    root: str | None = None,
    *,
    download: bool = False,
    frames: int = 10,
    by: str = "number",
    duration: int | None = None,
    resize: int | None = None,
    validation: float = 0.1,
) -> DataSet:
    """N-MNIST (Orchard et al. 2015): MNIST, moved before an event camera; split as published.

    Args:
        root: holds ``download/`` with Train.zip and Test.zip, or ``extract/`` with the folders Train and Test.
        download: not possible.
        frames: T.
        by: 'number' or 'time', see `Integration`.
        duration: microseconds of a frame, with by='time'.
        resize: both sides of the frames, 48 in the papers that resize; None: as they are.
        validation: the fraction of the training recordings to validate, of every class the same.

    Raises:
        ValueError: missing or damaged files.
    """
    integration = Integration(frames, by, duration, (34, 34), resize)
    folder = raw_events("n_mnist", "NMNIST", root, download)
    return _given(n_mnist.describe(frames=frames, resize=resize), folder, integration, validation)


@_recordings(10, 128)
def cifar10_dvs(
    root: str | None = None,
    *,
    download: bool = False,
    frames: int = 10,
    by: str = "number",
    duration: int | None = None,
    resize: int | None = None,
    validation: float = 0.1,
    split: str = "first",
    mean: tuple[float, float] = (0.0, 0.0),
    std: tuple[float, float] = (1.0, 1.0),
) -> DataSet:
    """CIFAR10-DVS (Li et al. 2017): 1,000 recordings of each of 10 classes.

    Args:
        root: holds ``download/`` with the ten .zip files, ``extract/`` with the ten folders, or ``events_np/``.
        download: by the host.
        frames: T.
        by: 'number' or 'time', see `Integration`.
        duration: microseconds of a frame, with by='time'.
        resize: both sides of the frames, 48 in the papers that resize; None: as they are.
        validation: the fraction of the training recordings to validate, of every class the same.
        split: 'first': of every class the first 90 % in the order of the host's files train, the others test (OTTT,
            SLTT; the host's ``split_to_train_test_set``); 'random': 90 % of every class, drawn once.
        mean: of each polarity, taken off the counts; OTTT has (0.2728, 0.1295).
        std: of each polarity, what they are divided by; OTTT has (0.2225, 0.1290).

    Raises:
        ValueError: missing or damaged files, or an unknown split.
    """
    integration = Integration(frames, by, duration, (128, 128), resize)
    if split not in ("first", "random"):
        raise ValueError(f"split={split!r} is not one of first, random")
    folder = raw_events("cifar10_dvs", "CIFAR10DVS", root, download)
    paths, labels = _listing(folder / "events_np", 10)
    if split == "random":
        train, test = stratified(labels, 0.1)
    else:
        train, test = first(labels, 0.9)
    shape = cifar10_dvs.describe(frames=frames, resize=resize)
    data = _data(shape, folder, integration, validation, (paths, labels), train, test)
    return replace(data, collate=FrameBatch(tuple(mean), tuple(std)))


@describes(_shape)
def event_folder(
    root: str | None = None,
    *,
    download: bool = False,
    classes: int,
    size: tuple[int, int],
    frames: int = 10,
    by: str = "number",
    duration: int | None = None,
    resize: int | None = None,
    validation: float = 0.1,
) -> DataSet:
    """Recordings in ROOT/train/<class>/*.npz and ROOT/test/<class>/*.npz, each with the arrays t, x, y and p.

    Args:
        root: holds train/ and test/; classes are numbered in the order of their names.
        download: not possible.
        classes: how many there are.
        size: H and W of the camera.
        frames: T.
        by: 'number' or 'time', see `Integration`.
        duration: microseconds (the unit of t) of a frame, with by='time'.
        resize: both sides of the frames, 48 in the papers that resize; None: as they are.
        validation: the fraction of the training recordings to validate, of every class the same.

    Raises:
        ValueError: missing or damaged files.
    """
    integration = Integration(frames, by, duration, (int(size[0]), int(size[1])), resize)
    folder = data_folder("event_folder", root, "train/<class>/*.npz and test/<class>/*.npz", download, can=False)
    return _given(_shape(classes, size, frames, resize), folder, integration, validation, "")


@dataclass(frozen=True)
class FrameBatch:
    """Frames to a batch [T, N, 2, H, W], (x - mean) / std for each polarity.

    Example:
        >>> FrameBatch((1.0, 2.0), (2.0, 1.0))([(torch.full((1, 2, 1, 1), 3.0), 0)])[0].flatten().tolist()
        [1.0, 1.0]
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, items: list[Item]) -> Batch:
        """Stack and normalise."""
        x, y = stack_sequences(items)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (x - mean) / std, y


def first(labels: list[int], fraction: float) -> tuple[list[int], list[int]]:
    """Of every class the first part in the order given, and the rest, as the host splits.

    Example:
        >>> first([0, 0, 0, 0, 1, 1], 0.5)
        ([0, 1, 4], [2, 3, 5])
    """
    train: list[int] = []
    for label in sorted(set(labels)):
        members = [index for index, other in enumerate(labels) if other == label]
        train += members[: math.ceil(len(members) * fraction)]
    return train, sorted(set(range(len(labels))) - set(train))


def _given(
    shape: Shape, folder: Path, integration: Integration, validation: float, inside: str = "events_np"
) -> DataSet:
    """With the split into train/ and test/ that the folder has."""
    (train, train_labels), (test, test_labels) = (
        _listing(folder / inside / part, shape.classes) for part in ("train", "test")
    )
    listing = train + test, train_labels + test_labels
    count = len(train)
    return _data(
        shape, folder, integration, validation, listing, list(range(count)), list(range(count, len(listing[0])))
    )


def _data(
    shape: Shape,
    folder: Path,
    integration: Integration,
    validation: float,
    listing: Listing,
    train: list[int],
    test: list[int],
) -> DataSet:
    labels = listing[1]
    learn, validate = stratified([labels[index] for index in train], validation)
    frames = prepare(folder, integration, *listing)
    return DataSet(
        **vars(shape),
        train=Subset(frames, [train[index] for index in learn]),
        validation=Subset(frames, [train[index] for index in validate]) if validate else None,
        test=Subset(frames, test),
    )


def _listing(folder: Path, classes: int) -> Listing:
    """The recordings in class folders, in the order of the host: by name, '10' before '2'."""
    members = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if len(members) != classes:
        raise ValueError(f"{folder} should hold a folder for each of {classes} classes, and holds {len(members)}")
    found = [sorted(member.glob("*.npz")) for member in members]
    if not any(found):
        raise ValueError(f"{folder} holds no recordings (<class>/*.npz)")
    return sum(found, []), [label for label, paths in enumerate(found) for _ in paths]
