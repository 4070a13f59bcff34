"""From a recipe to its parts: everything is checked by name and option first, then built, then tried on one sample."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from lightning_fabric import Fabric, seed_everything
from torch import Tensor, nn
from torch.utils.data import Dataset

from sj_online.app import named
from sj_online.app.batches import predict
from sj_online.app.callbacks import usual
from sj_online.app.networks import MIXED, RULE, begun, check, describe, network, time_steps
from sj_online.app.parts import Parts
from sj_online.app.recipe import Device, Named, Recipe
from sj_online.data import Augmented, DataSet, Shape
from sj_online.optim import param_groups

EXAMPLES = 512
"""About as many items calibrate a conversion."""


def build(recipe: Recipe, *, download: bool = False, rehearsal: bool = False) -> Parts:
    """Build all that a recipe names.

    Args:
        recipe: the recipe.
        download: let the data set fetch its files.
        rehearsal: leave the data out: their shape is enough.

    Raises:
        ValueError: one line that names what does not exist or does not fit.

    Example:
        >>> build(Recipe(num_steps=2), rehearsal=True).data.classes
        10
    """
    check(recipe)
    shape = describe(recipe)
    steps = time_steps(recipe, shape)
    fabric = make_fabric(recipe)
    transforms = [named.make("augmentations", each) for each in recipe.dataset.augment]
    data = without_items(shape) if rehearsal else load_data(recipe, transforms, download)
    seed_everything(recipe.seed % 2**32, verbose=False)
    made = begun(recipe, shape, _examples(data)) if recipe.start else network(recipe, shape).net
    net = prepared(recipe, fabric, made)
    train = recipe.train
    optimizer = _optimizer(train.optimizer, net)
    schedule = named.make("schedules", train.schedule, optimizer, epochs=train.epochs) if train.schedule else None
    wrapped = cast(torch.optim.Optimizer, fabric.setup_optimizers(optimizer))
    loss = named.make("losses", train.loss)
    given = (
        loss,
        steps if shape.steps is None else None,
        fabric.backward,
        _clipping(fabric, net, wrapped, train.clip),
        shape.per_step_targets,
    )
    rule = named.make("trainers", train.rule, net, wrapped, reserved=dict(zip(RULE, given, strict=True)))
    mixed = dict(zip(MIXED, (shape.classes, shape.classes, None), strict=True))  # the loop puts the batch first
    batch = [named.make("augmentations", each, reserved=mixed) for each in recipe.dataset.batch]
    parts = Parts(recipe, fabric, data, net, wrapped, schedule, rule, loss, batch)
    try_one(parts)
    return parts


def load_data(recipe: Recipe, transforms: Sequence[Any] = (), download: bool = False) -> DataSet:
    """The data of a recipe, the training part augmented."""
    dataset = recipe.dataset
    load = partial(named.entry("data", dataset.name), dataset.root, download=download, **dataset.options)
    data = named.run(f"data set {dataset.name}", load)
    return replace(data, train=Augmented(data.train, transforms, recipe.seed))


def _examples(data: DataSet) -> Tensor | None:
    """Inputs from all over the training data, for a conversion that calibrates; None of a rehearsal."""
    train: Any = data.train
    if data.steps is not None or not len(train):
        return None
    return data.collate([train[1, index] for index in range(0, len(train), max(1, len(train) // EXAMPLES))])[0]


class _NoItems(Dataset[Any]):
    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Any:
        raise IndexError(index)


def without_items(shape: Shape) -> DataSet:
    """A data set that only says what it is."""
    return DataSet(**{name: getattr(shape, name) for name in Shape.__dataclass_fields__},
                   train=_NoItems(), validation=None, test=_NoItems())  # fmt: skip


def make_fabric(recipe: Recipe) -> Fabric:
    """Fabric, launched, with the callbacks of the recipe."""
    device, train = recipe.fabric, recipe.train
    on_gpu = device.accelerator != "cpu" and torch.cuda.is_available()
    if device.accelerator == "cuda" and not on_gpu:
        raise ValueError("fabric.accelerator=cuda, but there is no CUDA device; use auto or cpu")
    if device.precision == "16-mixed" and not on_gpu:
        raise ValueError("fabric.precision=16-mixed needs a GPU; use bf16-mixed or 32-true")
    under = os.environ.get("LOCAL_WORLD_SIZE") if "TORCHELASTIC_RUN_ID" in os.environ else None
    devices, nodes = device.devices or int(under or 1), device.nodes
    if under and device.devices is None:
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    available = torch.cuda.device_count() if on_gpu else os.cpu_count() or 1
    if not under and devices > available:
        raise ValueError(f"fabric.devices={devices}, but there are {available} {'GPUs' if on_gpu else 'CPUs'}")
    if device.threads is not None:
        torch.set_num_threads(device.threads)
    own = [named.make("callbacks", each) for each in train.callbacks]
    fabric = Fabric(
        accelerator=device.accelerator,
        devices=devices,
        num_nodes=nodes,
        precision=device.precision,
        callbacks=usual(own, minutes=train.checkpoint_minutes),
    )
    fabric.launch()
    return fabric


def prepared(recipe: Recipe, fabric: Fabric, net: nn.Module) -> nn.Module:
    """The network on its device, in the memory format and precision of the recipe."""
    net = fabric.to_device(net)
    if recipe.fabric.precision == "64-true":
        net.double()
    if recipe.fabric.channels_last:
        # torch types no module.to with a memory format alone, though it takes one.
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if recipe.fabric.compile:
        net.compile()
    return net


def _optimizer(asked: Named, net: nn.Module) -> torch.optim.Optimizer:
    """An optimizer whose weight decay, if it has any, spares the neurons."""
    entry = named.entry("optimizers", asked.name)
    if "net" in named.parameters(entry, 0)[0]:  # it finds the parameters by their layers
        return named.make("optimizers", asked, net)
    parameters, _ = named.parameters(entry, 1)
    if "weight_decay" not in parameters:
        return named.make("optimizers", asked, net.parameters())
    decay = asked.options.get("weight_decay", parameters["weight_decay"].default)
    return named.make("optimizers", asked, param_groups(net, decay))


def _clipping(
    fabric: Fabric, net: nn.Module, optimizer: torch.optim.Optimizer, norm: float | None
) -> Callable[[], None] | None:
    if norm is None:
        return None

    def clip() -> None:
        fabric.clip_gradients(net, optimizer, max_norm=norm, error_if_nonfinite=False)

    return clip


def try_one(parts: Parts) -> None:
    """Raise unless the network takes a sample of the data set and gives an output for each class."""
    data, model = parts.data, f"model {parts.recipe.model.name}"
    name = f"data set {parts.recipe.dataset.name}"
    shape = (1, *data.shape) if data.steps is None else (data.steps, 1, *data.shape)
    try:
        output = predict(parts, torch.zeros(shape, device=parts.fabric.device))
    except Exception as error:
        raise ValueError(
            f"{model} cannot take the samples {tuple(data.shape)} of {name}: {' '.join(str(error).split())[:300]}"
        ) from error
    if output.shape[-1] != data.classes:
        raise ValueError(f"{model} has {output.shape[-1]} outputs, {name} {data.classes} classes")


def for_evaluation(recipe: Recipe, net: nn.Module) -> Parts:
    """The parts that evaluate a network on the data of a recipe; there is nothing to train it with."""
    recipe = replace(recipe, fabric=Device(precision=recipe.fabric.precision, threads=recipe.fabric.threads))
    recipe.train = replace(recipe.train, workers=0, callbacks=[])
    shape = describe(recipe)
    recipe.num_steps = time_steps(recipe, shape)
    fabric = make_fabric(recipe)
    none = cast(Any, None)
    parts = Parts(recipe, fabric, load_data(recipe), prepared(recipe, fabric, net), none, None, none, none)
    try_one(parts)
    return parts
