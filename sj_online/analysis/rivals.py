"""What memory-saving rules must be compared with: backpropagation through time as others do it, in one process.

The host's way is one multi-step call; its ``memopt`` and activation checkpointing then run blocks of the network again
in backward. All of them have the gradient of ``BPTT``, up to batch normalisation, which in one multi-step call sees the
images of all steps together.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, memopt
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sj_online import host
from sj_online.neuron.leak import is_neuron

Step = Callable[[], Any]
LEVELS = (1, 2, 3, 4)


class Block(nn.Sequential):
    """Layers up to and including a neuron: what is run again in backward."""


class _Again(Block):
    """A block that keeps its input alone; a multi-step call begins at the first step, so it is reset before."""

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self._run, x, use_reentrant=False)

    def _run(self, x: Tensor) -> Tensor:
        host.reset(self)
        return super().forward(x)


def in_blocks(net: nn.Module, block: type[nn.Sequential] = Block) -> int:
    """Put the layers of every ``nn.Sequential`` that end in a neuron into blocks, in place; returns how many.

    Example:
        >>> from spikingjelly.activation_based import layer, neuron
        >>> in_blocks(nn.Sequential(layer.Linear(2, 2), neuron.IFNode(), layer.Linear(2, 2)))
        1
    """
    made = 0
    for module in list(net.modules()):
        if not isinstance(module, nn.Sequential) or not any(map(is_neuron, module)):
            continue
        children: list[nn.Module] = []
        run: list[nn.Module] = []
        for child in list(module):
            run.append(child)
            if is_neuron(child):
                children.append(block(*run))
                run, made = [], made + 1
        while len(module):
            del module[0]
        module.extend([*children, *run])
    functional.invalidate_reset_cache(net)
    return made


def multi_step_bptt(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    num_steps: int | None = None,
    *,
    loss_fn: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    checkpointed: bool = False,
    memopt_level: int = 0,
) -> tuple[nn.Module, Step]:
    """Backpropagation through time as the host's users write it: one multi-step call, one backward.

    Args:
        net: copied; in step mode 's' or 'm'.
        x: ``[T, N, ...]``, or with ``num_steps`` one static input ``[N, ...]``.
        y: labels ``[N]``.
        num_steps: T of a static input.
        loss_fn: of one step; the mean over the steps is learnt.
        checkpointed: run each block again in backward, by ``torch.utils.checkpoint``.
        memopt_level: of the host's ``memopt``, 1 to 4; above 1 it searches on a CUDA device.

    Returns:
        The copy, and a training step of it without the update.

    Raises:
        ValueError: no block of the network can be run again, or a level that needs a GPU.
    """
    functional.reset_net(net)
    net = copy.deepcopy(net)
    functional.set_step_mode(net, "m")
    frames = x if num_steps is None else x.expand(num_steps, *x.shape)
    again = checkpointed or memopt_level > 0
    if again and not in_blocks(net, _Again if checkpointed else Block):
        raise ValueError("no nn.Sequential of this network holds a neuron, so there is no block to run again")
    if memopt_level > 1 and frames.device.type != "cuda":
        raise ValueError(f"memopt_level={memopt_level} measures on a CUDA device; on a CPU it is at most 1")
    if memopt_level:
        memopt.optimize_memory(net, Block, example_forward=lambda net: net(frames), level=memopt_level)

    def step() -> Tensor:
        functional.reset_net(net)
        outputs = net(frames)
        loss = torch.stack([loss_fn(output, y) for output in outputs]).mean()
        loss.backward()
        functional.reset_net(net)
        return loss.detach()

    return net, step
