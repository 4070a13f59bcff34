"""Train, evaluate and export by a recipe: the epoch loop."""

import math
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from tqdm import tqdm

from sj_online import deploy, recipe
from sj_online.analysis import SavedBytes
from sj_online.recipe import Device, Precision, Recipe
from sj_online.rundir import RunDirectory
from sj_online.session import Progress, Session


def train(config: Recipe, out: str | Path, *, resume: bool = False) -> dict[str, Any]:
    """Train by a recipe and leave the run in a directory, with a checkpoint after each epoch.

    What an epoch draws depends on the seed and the epoch alone, so a run that was killed and resumed ends with the
    weights of one that was not.

    Args:
        config: the recipe.
        out: the directory, see :class:`~sj_online.rundir.RunDirectory`.
        resume: go on after the last checkpoint, if there is one.

    Returns:
        The summary, as in ``summary.json``.

    Raises:
        ValueError: a recipe whose parts do not fit, or a directory in use.
    """
    session, directory, progress = Session(config), RunDirectory(out), Progress()
    fabric, last = session.fabric, directory.checkpoint("last")
    say = partial(fabric.print, flush=True)
    session.rehearse()
    with _claimed(fabric, directory, config, resume):
        if resume and last.exists():
            progress = session.load(last, training=True)
            say(f"resuming after epoch {progress.epoch}")
        say(_headline(session, directory))
        if fabric.is_global_zero:
            directory.keep_epochs(progress.epoch)
        while progress.epoch < config.train.epochs:
            start = time.perf_counter()
            progress.epoch += 1
            metrics = _epoch(session, progress)
            metrics["val_accuracy"] = session.accuracy(session.splits.val)
            metrics["seconds"] = time.perf_counter() - start
            progress.train_seconds += metrics["seconds"]
            if fabric.is_global_zero:
                directory.log(metrics)
            say(_line(config, metrics))
            if metrics["val_accuracy"] > progress.best_val_accuracy:
                progress.best_epoch, progress.best_val_accuracy = progress.epoch, metrics["val_accuracy"]
                session.save(directory.checkpoint("best"), progress)
            session.save(last, progress)
        summary = _summary(session, progress)
        if fabric.is_global_zero:
            directory.finish(summary)
    say(
        f"test accuracy {summary['test_accuracy']:.4f} ({len(session.splits.test)} images) after "
        f"{summary['train_seconds']:.1f} s; peak memory {_size(summary['peak_memory_bytes'])}, of which "
        f"{_size(summary['saved_bytes'])} saved for backward"
    )
    return summary


def _epoch(session: Session, progress: Progress) -> dict[str, Any]:
    """Train for an epoch; cosine schedule."""
    config, epoch = session.config.train, progress.epoch
    lr = config.lr * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / config.epochs))
    for group in session.optimizer.param_groups:
        group["lr"] = lr
    session.seed(epoch)
    session.net.train()
    batches = session.training_batches()
    loss, right, images = 0.0, 0, 0
    show = session.fabric.is_global_zero and sys.stderr.isatty()
    with tqdm(batches, f"epoch {epoch}/{config.epochs}", leave=False, disable=not show) as bar:
        for x, y in bar:
            first = not progress.saved_bytes
            with SavedBytes([*session.net.parameters(), x]) if first else nullcontext() as saved:
                batch_loss, batch_right = session.train_step(x, y)
            if saved:
                progress.saved_bytes = saved.peak
            loss, right, images = loss + batch_loss * len(y), right + batch_right, images + len(y)
            bar.set_postfix(
                {"loss": f"{loss / images:.4f}", "accuracy": f"{right / images:.4f}", "memory": _size(_peak_memory())},
                refresh=False,
            )
    total = session.sum(images)
    mean = session.sum(loss) / total
    if not math.isfinite(mean):
        raise ValueError(f"the loss of epoch {epoch} is {mean}: training diverged; a lower train.lr may help")
    return {"epoch": epoch, "lr": lr, "loss": mean, "train_accuracy": session.sum(right) / total}


def _summary(session: Session, progress: Progress) -> dict[str, Any]:
    """What is kept of a run that has ended."""
    return {
        "test_accuracy": session.accuracy(session.splits.test),
        "test_images": len(session.splits.test),
        "best_val_accuracy": progress.best_val_accuracy,
        "best_epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "train_seconds": progress.train_seconds,
        "peak_memory_bytes": _peak_memory(),
        "saved_bytes": progress.saved_bytes,
        "parameters": sum(p.numel() for p in session.net.parameters()),
        "device": _device_name(session.fabric),
        "torch": torch.__version__,
    }


def open_run(
    source: str | Path, *, checkpoint: str = "last", root: str | None = None, precision: Precision | None = None
) -> Session:
    """The trained network of a run directory or a packed file, with its data.

    Args:
        source: a run directory or a file that :func:`export` wrote.
        checkpoint: ``'last'`` or ``'best'``, of a run directory.
        root: folder of the data; None for the one of the recipe.
        precision: ``fabric.precision``; None for the one of the recipe.

    Raises:
        ValueError: one line that names what cannot be read.
    """
    directory = RunDirectory(source)
    packed = not directory.path.is_dir()
    if packed:
        net = deploy.load(source)
        config = recipe.from_dict(deploy.read_header(source)["metadata"].get("recipe"), str(source))
    else:
        net, config = None, directory.recipe()
    config.dataset.root = root or config.dataset.root
    config.fabric = Device("auto", 1, precision or config.fabric.precision, config.fabric.threads)
    session = Session(config, net)
    if not packed:
        session.load(directory.checkpoint(checkpoint), training=False)
    return session


def export(source: str | Path, to: str | Path, *, checkpoint: str = "last") -> None:
    """Write the network of a run directory to a packed file that :func:`open_run` can read.

    Args:
        source: the run directory.
        to: the ``.safetensors`` file.
        checkpoint: ``'last'`` or ``'best'``.

    Raises:
        ValueError: no run, or no readable checkpoint.
    """
    RunDirectory(source).recipe()
    session = open_run(source, checkpoint=checkpoint, precision="32-true")
    config = replace(session.config, dataset=replace(session.config.dataset, root=None))
    deploy.export(session.net, to, model=config.model.name, kwargs=session.kwargs, metadata={"recipe": asdict(config)})


@contextmanager
def _claimed(fabric: Fabric, directory: RunDirectory, config: Recipe, resume: bool) -> Iterator[None]:
    """The directory for this run, claimed by the first rank; if that fails, every rank raises."""
    with ExitStack() as stack:
        problem = None
        if fabric.is_global_zero:
            try:
                stack.enter_context(directory.claim(config, resume))
            except (ValueError, OSError) as error:
                problem = str(error)
        if problem := fabric.broadcast(problem):
            raise ValueError(problem)
        yield


def _peak_memory() -> int:
    """Peak bytes of the CUDA allocator, or without a GPU of the process's resident set (Linux: KiB, macOS: bytes)."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _device_name(fabric: Fabric) -> str:
    return torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else str(fabric.device)


def _headline(session: Session, directory: RunDirectory) -> str:
    config, net = session.config, session.net
    parameters = sum(p.numel() for p in net.parameters())
    return (
        f"{config.model.name} on {config.dataset.name}: {parameters:,} parameters, {config.train.rule}, "
        f"T={config.num_steps}, {_device_name(session.fabric)} -> {directory.path}"
    )


def _line(config: Recipe, metrics: dict[str, Any]) -> str:
    return (
        f"epoch {metrics['epoch']:>{len(str(config.train.epochs))}}/{config.train.epochs}  loss {metrics['loss']:.4f}  "
        f"accuracy {metrics['train_accuracy']:.4f}  val {metrics['val_accuracy']:.4f}  "
        f"memory {_size(_peak_memory())}  {metrics['seconds']:.1f} s"
    )


def _size(bytes: int) -> str:
    return f"{bytes / 1e9:.2f} GB" if bytes >= 1e9 else f"{bytes / 1e6:.1f} MB"
