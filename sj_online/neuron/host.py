"""Make the host know these neurons where it keeps lists of neurons."""

from collections.abc import Callable
from typing import Any

import torch
from spikingjelly.activation_based.distributed.vision import register_neuron_class

from .empf.node import EMPFNode
from .hdlif import HDLIFNode
from .lmh.node import LMHNode

NODES = (EMPFNode, HDLIFNode, LMHNode)

_STATES = {torch.ops.sj_online.empf.default: 1, torch.ops.sj_online.lmh.default: 2}
"""How many states follow x_seq in the arguments of each sequence operator."""


def register() -> None:
    """Let the host's serialised model configurations name these neurons; importing ``sj_online.neuron`` does so."""
    for node in NODES:
        register_neuron_class(node)


def state_rules() -> dict[type, Callable[..., dict[str, int] | None]]:
    """What the host's ``NeuronStateCounter`` needs to see into our sequence operators.

    As for its own operators it then counts, for each step, one read and one write of every state.

    Example:
        >>> from spikingjelly.activation_based.op_counter import DispatchCounterMode, NeuronStateCounter
        >>> counter = NeuronStateCounter(extra_state_rules=state_rules())
        >>> with DispatchCounterMode([counter]):
        ...     _ = EMPFNode(step_mode="m")(torch.rand(4, 2, 3))
        >>> counter.get_metric_counts()["Global"]["state_writes"]  # 4 steps of 6 float32
        96
    """
    return dict.fromkeys(NODES, _count_sequence)


def _count_sequence(
    module: torch.nn.Module, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, state_keys: set[Any]
) -> dict[str, int] | None:
    if func not in _STATES:
        return None
    x_seq, states = args[0], args[1 : 1 + _STATES[func]]
    moved = x_seq.shape[0] * sum(v.numel() * v.element_size() for v in states)
    return {"state_reads": moved, "state_writes": moved, "neuron_logical_steps": x_seq.numel()}
