"""Data parallel training without a wrapper: gradients are averaged where a rule steps.

DistributedDataParallel allows one forward and backward an iteration; a rule runs many. Under ``torchrun`` (or any other
launcher that has set up ``torch.distributed``) a rule broadcasts the network once and averages ``.grad`` at each step.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """The number of ranks; 1 where ``torch.distributed`` is not set up."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def broadcast(net: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0."""
    if world_size() > 1:
        for tensor in [*net.parameters(), *net.buffers()]:
            dist.broadcast(tensor, 0)


@torch.no_grad()
def average(tensors: Iterable[Tensor | None]) -> None:
    """Replace floating point tensors by their means over the ranks, in place."""
    if world_size() == 1:
        return
    for tensor in tensors:
        if tensor is not None and tensor.is_floating_point():
            dist.all_reduce(tensor)
            tensor /= world_size()


def from_first(tensor: Tensor) -> Tensor:
    """The tensor of rank 0, on every rank; one on the CPU also where the ranks meet on GPUs."""
    objects = [tensor]
    if world_size() > 1:
        dist.broadcast_object_list(objects, src=0)
    return objects[0]
