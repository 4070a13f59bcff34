"""A data set, a loss, a schedule and a recipe of your own; a line in pyproject.toml registers each."""

import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import LinearLR
from torch.utils.data import TensorDataset

from sj_online.data import DataSet, Shape, describes


@describes(lambda size: Shape(classes=2, shape=(1, size, size)))
def bars(root: str | None = None, *, download: bool = False, size: int = 8) -> DataSet:
    """A bar in noise, upright or lying; drawn, so nothing is read from root."""
    draw = torch.Generator().manual_seed(0)
    x, y = torch.rand(640, 1, size, size, generator=draw), torch.randint(2, (640,), generator=draw)
    for image, label, place in zip(x, y, torch.randint(size, (640,), generator=draw), strict=True):
        image.select(1 + int(label), int(place)).fill_(1)
    parts = [TensorDataset(x[a : a + n], y[a : a + n]) for a, n in ((0, 384), (384, 128), (512, 128))]
    return DataSet(**vars(bars.describe(size=size)), train=parts[0], validation=parts[1], test=parts[2])


def margin(output: torch.Tensor, y: torch.Tensor, *, by: float = 0.5) -> torch.Tensor:
    """The cross entropy with the right output lowered, for labels y."""
    return F.cross_entropy(output - by * F.one_hot(y, output.shape[-1]), y)


def falling(optimizer: torch.optim.Optimizer, epochs: int, *, to: float = 0.1) -> LinearLR:
    """A straight line from the learning rate to a part of it."""
    return LinearLR(optimizer, 1.0, to, epochs)


RECIPE = {
    "base": "digits",
    "dataset": {"name": "bars"},
    "train": {"loss": {"name": "margin", "options": {"by": 0.3}}, "schedule": "falling", "epochs": 6},
}
