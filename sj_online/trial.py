"""Run a network once to learn something of it, and leave it as it was."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from spikingjelly.activation_based import base, functional
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

STEPS = 4
"""Of a network that runs step by step, where its neurons do not say how many."""


@contextmanager
def as_it_was(net: nn.Module) -> Iterator[ExitStack]:
    """Eval mode and reset states; modes, buffers and states are put back afterwards, and what is entered is left."""
    training = {module: module.training for module in net.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
    memories = base.extract_memories(net)
    with ExitStack() as stack:
        try:
            net.eval()
            functional.reset_net(net)
            yield stack
        finally:
            functional.reset_net(net)
            base.load_memories(net, memories)
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            for module, mode in training.items():
                module.training = mode


def channels(net: nn.Module, nodes: Iterable[nn.Module], example_input: Tensor) -> dict[nn.Module, int]:
    """The channels of each node's input.

    Example:
        >>> from spikingjelly.activation_based import neuron
        >>> net = nn.Sequential(nn.Linear(2, 3), neuron.IFNode())
        >>> channels(net, [net[1]], torch.rand(1, 2))[net[1]]
        3
    """
    found: dict[nn.Module, int] = {}

    def record(node: Any, inputs: tuple[Tensor, ...]) -> None:
        found[node] = inputs[0].shape[2 if node.step_mode == "m" else 1]

    with as_it_was(net) as stack, torch.no_grad():
        for node in nodes:
            stack.enter_context(node.register_forward_pre_hook(record))
        net(example_input)
    return found


def silent(net: nn.Module, nodes: Mapping[str, nn.Module], example_input: Tensor) -> list[str]:
    """The names of the nodes that were run, but never fired and let no gradient pass.

    Batch norms that train, or have not begun to, normalise by the example, if it has more than one value per channel.

    Args:
        net: a network; in single-step mode it is called for its neurons' ``num_steps``, else 4 times.
        nodes: neurons of the network.
        example_input: ``[N, ...]``, or in multi-step mode ``[T, N, ...]``.

    Example:
        >>> from sj_online.neuron import EMPFNode
        >>> net = nn.Sequential(EMPFNode(threshold=0.5))
        >>> [silent(net, {"0": net[0]}, x) for x in (torch.full((1, 2), 0.05), torch.ones(1, 2))]
        [['0'], []]
    """
    learning = [m for m in net.modules() if isinstance(m, _BatchNorm) and (m.training or not m.num_batches_tracked)]
    run, alive = set(), set()

    def normalise(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        norm.training = inputs[0].numel() > norm.num_features

    def enter(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return inputs[0].detach().requires_grad_(), *inputs[1:]

    def leave(node: nn.Module, inputs: tuple[Tensor, ...], s: Tensor) -> Tensor:
        run.add(node)
        if s.any() or _passes(s, inputs[0]):
            alive.add(node)
        return s.detach()

    with as_it_was(net) as stack, torch.enable_grad():
        for norm in learning:
            stack.enter_context(norm.register_forward_pre_hook(normalise))
        for node in dict.fromkeys(nodes.values()):
            stack.enter_context(node.register_forward_pre_hook(enter))
            stack.enter_context(node.register_forward_hook(leave))
        for _ in range(_steps(net, nodes)):
            net(example_input)
    return [name for name, node in nodes.items() if node in run - alive]


def _passes(s: Tensor, x: Tensor) -> bool:
    """Whether a gradient reaches the input of a neuron; not a constant one, which a norm would hold back."""
    if not s.requires_grad:
        return False
    ramp = torch.linspace(1, 2, s.numel(), device=s.device).to(s.dtype).view_as(s)
    (grad,) = torch.autograd.grad(s, x, ramp, retain_graph=True, allow_unused=True)
    return grad is not None and bool(grad.any())


def _steps(net: nn.Module, nodes: Mapping[str, Any]) -> int:
    """How often to call the network."""
    if any(node.step_mode == "m" for node in nodes.values()):
        return 1
    told = (getattr(module, "num_steps", None) for module in net.modules())
    return min((steps for steps in told if isinstance(steps, int)), default=STEPS)
