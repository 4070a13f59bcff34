"""Run a network once to learn something of it, and leave it as it was."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm

from sj_online import host
from sj_online.state import looked_at
from sj_online.unroll import evaluating

STEPS = 4
"""Of a network that runs step by step, where its neurons do not say how many."""


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

    with looked_at(net), evaluating(net), torch.no_grad(), ExitStack() as stack:
        host.reset(net)
        for node in nodes:
            stack.enter_context(node.register_forward_pre_hook(record))
        net(example_input)
    return found


def silent(net: nn.Module, nodes: Mapping[str, nn.Module], run: Callable[[], Any]) -> list[str]:
    """The names of the nodes that were run, but never fired and let no gradient pass.

    Batch norms that train, or have not begun to, normalise by what they get, if it has more than one value per channel.

    Args:
        net: a network.
        nodes: neurons of the network.
        run: runs the network.

    Example:
        >>> from sj_online.neuron import EMPFNode
        >>> net = nn.Sequential(EMPFNode(threshold=0.5))
        >>> [silent(net, {"0": net[0]}, lambda: net(torch.full((1, 2), x))) for x in (0.05, 1.0)]
        [['0'], []]
    """
    learning = [m for m in net.modules() if isinstance(m, _BatchNorm) and (m.training or not m.num_batches_tracked)]
    began, alive = set(), set()

    def normalise(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        norm.training = inputs[0].numel() > norm.num_features

    def enter(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return inputs[0].detach().requires_grad_(), *inputs[1:]

    def leave(node: nn.Module, inputs: tuple[Tensor, ...], s: Tensor) -> Tensor:
        began.add(node)
        if s.any() or _passes(s, inputs[0]):
            alive.add(node)
        return s.detach()

    # Hooks of its own, so that what is saved here counts as no memory of the training around it.
    with looked_at(net), torch.enable_grad(), saved_tensors_hooks(_as_is, _as_is), ExitStack() as stack:
        for norm in learning:
            stack.enter_context(norm.register_forward_pre_hook(normalise))
        for node in dict.fromkeys(nodes.values()):
            stack.enter_context(node.register_forward_pre_hook(enter))
            stack.enter_context(node.register_forward_hook(leave))
        host.reset(net)
        run()
    return [name for name, node in nodes.items() if node in began - alive]


def _as_is(tensor: Tensor) -> Tensor:
    return tensor


def _passes(s: Tensor, x: Tensor) -> bool:
    """Whether a gradient reaches the input of a neuron; not a constant one, which a norm would hold back."""
    if not s.requires_grad:
        return False
    ramp = torch.linspace(1, 2, s.numel(), device=s.device).to(s.dtype).view_as(s)
    (grad,) = torch.autograd.grad(s, x, ramp, retain_graph=True, allow_unused=True)
    return grad is not None and bool(grad.any())


def steps(net: nn.Module, nodes: Mapping[str, Any]) -> int:
    """How often to call a network with one input: once in multi-step mode."""
    if any(node.step_mode == "m" for node in nodes.values()):
        return 1
    told = (getattr(module, "num_steps", None) for module in net.modules())
    return min((steps for steps in told if isinstance(steps, int)), default=STEPS)
