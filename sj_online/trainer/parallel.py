"""Data parallel training without a wrapper: gradients are averaged where a rule steps.

DistributedDataParallel allows one forward and backward an iteration; a rule runs many. Under ``torchrun`` (or any other
launcher that has set up ``torch.distributed``) a rule broadcasts the network once and averages ``.grad`` at each step.

Every rank must make the same collective calls in the same order, or values of different tensors are mixed, or all wait
for ever. So nothing here depends on what one rank alone knows: which parameters its graph reached, or an error. Each
function but :func:`broadcast` begins by :func:`_meet`, where a rank that raised inside :func:`together` is told of.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 25 * 2**20


class OtherRankError(RuntimeError):
    """Another rank has raised an error, which is told there."""


def world_size() -> int:
    """The number of ranks; 1 where ``torch.distributed`` is not set up."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def agree(flag: bool) -> bool:
    """Whether all ranks say so; every rank gets the same answer."""
    return _meet([int(flag)])[0] == 1 if world_size() > 1 else flag


def any_rank(flags: list[bool]) -> list[bool]:
    """For each flag, whether any rank has set it; all ranks give as many."""
    if world_size() == 1:
        return flags
    _meet([])
    return [bool(flag) for flag in _reduce([int(flag) for flag in flags], dist.ReduceOp.MAX)]


def check_alike(name: str, value: int) -> None:
    """Check that a number is the same on every rank.

    Raises:
        ValueError: it is not, on every rank.
    """
    if world_size() > 1:
        low, high = _meet([value, -value])
        if low != -high:
            raise ValueError(f"{name} is {low} on one rank and {-high} on another: it must be the same on all ranks")


@contextmanager
def together() -> Iterator[None]:
    """Around what meets other ranks: an error on one rank is an error on all, where they would wait for it for ever.

    Raises:
        OtherRankError: another rank has raised.
    """
    try:
        yield
    except (OtherRankError, dist.DistError):
        raise
    except Exception:
        if world_size() > 1:
            _meet([], well=False)
        raise


@torch.no_grad()
def broadcast(net: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0.

    Raises:
        ValueError: the networks of the ranks do not have the same parameters and buffers.
    """
    if world_size() == 1:
        return
    tensors = [*net.parameters(), *net.buffers()]
    layouts: list[object] = [None] * world_size()
    dist.all_gather_object(layouts, [(tuple(tensor.shape), str(tensor.dtype)) for tensor in tensors])
    if any(layout != layouts[0] for layout in layouts):
        raise ValueError("the networks of the ranks differ: they must have the same parameters and buffers")
    _in_buckets(tensors, _as_bytes, partial(dist.broadcast, src=0))


@torch.no_grad()
def average(tensors: Iterable[Tensor]) -> None:
    """Replace floating point tensors by their means over the ranks, in place; other tensors stay.

    Half precision is summed in float32. The ranks must give tensors of the same shapes.
    """
    if world_size() > 1:
        _meet([])
        unique = {id(tensor): tensor for tensor in tensors if tensor.is_floating_point() or tensor.is_complex()}
        _in_buckets(list(unique.values()), _as_sum, _mean)


@torch.no_grad()
def average_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Replace the gradients of an optimizer's parameters by their means over the ranks.

    A rank without a gradient counts as one with zeros; where no rank has one, it stays None. Sparse gradients become
    dense.
    """
    if world_size() == 1:
        return
    parameters = list({id(p): p for group in optimizer.param_groups for p in group["params"]}.values())
    present = [int(p.grad is not None) for p in parameters]
    if not agree(all(present)):
        present = _reduce(present, dist.ReduceOp.MAX)
    gradients = []
    for p in (p for p, somewhere in zip(parameters, present, strict=True) if somewhere):
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        elif p.grad.layout != torch.strided:
            p.grad = p.grad.to_dense()
        gradients.append(p.grad)
    _in_buckets(gradients, _as_sum, _mean)


def from_first(tensor: Tensor) -> Tensor:
    """The tensor of rank 0, on every rank; one on the CPU also where the ranks meet on GPUs."""
    objects = [tensor]
    if world_size() > 1:
        _meet([])
        dist.broadcast_object_list(objects, src=0)
    return objects[0]


def _meet(values: list[int], *, well: bool = True) -> list[int]:
    """The least of each value over the ranks, two at most.

    Always one tensor of the same size, with the word that all is well in it: a rank that has raised joins without
    knowing what the others have come for.
    """
    all_well, *least = _reduce([int(well), *values, 0, 0][:3], dist.ReduceOp.MIN)
    if well and not all_well:
        raise OtherRankError("another rank has raised an error; see its output")
    return least


def _reduce(values: list[int], op: dist.ReduceOp.RedOpType) -> list[int]:
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
    reduced = torch.tensor(values, device=device)
    dist.all_reduce(reduced, op)
    return reduced.tolist()


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _as_sum(tensor: Tensor) -> Tensor:
    half = tensor.is_floating_point() and tensor.element_size() < 4
    return tensor.reshape(-1).to(torch.float32 if half else tensor.dtype)


def _mean(flat: Tensor) -> None:
    dist.all_reduce(flat)
    flat /= world_size()


def _in_buckets(
    tensors: list[Tensor], flatten: Callable[[Tensor], Tensor], exchange: Callable[[Tensor], object]
) -> None:
    """Run ``exchange`` on tensors laid behind each other, and copy back what it leaves there."""
    for bucket in _buckets(tensors):
        parts = [flatten(tensor) for tensor in bucket]
        flat = torch.cat(parts)
        exchange(flat)
        for tensor, part in zip(bucket, flat.split([len(part) for part in parts]), strict=True):
            # A part may begin where its dtype could not be viewed; a clone begins at 0.
            values = part.clone().view(tensor.dtype) if part.dtype == torch.uint8 else part
            tensor.copy_(values.view(tensor.shape))


def _buckets(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Tensors that go together: of one device and dtype, and no more than ``BUCKET_BYTES`` unless one alone is more."""
    buckets: list[list[Tensor]] = []
    filling: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], int]] = {}
    for tensor in tensors:
        key = tensor.device, tensor.dtype
        bucket, size = filling.get(key, ([], 0))
        size += tensor.nbytes
        if size > BUCKET_BYTES or not bucket:
            bucket, size = [], tensor.nbytes
            buckets.append(bucket)
        bucket.append(tensor)
        filling[key] = bucket, size
    return buckets
