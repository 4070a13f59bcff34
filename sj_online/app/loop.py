"""The loop: train by what a recipe has built, epoch by epoch, and evaluate."""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch.optim.lr_scheduler import ReduceLROnPlateau

from sj_online.app import batches, begin, state
from sj_online.app.batches import Batch
from sj_online.app.parts import Parts
from sj_online.app.rundir import RunDirectory, kept_errors
from sj_online.app.state import Progress
from sj_online.app.statistics import Statistics
from sj_online.trainer.base import Result


@dataclass
class Run:
    """A run that is going on, as callbacks see it.

    Args:
        parts: what the recipe has built.
        directory: where the run is kept.

    Attributes:
        progress: how far it has come.
        result: of the last batch.
        metrics: of the epoch that has ended; numbers that a callback adds are logged, printed and plotted.
        summary: of the run that has ended.
        notes: lines that say what is unusual about the run.
    """

    parts: Parts
    directory: RunDirectory
    result: Result | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Try the parts and make the loaders."""
        data, train, ranks = self.parts.data, self.parts.recipe.train, self.parts.fabric.world_size
        self.saved_bytes, self.form = begin.trial(self.parts)
        self.stats = Statistics(data.classes).to(self.parts.fabric.device)
        self.sampler = batches.training_sampler(self.parts)
        self.training = batches.load(self.parts, data.train, self.sampler)
        self.validation = batches.evaluation(self.parts, data.validation) if data.validation else None
        self.progress = Progress(epochs=train.epochs, batch_size=self.sampler.batch_size)
        if train.batch_size % ranks:
            size = self.sampler.batch_size
            self.notes.append(f"{train.batch_size} images do not divide over {ranks} ranks: a batch has {size}")

    def save(self, which: str) -> None:
        """Write the ``'last'`` or the ``'best'`` checkpoint; all ranks call it, the first one writes."""
        with self.stats.together():
            now = state.capture(self.parts, self.stats, self.progress)
            on_first(self.parts.fabric, lambda: state.write(self.directory.checkpoint(which), now))


def fit(parts: Parts, out: str | Path, *, resume: bool = False) -> dict[str, Any]:
    """Train by what a recipe has built and leave the run in a directory.

    What a batch draws depends on the seed, the epoch and the batch alone, so a run that was killed at any moment and
    resumed ends with the weights of one that was not.

    Args:
        parts: what the recipe has built; the callbacks of ``parts.fabric`` are called.
        out: the directory, see :class:`~sj_online.app.rundir.RunDirectory`.
        resume: go on after the last checkpoint, if there is one.

    Returns:
        The summary, as in ``summary.json``.

    Raises:
        ValueError: parts that do not fit each other, a directory in use, a checkpoint that cannot be used, training
            that diverged. Any other error keeps its traceback in ``error.log``.
    """
    fabric, directory = parts.fabric, RunDirectory(out)
    run, last = Run(parts, directory), directory.checkpoint("last")
    with _claimed(fabric, directory, parts.recipe.to_yaml(), resume), kept_errors(directory, fabric.global_rank):
        if fabric.broadcast(last.exists()):
            run.progress, note = begin.resume(parts, run.stats, run.progress, run.form, last)
            run.notes.append(note)
        on_first(fabric, lambda: directory.begin(run.progress.epoch, run.progress.epochs))
        fabric.call("on_start", run=run)
        while run.progress.epoch < run.progress.epochs:
            run.metrics = _epoch(run)
            fabric.call("on_epoch", run=run)
        run.summary = _summary(run)
        fabric.call("on_end", run=run)
        on_first(fabric, lambda: directory.finish(run.summary))
    return run.summary


def evaluate(parts: Parts, data: Iterable[Batch]) -> dict[str, float]:
    """The accuracies over batches, see :func:`~sj_online.app.batches.evaluation`, on all ranks together."""
    stats = Statistics(parts.data.classes).to(parts.fabric.device)
    for x, y, *mask in data:
        stats.count(batches.predict(parts, x), y, mask)
    return {name: value for name, value in stats.results().items() if name != "loss"}


def _epoch(run: Run) -> dict[str, Any]:
    """Train for the rest of an epoch and validate; returns its metrics."""
    parts, progress, began = run.parts, run.progress, run.progress.seconds
    lr = parts.optimizer.param_groups[0]["lr"]
    speed = _train(run)
    trained = run.stats.results()
    run.stats.reset()
    metrics = {"epoch": progress.epoch + 1, "lr": lr, "loss": trained.pop("loss")}
    metrics |= {f"train_{name}": value for name, value in trained.items()}
    start = time.perf_counter()
    if run.validation is not None:
        metrics |= {f"val_{name}": value for name, value in evaluate(parts, run.validation).items()}
    progress.seconds += time.perf_counter() - start
    with warnings.catch_warnings(action="ignore"):  # in a run resumed after the last batch, no update comes before it
        if isinstance(parts.schedule, ReduceLROnPlateau):
            parts.schedule.step(metrics["loss"])
        elif parts.schedule:
            parts.schedule.step()
    progress.epoch, progress.batch = progress.epoch + 1, 0
    if metrics.get("val_accuracy", -1.0) > progress.best_accuracy:
        progress.best_epoch, progress.best_accuracy = progress.epoch, metrics["val_accuracy"]
    return metrics | speed | {"seconds": progress.seconds - began}


def _train(run: Run) -> dict[str, float]:
    """Train on the batches that are left of an epoch; returns images/s and the share of time spent waiting for data."""
    parts, progress, epoch = run.parts, run.progress, run.progress.epoch + 1
    run.sampler.begin(epoch, progress.batch)
    parts.net.train()
    images, seconds, waited, mark = 0, 0.0, 0.0, time.perf_counter()
    for batch in run.training:
        waited += time.perf_counter() - mark
        batches.seed(parts, epoch, progress.batch)
        run.result, y = batches.train_batch(parts, batch)
        run.stats.count(run.result.output, y, batch[2:], run.result.loss)
        progress.batch, progress.batches = progress.batch + 1, progress.batches + 1
        images += progress.batch_size
        took = time.perf_counter() - mark
        seconds, progress.seconds = seconds + took, progress.seconds + took
        parts.fabric.call("on_batch", run=run)
        mark = time.perf_counter()
    return {"images_per_second": images / seconds, "waiting": waited / seconds} if images else {}


def _summary(run: Run) -> dict[str, Any]:
    """What is kept of a run that has ended."""
    parts, progress = run.parts, run.progress
    tested = evaluate(parts, batches.evaluation(parts, parts.data.test))
    return {
        **{f"test_{name}": value for name, value in tested.items()},
        "test_images": len(parts.data.test),
        "best_val_accuracy": progress.best_accuracy,
        "best_epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "train_seconds": progress.seconds,
        "saved_bytes": run.saved_bytes,
        "parameters": sum(p.numel() for p in parts.net.parameters()),
        "device": device_name(parts.fabric),
    }


def on_first(fabric: Fabric, act: Callable[[], Any]) -> None:
    """Act on the first rank; if it fails there, every rank raises."""
    problem: Exception | None = None
    if fabric.is_global_zero:
        try:
            act()
        except (ValueError, OSError) as error:
            problem = error
    if problem := fabric.broadcast(problem):
        raise problem


@contextmanager
def _claimed(fabric: Fabric, directory: RunDirectory, config: str, resume: bool) -> Iterator[None]:
    """The directory for this run, claimed by the first rank."""
    with ExitStack() as stack:
        on_first(fabric, lambda: stack.enter_context(directory.claim(config, resume)))
        yield


def device_name(fabric: Fabric) -> str:
    """The GPU's name, or cpu."""
    return torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else str(fabric.device)
