"""What a recipe builds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from sj_online.app.recipe import Recipe
from sj_online.loss import Loss
from sj_online.trainer import Rule


@dataclass
class Parts:
    """What a recipe builds, on its device; the loop makes the loaders.

    Args:
        recipe: what all of it is made by.
        fabric: launched; devices, precision, ranks.
        data: the data set, a ``sj_online.data.base.DataSet``; its parts are empty in a rehearsal.
        net: the network.
        optimizer: of its parameters, set up by ``fabric``.
        schedule: of the learning rate, stepped after each epoch; None keeps it.
        rule: trains ``net`` by ``optimizer``.
        loss: ``loss(output [N, classes], y)``, or one made by :func:`sj_online.loss.over_window`.
        batch: transforms of a training batch (x, y), such as mixup.
    """

    recipe: Recipe
    fabric: Fabric
    data: Any
    net: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler | None
    rule: Rule
    loss: Loss
    batch: Sequence[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = ()
