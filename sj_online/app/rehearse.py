"""A rehearsal: what a recipe costs, without its data."""

import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from sj_online.analysis import SavedBytes
from sj_online.app import batches
from sj_online.app.callbacks import Memory
from sj_online.app.loop import device_name
from sj_online.app.parts import Parts


@dataclass(frozen=True)
class Report:
    """What two batches of random samples have shown.

    Args:
        parameters: of the network.
        batch_size: samples in a batch, on this device.
        saved_bytes: what a batch saves for backward.
        peak_memory_bytes: of the rehearsal.
        seconds: for the second batch.
        device: where it ran.
    """

    parameters: int
    batch_size: int
    saved_bytes: int
    peak_memory_bytes: int
    seconds: float
    device: str

    def __str__(self) -> str:
        """One thing a line."""
        return "\n".join(
            (
                f"parameters           {self.parameters:,}",
                f"saved for backward   {self.saved_bytes / 1e6:,.1f} MB at {self.batch_size} samples a batch",
                f"peak memory          {self.peak_memory_bytes / 1e6:,.1f} MB",
                f"seconds a batch      {self.seconds:.3f} on {self.device}",
            )
        )


def rehearse(parts: Parts, batch_size: int | None = None) -> Report:
    """Train on two batches of random samples of the data set's shape; the network is changed by it.

    Args:
        parts: what a recipe has built; its data need no items.
        batch_size: samples in a batch; None: the recipe's.

    Raises:
        ValueError: parts that cannot train together.

    Example:
        >>> from sj_online.app.build import build
        >>> from sj_online.app.recipe import Recipe
        >>> rehearse(build(Recipe(num_steps=2), rehearsal=True), batch_size=2).parameters
        94198
    """
    train, fabric = parts.recipe.train, parts.fabric
    size = batch_size or max(1, train.batch_size // fabric.world_size)
    run = cast(Any, SimpleNamespace(parts=parts, metrics={}))
    memory = Memory()
    memory.on_start(run)
    parts.net.train()
    try:
        batch = samples(parts, size)
        with SavedBytes([*parts.net.parameters(), batch[0]]) as saved:
            batches.train_batch(parts, batch)
        batch = samples(parts, size)
        _wait(fabric.device)
        start = time.perf_counter()
        batches.train_batch(parts, batch)
        _wait(fabric.device)
    except Exception as error:
        model, line = parts.recipe.model.name, " ".join(str(error).split())[:300]
        raise ValueError(
            f"training rule {train.rule.name} cannot train model {model} by this recipe: {line}"
        ) from error
    seconds = time.perf_counter() - start
    memory.on_epoch(run)
    return Report(
        parameters=sum(p.numel() for p in parts.net.parameters()),
        batch_size=size,
        saved_bytes=saved.peak,
        peak_memory_bytes=run.metrics["peak_memory_bytes"],
        seconds=seconds,
        device=device_name(fabric),
    )


def samples(parts: Parts, size: int) -> tuple[Tensor, ...]:
    """A batch of random samples and targets of the data set's shape, and where its steps have targets a mask."""
    data, device = parts.data, parts.fabric.device
    time = () if data.steps is None else (data.steps,)
    dtype = torch.float64 if parts.recipe.fabric.precision == "64-true" else torch.float32
    x = torch.rand(*time, size, *data.shape, dtype=dtype, device=device)
    if not data.per_step_targets:
        return x, torch.randint(data.classes, (size,), device=device)
    y = torch.randint(data.classes, (*time, size), device=device)
    return x, y, torch.ones_like(y, dtype=torch.bool)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
