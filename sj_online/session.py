"""The parts of a run: data, network, optimizer and rule as a recipe names them, on Lightning Fabric."""

import copy
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sj_online import data, registry
from sj_online.data import Images
from sj_online.files import replacing
from sj_online.optim import param_groups
from sj_online.recipe import Device, Recipe
from sj_online.trainer import Rule


@dataclass
class Progress:
    """How far a run has come."""

    epoch: int = 0
    best_epoch: int = 0
    best_val_accuracy: float = -1.0
    train_seconds: float = 0.0
    saved_bytes: int = 0


class Session:
    """The parts that a recipe names, made and checked against each other.

    Args:
        config: the recipe.
        net: a network to use in the place of a new one.

    Attributes:
        kwargs: what the model was built with.

    Raises:
        ValueError: parts that do not exist, or do not fit each other.

    Example:
        >>> session = Session(Recipe(num_steps=2))
        >>> session.predict(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, config: Recipe, net: nn.Module | None = None) -> None:
        self.config = config
        self.fabric = _fabric(config.fabric)
        self.fabric.launch()
        dataset, model, train = config.dataset, config.model, config.train
        self.splits = _call(
            f"data set {dataset.name}", getattr(data, dataset.name), {"root": dataset.root} | dataset.options
        )
        self.kwargs = {
            "num_classes": int(self.splits.labels.max()) + 1,
            "in_channels": self.splits.test[0][0].shape[0],
            "num_steps": config.num_steps,
        } | model.options
        self.seed(0)
        net = net or _call(f"model {model.name}", registry.get("models", model.name), self.kwargs)
        self.net: nn.Module = self.fabric.to_device(net)
        optimizer = torch.optim.SGD(
            param_groups(self.net, train.weight_decay),
            lr=train.lr,
            momentum=train.momentum,
            nesterov=train.momentum > 0,
        )
        self.optimizer = cast(torch.optim.Optimizer, self.fabric.setup_optimizers(optimizer))
        arguments: dict[str, Any] = {
            "loss_fn": partial(F.cross_entropy, label_smoothing=train.label_smoothing),
            "num_steps": config.num_steps,
            "backward": self.fabric.backward,
        }
        if taken := sorted(arguments.keys() & train.options.keys()):
            raise ValueError(f"train.options cannot set {', '.join(taken)}: the recipe does")
        make = partial(registry.get("trainers", train.rule), self.net, self.optimizer)
        self.rule: Rule = _call(f"training rule {train.rule}", make, arguments | train.options)
        self._check()

    def _check(self) -> None:
        """One image and all labels against the network."""
        model, dataset = f"model {self.config.model.name}", f"data set {self.config.dataset.name}"
        image = self.splits.test[0][0]
        try:
            output = self.predict(image[None])
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{model} cannot take the images {tuple(image.shape)} of {dataset}: {error}") from error
        low, high = self.splits.labels.aminmax()
        if low < 0 or high >= output.shape[-1]:
            raise ValueError(
                f"labels {low} to {high} of {dataset} are out of range: {model} has outputs 0 to {output.shape[-1] - 1}"
            )
        batch, images = self.config.train.batch_size, len(self.splits.train)
        if batch > images:
            raise ValueError(f"train.batch_size={batch} is more than the {images} training images of {dataset}")

    def seed(self, epoch: int) -> None:
        """Seed every generator for an epoch, so that what it draws depends on no epoch before it."""
        entropy = [self.config.seed, epoch, self.fabric.global_rank]
        seed_everything(int(np.random.SeedSequence(entropy).generate_state(1)[0]), verbose=False)

    def batches(self, images: Images, order: Tensor, drop_last: bool) -> DataLoader:
        """This rank's batches of the images in ``order``."""
        train, rank, ranks = self.config.train, self.fabric.global_rank, self.fabric.world_size
        part = order[rank::ranks].tolist()
        return DataLoader(
            images, max(1, train.batch_size // ranks), sampler=part, drop_last=drop_last, num_workers=train.workers
        )

    def training_batches(self) -> DataLoader:
        """This rank's batches of an epoch; every rank has as many."""
        ranks, order = self.fabric.world_size, self.fabric.broadcast(torch.randperm(len(self.splits.train)))
        return self.batches(self.splits.train, order[: len(order) // ranks * ranks], drop_last=True)

    def train_step(self, x: Tensor, y: Tensor) -> tuple[float, int]:
        """Train on one batch; returns the loss and how many were right."""
        x, y = self.fabric.to_device((x, y))
        with self.fabric.autocast():
            result = self.rule.train_step(x, y)
        return float(result.loss), int((result.output.argmax(1) == y).sum())

    def rehearse(self) -> None:
        """Train on one batch and put everything back: what cannot train says so before anything is written."""
        before = copy.deepcopy(self._state())
        self.seed(0)
        try:
            self.train_step(*next(iter(self.training_batches())))
        except (RuntimeError, TypeError, ValueError) as error:
            model, rule = self.config.model.name, self.config.train.rule
            raise ValueError(f"training rule {rule} cannot train model {model} by this recipe: {error}") from error
        self._restore(before)

    def predict(self, x: Tensor) -> Tensor:
        """The mean output ``[N, classes]`` over the steps for images ``[N, C, H, W]``."""
        with self.fabric.autocast():
            return self.rule.predict(self.fabric.to_device(x))

    def accuracy(self, images: Images) -> float:
        """The part of the images that is classified right."""
        right = 0
        for x, y in self.batches(images, torch.arange(len(images)), drop_last=False):
            right += int((self.predict(x).argmax(1).cpu() == y).sum())
        return self.sum(right) / len(images)

    def sum(self, value: float) -> float:
        """The sum over the ranks."""
        if self.fabric.world_size == 1:
            return value
        return float(cast(Tensor, self.fabric.all_reduce(torch.tensor(value, dtype=torch.float64), reduce_op="sum")))

    def save(self, path: Path, progress: Progress) -> None:
        """Write a checkpoint; until it is complete the old one stands."""
        state = self._state() | {"progress": asdict(progress)}
        with replacing(path) if self.fabric.is_global_zero else nullcontext(path) as temporary:
            self.fabric.save(temporary, state)

    def load(self, path: Path, training: bool) -> Progress:
        """Read a checkpoint: the network, and for training all else; returns the progress.

        Raises:
            ValueError: the file is missing, damaged, foreign or of another network.
        """
        if not path.is_file():
            raise ValueError(f"there is no checkpoint {path}")
        try:
            with warnings.catch_warnings(action="ignore"):
                state = self.fabric.load(path, weights_only=True)
            if training:
                self._restore(state)
            else:
                self.net.load_state_dict(state["net"])
            progress = Progress(**state["progress"])
            if list(map(type, astuple(progress))) != list(map(type, astuple(Progress()))):
                raise TypeError(f"progress is {progress}")
            return progress
        except Exception as error:  # damaged and foreign files fail in any way
            raise ValueError(f"{path} is truncated, damaged or not a checkpoint of this run") from error

    def _state(self) -> dict[str, Any]:
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rule": self.rule.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rule.load_state_dict(state["rule"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])


def _fabric(device: Device) -> Fabric:
    on_gpu = device.accelerator != "cpu" and torch.cuda.is_available()
    if device.accelerator == "cuda" and not on_gpu:
        raise ValueError("fabric.accelerator=cuda, but there is no CUDA device; use auto or cpu")
    if device.precision == "16-mixed" and not on_gpu:
        raise ValueError("fabric.precision=16-mixed needs a GPU; use bf16-mixed or 32-true")
    if device.threads is not None:
        torch.set_num_threads(device.threads)
    return Fabric(accelerator=device.accelerator, devices=device.devices, precision=device.precision)


def _call(what: str, make: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Call with options that a user wrote; what is wrong with them is named."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return make(**options)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{what}: {error}") from error
