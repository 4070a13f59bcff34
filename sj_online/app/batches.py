"""Batches on their way through a network: loaded, drawn for and trained on."""

import random
import signal
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import tv_tensors

from sj_online import prediction
from sj_online.app.parts import Parts
from sj_online.data.base import mix
from sj_online.data.sampler import EpochSampler, EvaluationSampler
from sj_online.trainer.base import Result

Batch = tuple[Tensor, ...]


def training_sampler(parts: Parts) -> EpochSampler:
    """The batches of an epoch; each rank takes as many images of a batch as the others.

    Raises:
        ValueError: a batch that is larger than the data set, or smaller than the number of ranks.
    """
    train, world = parts.recipe.train, parts.fabric.world_size
    if train.batch_size < world:
        raise ValueError(f"train.batch_size={train.batch_size} is less than the {world} ranks that share it")
    return EpochSampler(
        len(parts.data.train),
        train.batch_size // world * world,
        seed=parts.recipe.seed,
        rank=parts.fabric.global_rank,
        world=world,
    )


def load(parts: Parts, dataset: Dataset[Any], sampler: Sampler[Any]) -> Iterable[Batch]:
    """Batches on the device; with workers that stay, and that leave Ctrl-C to this process."""
    workers = parts.recipe.train.workers
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=parts.data.collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=parts.fabric.device.type == "cuda",
        worker_init_fn=_ignore_interrupts,
        generator=torch.Generator().manual_seed(parts.recipe.seed),
    )
    made: Any = parts.fabric.setup_dataloaders(loader, use_distributed_sampler=False)
    return made


def evaluation(parts: Parts, dataset: Any) -> Iterable[Batch]:
    """All of a data set in order: over all ranks, each item once."""
    fabric = parts.fabric
    sampler = EvaluationSampler(
        len(dataset), parts.recipe.train.batch_size, rank=fabric.global_rank, world=fabric.world_size
    )
    return load(parts, dataset, sampler)


def seed(parts: Parts, epoch: int, batch: int) -> None:
    """Seed torch, NumPy and Python: what a batch draws depends on nothing that was drawn before it."""
    value = mix(parts.recipe.seed, epoch, batch, parts.fabric.global_rank)
    torch.manual_seed(value & (1 << 63) - 1)
    np.random.seed(value & 0xFFFFFFFF)
    random.seed(value)


def train_batch(parts: Parts, batch: Batch) -> tuple[Result, Tensor]:
    """Train on a batch x, y (and mask, with per-step targets); returns the result and the targets it was trained on."""
    x, y, *mask = batch
    for transform in parts.batch:
        x, y = _transformed(transform, x, y, sequence=parts.data.steps is not None)
    with parts.fabric.autocast():
        return parts.rule.train_step(prepared(parts, x), y, *mask), y


def predict(parts: Parts, x: Tensor) -> Tensor:
    """The mean output ``[N, classes]`` over the steps, with per-step targets that of each step ``[T, N, classes]``."""
    static = parts.recipe.num_steps if parts.data.steps is None else None
    with parts.fabric.autocast():
        return prediction.predict(
            parts.net, prepared(parts, x), static, "none" if parts.data.per_step_targets else "mean"
        )


def predict_running(parts: Parts, x: Tensor, steps: int) -> Tensor:
    """The mean output over the steps so far, ``[steps, N, classes]``, for the first steps of the input."""
    static = parts.data.steps is None
    with parts.fabric.autocast():
        return prediction.predict(
            parts.net, prepared(parts, x if static else x[:steps]), steps if static else None, "running"
        )


def prepared(parts: Parts, x: Tensor) -> Tensor:
    """An input in the precision and the memory format that the recipe asks for."""
    x = parts.fabric.strategy.precision.convert_input(x)
    if not parts.recipe.fabric.channels_last or x.dim() < 4:
        return x
    return x.flatten(0, -4).contiguous(memory_format=torch.channels_last).view(x.shape)


def _transformed(transform: Any, x: Tensor, y: Tensor, sequence: bool) -> tuple[Tensor, Tensor]:
    """Mixup and its like take the batch first, and sequences of images ``[N, T, C, H, W]`` as videos."""
    if not sequence:
        return transform(x, y)
    x, y = transform(tv_tensors.Video(x.transpose(0, 1)), y)
    return x.as_subclass(Tensor).transpose(0, 1), y


def _ignore_interrupts(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
