"""What the loop does with a network: run steps, cut its states from their graph, evaluate."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from spikingjelly.activation_based import base, functional
from torch import Tensor, nn

from sj_online.trainer import check
from sj_online.trainer.sequence import Sequence


def run_steps(net: nn.Module, x: Sequence, steps: range) -> Tensor:
    """Run a network over steps of its input; returns ``[k, N, classes]``.

    The host's multi-step-only models average over their steps: each step then has the mean as its output.
    """
    if check.step_mode(net) == "m":
        output = net(x.window(steps))
        return output if output.dim() > 2 else output.expand(len(steps), *output.shape)
    return torch.stack([net(x[t]) for t in steps])


def detach(net: nn.Module) -> None:
    """Cut the states from their graph; some states are views of a sequence, which the host detaches in place."""
    states = base.extract_memories(net)
    base.load_memories(net, [state.detach() if isinstance(state, Tensor) else state for state in states])
    functional.detach_net(net)


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Eval mode, with every module's own mode restored afterwards."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
