"""Make the host know these neurons where it keeps lists of neurons."""

from collections.abc import Iterator
from typing import Any

import torch
from spikingjelly.activation_based.distributed.vision import register_neuron_class
from spikingjelly.activation_based.op_counter import DispatchCounterMode, NeuronStateCounter

from .base import OnlineNode
from .empf.node import EMPFNode
from .hdlif import HDLIFNode
from .lmh.node import LMHNode

NODES = (EMPFNode, HDLIFNode, LMHNode)

_STATES = {torch.ops.sj_online.empf.default: 1, torch.ops.sj_online.lmh.default: 2}
"""How many states follow x_seq in the arguments of each sequence operator."""


def register() -> None:
    """Let the host name these neurons and count their states; importing ``sj_online.neuron`` does so."""
    for node in NODES:
        register_neuron_class(node)
    for operator in _STATES:
        torch.library.register_torch_dispatch(operator.name(), DispatchCounterMode, _dispatch)


def _dispatch(mode: DispatchCounterMode, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the host's counters see of our sequence operators: in a ``NeuronStateCounter`` a rule for the states."""
    for counter in mode.counters:
        if isinstance(counter, NeuronStateCounter):
            counter.extra_state_rules = dict.fromkeys(_with_subclasses(OnlineNode), _count_sequence) | (
                counter.extra_state_rules  # the caller's come first
            )
    return mode.__torch_dispatch__(func, types, args, kwargs)


def _with_subclasses(node: type[OnlineNode]) -> Iterator[type[OnlineNode]]:
    yield node
    subclasses: list[type[OnlineNode]] = node.__subclasses__()
    for subclass in subclasses:
        yield from _with_subclasses(subclass)


def _count_sequence(
    module: torch.nn.Module, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, state_keys: set[Any]
) -> dict[str, int] | None:
    """One read and one write of every state for each step, as the host counts its own operators."""
    if func not in _STATES:
        return None
    x_seq, states = args[0], args[1 : 1 + _STATES[func]]
    moved = x_seq.shape[0] * sum(v.numel() * v.element_size() for v in states)
    return {"state_reads": moved, "state_writes": moved, "neuron_logical_steps": x_seq.numel()}
