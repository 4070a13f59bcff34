"""What a checkpoint holds: written whole beside its target, read whole, and checked before any of it is used."""

import hashlib
import math
import mmap
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from sj_online.app.parts import Parts
from sj_online.files import replacing

State = dict[str, Any]
FORMAT = "sj_online run 1"  # the first entry of a checkpoint, so that its first bytes tell whose it is
NOT_FINITE = " is not finite"
MARK = b"sj_online sha256"  # before the checksum of all the bytes before it, at the end of the file


@dataclass
class Progress:
    """How far a run has come.

    Args:
        epoch: epochs finished.
        batch: batches of the epoch after those that are done.
        batches: batches trained on since the run began.
        epochs: that the run, and its schedule, span.
        batch_size: images in a batch, over all ranks.
        best_epoch: the one with the best accuracy on the validation data.
        best_accuracy: that accuracy.
        seconds: trained and validated.
    """

    epoch: int = 0
    batch: int = 0
    batches: int = 0
    epochs: int = 1
    batch_size: int = 1
    best_epoch: int = 0
    best_accuracy: float = -1.0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """Check what no run can have reached."""
        counts = (self.epoch, self.batch, self.batches, self.epochs, self.batch_size, self.best_epoch)
        if any(type(count) is not int or not 0 <= count < 2**63 for count in counts):
            raise ValueError(f"counts {counts}")
        if any(type(value) is not float or not math.isfinite(value) for value in (self.best_accuracy, self.seconds)):
            raise ValueError(f"accuracy {self.best_accuracy} and seconds {self.seconds}")
        if not self.best_epoch <= self.epoch <= self.epochs or self.batches < self.epoch + self.batch:
            raise ValueError(f"epoch {self.epoch} of {self.epochs}, best {self.best_epoch}, {self.batches} batches")


def capture(parts: Parts, stats: nn.Module, progress: Progress) -> State:
    """The state of a run, without a copy.

    What is drawn at random follows from the seed, the epoch, the batch and the rank (see
    :func:`~sj_online.app.batches.seed`), so that no generator is kept but the rule's own.
    """
    return {
        "format": FORMAT,
        "net": parts.net.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "schedule": parts.schedule.state_dict() if parts.schedule else {},
        "rule": parts.rule.state_dict(),
        "precision": parts.fabric.strategy.precision.state_dict(),
        "metrics": stats.state_dict(),
        "progress": asdict(progress),
    }


def apply(state: State, parts: Parts, stats: nn.Module) -> Progress:
    """Put a state, which :func:`check` has passed, into the parts of a run."""
    parts.net.load_state_dict(state["net"])
    parts.optimizer.load_state_dict(state["optimizer"])
    if parts.schedule:
        parts.schedule.load_state_dict(state["schedule"])
    parts.rule.load_state_dict(state["rule"])
    if state["precision"]:
        parts.fabric.strategy.precision.load_state_dict(state["precision"])
    stats.load_state_dict(state["metrics"])
    stats.to(parts.fabric.device)  # torchmetrics takes the tensors as they come
    return Progress(**state["progress"])


def forms(state: State) -> State:
    """A state without the tensors' values: what :func:`check` compares with."""
    return tree_map_only(Tensor, lambda tensor: torch.empty_like(tensor, device="meta"), state)


def write(path: Path, state: State) -> None:
    """Write a checkpoint; until it is complete the old one stands.

    Raises:
        ValueError: values that are not finite; nothing is written.
        OSError: it cannot be written.
    """
    for part in ("net", "optimizer", "rule"):
        for name in not_finite(state[part], part):
            raise ValueError(f"{name} is not finite: training diverged; a lower learning rate may help")
    with replacing(path) as temporary, temporary.open("w+b") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # what torch makes of a disk that is full
            raise OSError(f"{path} cannot be written: {error.__context__ or error}") from error
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").digest()
        file.write(MARK + digest)


def read(path: Path) -> State:
    """Read a checkpoint as far as it can be without a network: plain values and tensors, no code.

    Raises:
        ValueError: it is missing, foreign or damaged.
    """
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}")
    size, tail = path.stat().st_size, len(MARK) + 32
    with path.open("rb") as file:
        head = file.read(1024)
        file.seek(max(0, size - tail))
        trailer = file.read()
        if FORMAT.encode() not in head and not trailer.startswith(MARK):
            cut = size < 1024 and b"PK\x03\x04".startswith(head[:4])
            raise ValueError(f"{path} is damaged: it is cut short" if cut else f"{path} is no checkpoint of a run")
        if trailer != MARK + _digest(file, size - tail):
            raise ValueError(f"{path} is damaged: its bytes do not match their checksum")
        file.seek(0)
        try:
            with warnings.catch_warnings(action="ignore"):
                state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # files made to look like ours fail in any way
            raise ValueError(f"{path} is no checkpoint of a run: {_line(error)}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} is no checkpoint of a run")
    return state


def check(state: State, form: State, path: Path) -> Progress:
    """Compare all of a checkpoint with what this run has, before any of it is used; returns its progress.

    Args:
        state: what :func:`read` gave.
        form: :func:`forms` of this run, after a first update.
        path: of the file, for the messages.

    Raises:
        ValueError: it is of another network, or damaged.
    """
    if missing := form.keys() - state.keys():
        raise ValueError(f"{path} is damaged: it holds no {', '.join(sorted(missing))}")
    check_net(state["net"], form["net"], path)
    here, there = dict(form), dict(state)
    if isinstance(there["optimizer"], dict) and isinstance(given := there["optimizer"].get("state"), dict):
        # A parameter that has had no gradient yet has no state.
        kept = {index: value for index, value in form["optimizer"]["state"].items() if index in given}
        here["optimizer"] = form["optimizer"] | {"state": kept}
    if not (there["precision"] and here["precision"]):  # the precision may change
        here["precision"] = there["precision"] = {}
    for part in ("optimizer", "schedule", "rule", "precision", "metrics", "progress"):
        for problem in differences(here[part], there[part], part):
            raise ValueError(f"{path} is damaged or of another recipe: {problem}")
    try:
        return Progress(**there["progress"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: its progress is {_line(error)}") from error


def check_net(state: Any, form: Mapping[str, Any], path: Path) -> None:
    """Raise a ValueError unless the weights fit a network's ``state_dict`` and are finite."""
    for problem in differences(form, state, "net"):
        kind = "damaged" if problem.endswith(NOT_FINITE) else "of another network"
        raise ValueError(f"{path} is {kind}: {problem}")


def differences(here: Any, there: Any, name: str) -> Iterator[str]:
    """Where a state has not the keys, shapes and kinds of another; numbers other than finite ones are named too."""
    if isinstance(here, Tensor):
        yield from _tensors(here, there, name)
    elif isinstance(here, Mapping):
        if not isinstance(there, Mapping) or here.keys() != there.keys():
            odd = here.keys() ^ there.keys() if isinstance(there, Mapping) else [f"a {type(there).__name__}"]
            yield f"{name} differs in {', '.join(sorted(map(str, odd))[:3])}"
            return
        for key, value in here.items():
            yield from differences(value, there[key], f"{name}.{key}")
    elif isinstance(here, list | tuple):
        if not isinstance(there, list | tuple) or len(here) != len(there):
            yield f"{name} is {str(there)[:40]}, and {str(here)[:40]} here"
            return
        for index, value in enumerate(here):
            yield from differences(value, there[index], f"{name}.{index}")
    elif isinstance(here, bool | int | float):
        if not isinstance(there, bool | int | float) or (_finite(here) and not _finite(there)):
            yield f"{name} is {str(there)[:40]}, and {here} here"
    elif here is not None and type(here) is not type(there):
        yield f"{name} is a {type(there).__name__}, and a {type(here).__name__} here"


def not_finite(state: Any, name: str) -> Iterator[str]:
    """The names of the tensors that hold a value which is not finite."""
    items = state.items() if isinstance(state, Mapping) else enumerate(state if isinstance(state, list | tuple) else ())
    for key, value in items:
        yield from not_finite(value, f"{name}.{key}")
    if isinstance(state, Tensor) and not bool(state.isfinite().all()):
        yield name


def _tensors(here: Tensor, there: Any, name: str) -> Iterator[str]:
    if type(there) not in (Tensor, nn.Parameter) or there.layout != torch.strided or there.device.type != "cpu":
        yield f"{name} is no plain tensor"
    elif there.shape != here.shape:
        yield f"{name} is {list(there.shape)}, and {list(here.shape)} here"
    elif there.is_floating_point() != here.is_floating_point() or there.is_complex() != here.is_complex():
        yield f"{name} is {there.dtype}, and {here.dtype} here"
    elif not bool(there.isfinite().all()):
        yield name + NOT_FINITE


def _finite(number: float) -> bool:
    return abs(number) < 2**63 if isinstance(number, int) else math.isfinite(number)


def _digest(file: BinaryIO, size: int) -> bytes:
    """The checksum of the first ``size`` bytes."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole, memoryview(whole) as view:
        return hashlib.sha256(view[:size]).digest()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
