"""Recordings of events to frames: the integration, and a cache on disk that is whole or not there."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Integration:
    """How a recording becomes frames [T, 2, H, W], counts of the events of each polarity.

    Args:
        frames: T.
        by: 'number': each frame has as many events; 'time': each lasts as long.
        duration: microseconds of a frame, with by='time'; of longer recordings the first T frames are taken, shorter
            ones end with empty frames. None: T equal parts of the whole recording.
        size: H and W of the camera.
        resize: of both sides in the end, bilinear between the nearest pixels, as the papers do; None: as they are.

    Raises:
        ValueError: options out of range, or a duration without by='time'.

    Example:
        >>> events = {"t": np.arange(4), "x": np.array([0, 1, 1, 1]), "y": np.zeros(4), "p": np.array([1, 1, 0, 0])}
        >>> Integration(2, "number", None, (1, 2))(events).tolist()
        [[[[0, 0]], [[1, 1]]], [[[0, 2]], [[0, 0]]]]
    """

    frames: int
    by: str
    duration: int | None
    size: tuple[int, int]
    resize: int | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        if self.frames < 1 or (self.resize is not None and self.resize < 1):
            raise ValueError(f"frames={self.frames} and resize={self.resize} must be at least 1")
        if self.by not in ("number", "time"):
            raise ValueError(f"by={self.by!r} is not one of number, time")
        if self.duration is not None and (self.by != "time" or self.duration < 1):
            raise ValueError(f"duration={self.duration} needs by='time', and must be at least 1 microsecond")

    @property
    def name(self) -> str:
        """As the name of a folder."""
        parts = f"_{self.duration}us" if self.duration else "", f"_{self.resize}px" if self.resize else ""
        return f"{self.frames}_by_{self.by}{''.join(parts)}"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """T, 2, H and W of the frames."""
        size = (self.resize, self.resize) if self.resize else self.size
        return self.frames, 2, *size

    @property
    def dtype(self) -> np.dtype[Any]:
        """Counts go beyond 255 at noisy pixels; resized they are no whole numbers."""
        return np.dtype(np.float32 if self.resize else np.uint16)

    def __call__(self, events: Mapping[str, Array]) -> Array:
        """Frames [T, 2, H, W] of events {t, x, y, p}, as the host integrates them; a part without events is empty.

        Raises:
            ValueError: no events, arrays of unequal length, or events outside of H and W.
        """
        (H, W), T = self.size, self.frames
        t, x, y, p = (np.asarray(events[key]).astype(np.int64) for key in ("t", "x", "y", "p"))
        if not len(t) == len(x) == len(y) == len(p) or len(t) == 0:
            raise ValueError(f"there are {len(t)} t, {len(x)} x, {len(y)} y and {len(p)} p")
        if x.min() < 0 or y.min() < 0 or x.max() >= W or y.max() >= H:
            raise ValueError(f"events lie at x to {x.max()} and y to {y.max()}, outside of {W} x {H}")
        if self.duration is not None:
            frame = (t - t.min()) // self.duration
        else:  # what the division leaves over belongs to the last frame
            place = np.arange(len(t)) if self.by == "number" else t - t[0]
            total = len(t) if self.by == "number" else t[-1] - t[0]
            frame = (place // max(1, total // T)).clip(0, T - 1)
        inside = frame < T
        place = ((frame * 2 + (p != 0)) * H + y) * W + x
        counts = np.bincount(place[inside], minlength=T * 2 * H * W).reshape(T, 2, H, W)
        if self.resize is None:
            return counts
        frames = torch.from_numpy(counts).float()
        return F.interpolate(frames, size=(self.resize, self.resize), mode="bilinear", align_corners=False).numpy()


class Frames(Dataset[tuple[Tensor, int]]):
    """Frames in a file that is mapped into memory; an item is (float32 [T, 2, H, W], label)."""

    def __init__(self, path: Path, labels: Sequence[int]) -> None:
        self.path, self.labels = path, list(labels)
        self.mapped: Array | None = None

    def __len__(self) -> int:
        """The number of recordings."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The frames of a recording and its label."""
        if self.mapped is None:
            self.mapped = np.load(self.path, mmap_mode="r")
        return torch.from_numpy(self.mapped[index].astype(np.float32)), self.labels[index]

    def __getstate__(self) -> dict[str, Any]:
        """Without the map: pickled, it would be the whole file."""
        return self.__dict__ | {"mapped": None}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time prepares data in a folder; the others wait here. A dead process holds no lock."""
    with open(folder / ".preparing.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def prepare(folder: Path, integration: Integration, paths: Sequence[Path], labels: Sequence[int]) -> Frames:
    """The frames of the recordings, integrated once and kept in FOLDER/frames.

    They are written beside their place and moved there when they are whole, so that a crash leaves nothing that could
    be taken for them. The name holds a hash of the recordings: where those change, frames are made anew.

    Args:
        folder: of the data set.
        integration: how.
        paths: the recordings, .npz with t, x, y, p.
        labels: of the recordings.

    Raises:
        ValueError: a recording that cannot be read, by name.
    """
    listing = [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    content = hashlib.sha256(json.dumps([listing, integration.size]).encode()).hexdigest()[:12]
    target = folder / "frames" / f"{integration.name}-{content}.npy"
    if not target.is_file():
        target.parent.mkdir(exist_ok=True)
        with locked(target.parent):
            for left in target.parent.glob("*.unfinished"):
                left.unlink()
            if not target.is_file():
                _build(target, integration, paths)
    return Frames(target, labels)


def _build(target: Path, integration: Integration, paths: Sequence[Path]) -> None:
    from tqdm import tqdm

    unfinished = target.with_suffix(".unfinished")
    try:
        shape = len(paths), *integration.shape
        out = np.lib.format.open_memmap(unfinished, "w+", integration.dtype, shape)

        def fill(index: int) -> None:
            out[index] = _integrate(paths[index], integration)

        with ThreadPoolExecutor() as pool:
            for _ in tqdm(pool.map(fill, range(len(paths))), "frames", len(paths), disable=None):
                pass
        out.flush()
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def _integrate(path: Path, integration: Integration) -> Array:
    try:
        with np.load(path) as events:
            return integration(events)
    except Exception as error:  # of a damaged archive, in any way
        raise ValueError(f"{path} is damaged or no recording of events (t, x, y, p): {error}") from error
