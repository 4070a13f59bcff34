"""Sequences: a made task of delayed recall with a target at every step, and spoken digits as spikes (SHD)."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from sj_online.data.base import DataSet, Shape, describes, mix
from sj_online.data.root import data_folder
from sj_online.data.split import stratified


class Recall(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Made sequences: remember the cue of the first steps until the recall signal at the end.

    Of the classes + 2 inputs the first ones are the cue (class c: input c is 1 during the first ``cue`` steps), then
    comes noise, 1 with probability ``noise`` at every step, and the recall signal, 1 during the last ``recall`` steps.
    The target is the class at every step; the mask counts the steps of the recall signal alone. Chance is 1 / classes
    for whoever forgets.

    Args:
        count: items; item i depends on (seed, i) alone.
        steps: T.
        classes: how many cues there are.
        cue: steps of the cue.
        recall: steps of the recall signal.
        noise: probability of a spike of the noise input.
        seed: of all draws.

    Example:
        >>> x, y, mask = Recall(count=8, steps=6, classes=2, cue=1, recall=2, noise=0.0, seed=0)[3]
        >>> x[:, -1].tolist(), mask.tolist(), bool(x[0, y[0]] == 1)
        ([0.0, 0.0, 0.0, 0.0, 1.0, 1.0], [False, False, False, False, True, True], True)
    """

    def __init__(self, count: int, steps: int, classes: int, cue: int, recall: int, noise: float, seed: int) -> None:
        self.count, self.steps, self.classes = count, steps, classes
        self.cue, self.recall, self.noise, self.seed = cue, recall, noise, seed

    def __len__(self) -> int:
        """The number of sequences."""
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """X [T, classes + 2], y [T] and mask [T]."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        generator = torch.Generator().manual_seed(mix(self.seed, index) & 0xFFFFFFFF)
        label = int(torch.randint(self.classes, (), generator=generator))
        x = torch.zeros(self.steps, self.classes + 2)
        x[: self.cue, label] = 1
        x[:, -2] = (torch.rand(self.steps, generator=generator) < self.noise).float()
        x[-self.recall :, -1] = 1
        return x, torch.full((self.steps,), label), x[:, -1] == 1


@describes(
    lambda steps, classes: Shape(classes=classes, shape=(classes + 2,), steps=steps, per_step_targets=True),
)
def delayed_recall(
    root: str | None = None,
    *,
    download: bool = False,
    steps: int = 100,
    classes: int = 4,
    cue: int = 5,
    recall: int = 5,
    noise: float = 0.1,
    count: int = 2000,
    seed: int = 0,
) -> DataSet:
    """Delayed recall, a made task: which cue was seen at the start? See `Recall` for what is fed and asked.

    Args:
        root: not used, the sequences are made.
        download: not used.
        steps: T, at least cue + recall.
        classes: how many cues there are.
        cue: steps of the cue.
        recall: steps at the end that count.
        noise: probability of a spike of the noise input at each step.
        count: sequences to train; half as many to validate and to test.
        seed: of the sequences.

    Raises:
        ValueError: options out of range.

    Example:
        >>> data = delayed_recall(steps=1000)
        >>> x, y, mask = data.collate([data.train[0], data.train[1]])
        >>> x.shape, y.shape, mask.sum(0).tolist()
        (torch.Size([1000, 2, 6]), torch.Size([1000, 2]), [5, 5])
    """
    if cue < 1 or recall < 1 or cue + recall > steps:
        raise ValueError(f"cue={cue} and recall={recall} must be at least 1 and together at most steps={steps}")
    if classes < 2 or count < 2 or not 0 <= noise <= 1:
        raise ValueError(f"classes={classes} and count={count} must be at least 2, and noise={noise} from 0 to 1")
    parts = {"train": count, "validation": count // 2, "test": count // 2}
    made = [Recall(size, steps, classes, cue, recall, noise, mix(seed, n)) for n, size in enumerate(parts.values())]
    shape = delayed_recall.describe(steps=steps, classes=classes)
    return DataSet(**vars(shape), train=made[0], validation=made[1], test=made[2])


class Spikes(Dataset[tuple[Tensor, int]]):
    """Spikes of an HDF5 file, read when asked for; an item is (float32 [T, units] of 0 and 1, label).

    Args:
        path: a file with spikes/times, spikes/units and labels, as SHD has it.
        steps: T.
        duration: seconds that the steps cover; what comes later is left out.
        units: inputs.

    Raises:
        ValueError: a file that is damaged or has another content.
    """

    def __init__(self, path: Path, steps: int, duration: float, units: int) -> None:
        import h5py

        self.path, self.steps, self.duration, self.units = path, steps, duration, units
        self.opened: tuple[int, Any] = 0, None
        try:
            with h5py.File(path) as file:
                self.labels: list[int] = file["labels"][:].astype(int).tolist()
                if not len(file["spikes/times"]) == len(file["spikes/units"]) == len(self.labels):
                    raise ValueError("its parts are not of one length")
        except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            raise ValueError(f"{path} is missing, damaged or has no spikes/times, units and labels: {error}") from error

    def _spikes(self) -> Any:
        import h5py

        if self.opened[0] != os.getpid():  # a forked worker must not read through its parent's handle
            self.opened = os.getpid(), h5py.File(self.path)["spikes"]
        return self.opened[1]

    def __len__(self) -> int:
        """The number of recordings."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The spikes of a recording and its label."""
        label = self.labels[index]
        try:
            spikes = self._spikes()
            times, units = np.asarray(spikes["times"][index], np.float64), np.asarray(spikes["units"][index], np.int64)
            inside = times < self.duration
            frames = np.zeros((self.steps, self.units), np.float32)
            frames[(times[inside] / self.duration * self.steps).astype(np.int64), units[inside]] = 1
        except (OSError, KeyError, ValueError, IndexError, RuntimeError) as error:
            raise ValueError(f"{self.path}: recording {index} is damaged: {error}") from error
        return torch.from_numpy(frames), label

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file."""
        return self.__dict__ | {"opened": (0, None)}


@describes(lambda steps: Shape(classes=20, shape=(700,), steps=steps))
def shd(
    root: str | None = None,
    *,
    download: bool = False,
    steps: int = 100,
    duration: float = 1.4,
    validation: float = 0.1,
) -> DataSet:
    """Spiking Heidelberg Digits (Cramer et al. 2020): 8,156 and 2,264 spoken digits as spikes of 700 channels.

    Args:
        root: holds shd_train.h5 and shd_test.h5, unpacked.
        download: not possible.
        steps: T.
        duration: seconds that the steps cover; the longest recordings last 1.4.
        validation: the fraction of the training recordings to validate, of every class the same.

    Raises:
        ValueError: missing or damaged files, or options out of range.

    Example:
        >>> shd.describe(steps=250)
        Shape(classes=20, shape=(700,), steps=250, per_step_targets=False)
    """
    if steps < 1 or not duration > 0:
        raise ValueError(f"steps={steps} must be at least 1, and duration={duration} above 0 (seconds)")
    folder = data_folder("shd", root, "shd_train.h5 and shd_test.h5", download, can=False)
    train, test = (Spikes(folder / f"shd_{part}.h5", steps, duration, 700) for part in ("train", "test"))
    if wrong := set(train.labels + test.labels) - set(range(20)):
        raise ValueError(f"{folder}: label {min(wrong)} is not from 0 to 19")
    learn, validate = stratified(train.labels, validation)
    return DataSet(
        **vars(shd.describe(steps=steps)),
        train=Subset(train, learn),
        validation=Subset(train, validate) if validate else None,
        test=test,
    )
