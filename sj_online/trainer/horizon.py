"""The last steps of a network, kept so that they can be run again with the weights of the present.

Kept of each step are its input, the states before it and the input current of every neuron. Run again, a neuron is fed
the value that was kept with the gradient of the one computed anew: potentials and spikes are those of the past, and
the gradient goes to the present weights (STOL, Alg. 1).
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from spikingjelly.activation_based import base, neuron, op_counter
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.checkpoint import get_device_states, set_device_states

from sj_online.trainer.network import run_steps
from sj_online.trainer.sequence import Sequence

NODES = (neuron.BaseNode, neuron.SimpleBaseNode)


@dataclass
class Step:
    """A step: its input, and the states, the random generators and the currents per neuron with which it ran."""

    x: Sequence
    steps: range
    memories: list[Any]
    random: tuple[Tensor, Any]
    currents: list[list[Tensor] | None] = field(default_factory=list)


class Replayed(base.MemoryModule):
    """Mixed into the class of a neuron: it keeps its currents, or is fed kept ones (None: zeros)."""

    currents: list[Tensor] | None
    replays: bool
    spatial: bool

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The neuron's forward; x as it wants it."""
        if self.currents is None:
            kept = torch.zeros_like(x)
        elif self.replays:
            kept = self.currents.pop(0)
        else:
            self.currents.append(x.detach().clone())  # the network may go on to change x in place
            return super().forward(x, *args, **kwargs)
        s = super().forward(_with_gradient_of(x, kept), *args, **kwargs)
        return s if self.spatial else s.detach()


@cache
def _replayed(node: type) -> type:
    # A class, not a hook: compiled code is guarded by the class of a module, while it ignores hooks that come later.
    return type(node.__name__, (Replayed, node), {})


class _Kept(torch.autograd.Function):
    """A value that was kept, with the gradient of the one computed anew; neither costs a pass over memory."""

    @staticmethod
    def forward(ctx: Any, computed: Tensor, value: Tensor) -> Tensor:
        return value.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _with_gradient_of(computed: Any, value: Any) -> Any:
    if not isinstance(computed, Tensor) or not computed.requires_grad or value is None:
        return value
    return _Kept.apply(computed, value if isinstance(value, Tensor) else torch.full_like(computed, value))


class History:
    """The last steps of one sequence.

    Args:
        net: the network.
        length: how many steps are kept.
        first: before the first step comes one of zero input and zero currents.
        statistics: batch normalisation counts the steps that are run again into its running statistics.
        spatial: the spikes of past steps carry gradient to the layers before; else only the potentials do.
    """

    def __init__(self, net: nn.Module, length: int, *, first: bool, statistics: bool, spatial: bool) -> None:
        self.net = net
        self.nodes = [module for module in net.modules() if isinstance(module, NODES)]
        self.steps: deque[Step] = deque(maxlen=length)
        self.first = first
        self.statistics = statistics
        self.spatial = spatial

    def run(self, x: Sequence, steps: range) -> Tensor:
        """Run one step, the kept ones before it in its graph, and keep it; returns ``[1, N, classes]``."""
        now = Step(x, steps, base.extract_memories(self.net), (torch.get_rng_state(), get_device_states(x.x)))
        if self.first and not self.steps:
            zeros = Sequence(torch.zeros_like(x[steps.start]), None, 1)
            self.steps.append(Step(zeros, range(1), now.memories, now.random, [None] * len(self.nodes)))
        with unseen(self.net), nullcontext() if self.statistics else without_statistics(self.net):
            for past in self.steps:
                self._run(past, replays=True)
        now.currents = [[] for _ in self.nodes]
        output = self._run(now, replays=False)
        self.steps.append(now)
        return output

    def _run(self, step: Step, replays: bool) -> Tensor:
        """Run a step from the states and the random numbers that it had, keeping what graph leads to the states."""
        memories = zip(base.extract_memories(self.net), step.memories, strict=True)
        base.load_memories(self.net, [_with_gradient_of(*pair) for pair in memories])
        torch.set_rng_state(step.random[0])
        set_device_states(*step.random[1])
        with self._installed(step.currents, replays):
            return run_steps(self.net, step.x, step.steps)

    @contextmanager
    def _installed(self, currents: list[list[Tensor] | None], replays: bool) -> Iterator[None]:
        classes: list[type] = [type(node) for node in self.nodes]
        v_seqs = [getattr(node, "v_seq", None) for node in self.nodes]
        for node, cls, kept in zip(self.nodes, classes, currents, strict=True):
            node.__class__ = _replayed(cls)
            node.replays, node.spatial = replays, self.spatial
            node.currents = list(kept) if replays and kept is not None else kept
        try:
            yield
        finally:
            for node, cls, v_seq in zip(self.nodes, classes, v_seqs, strict=True):
                node.__class__ = cls
                del node.replays, node.spatial, node.currents
                if replays and v_seq is not None:
                    node.v_seq = v_seq


@contextmanager
def without_statistics(net: nn.Module) -> Iterator[None]:
    """Batch normalisation in training mode uses its batch, and leaves the running statistics alone."""
    norms = [
        module
        for module in net.modules()
        if isinstance(module, _NormBase) and module.training and module.track_running_stats
    ]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def _measures(hook: Callable[..., Any]) -> bool:
    return str(getattr(hook, "__module__", "")).startswith(("spikingjelly.", "sj_online."))


@contextmanager
def unseen(net: nn.Module) -> Iterator[None]:
    """The monitors and operation counters of SpikingJelly do not see what the network does."""
    with ExitStack() as stack:
        for module in net.modules():
            for name in HOOKS:
                hooks = getattr(module, name)
                others = {key: hook for key, hook in hooks.items() if not _measures(hook)}
                if len(others) < len(hooks):
                    setattr(module, name, type(hooks)(others))
                    stack.callback(setattr, module, name, hooks)
        for mode in [*_get_current_dispatch_mode_stack(), *_get_current_function_mode_stack()]:
            if isinstance(mode, op_counter.DispatchCounterMode | op_counter.FunctionCounterMode):
                stack.callback(setattr, mode, "counters", mode.counters)
                mode.counters = []
        yield
