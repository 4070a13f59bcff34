"""A run that is as small as it can be and still has all that a resumed run must bring back."""

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from sklearn.datasets import load_digits
from spikingjelly.activation_based import layer, neuron
from torch import nn
from torch.utils.data import TensorDataset

from sj_online.app.callbacks import usual
from sj_online.app.parts import Parts
from sj_online.app.recipe import Device, Named, Recipe, Train
from sj_online.data.base import Augmented, DataSet
from sj_online.trainer import SLTT

RECIPE = Recipe(
    num_steps=2,
    model=Named("small"),
    train=Train(epochs=2, batch_size=64, checkpoint_minutes=0.0),
    fabric=Device("cpu", threads=1),
)


def digits(seed=0, train=320, validation=64, test=101):
    """Real digits, moved by a random pixel in training."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16, torch.from_numpy(labels)
    ends = [0, train, train + validation, train + validation + test]
    parts = [TensorDataset(x[a:b], y[a:b]) for a, b in zip(ends, ends[1:], strict=False)]
    return DataSet(
        classes=10, shape=(1, 8, 8), train=Augmented(parts[0], [move], seed), validation=parts[1], test=parts[2]
    )


def move(x):
    return torch.roll(x, int(torch.randint(-1, 2, ())), -1)


def network(norm=True, dropout=0.1):
    middle = [layer.BatchNorm1d(32)] if norm else []
    return nn.Sequential(
        layer.Flatten(),
        layer.Linear(64, 32),
        *middle,
        neuron.LIFNode(v_threshold=0.3),
        layer.Dropout(dropout),
        layer.Linear(32, 10),
    )


SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def cosine(optimizer, epochs):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)


def parts(
    recipe=RECIPE, *, rule=SLTT, optimizer=SGD, schedule=cosine, net=network, data=None, callbacks=None, **kwargs
):
    """As a recipe's parts, by hand."""
    device, train = recipe.fabric, recipe.train
    callbacks = usual(minutes=train.checkpoint_minutes) if callbacks is None else callbacks
    fabric = Fabric(accelerator="cpu", devices=device.devices or 1, precision=device.precision, callbacks=callbacks)
    fabric.launch()
    torch.manual_seed(recipe.seed)
    made = fabric.to_device(net())
    made = made.double() if device.precision == "64-true" else made
    raw = optimizer(made.parameters())
    schedule = schedule and schedule(raw, train.epochs)
    wrapped = fabric.setup_optimizers(raw)
    kwargs = {"loss_fn": F.cross_entropy, "num_steps": recipe.num_steps, "backward": fabric.backward} | kwargs
    taught = rule(made, wrapped, **kwargs)
    return Parts(recipe, fabric, data or digits(recipe.seed), made, wrapped, schedule, taught, kwargs["loss_fn"])


def recipe(**train):
    return replace(RECIPE, train=replace(RECIPE.train, **train))
