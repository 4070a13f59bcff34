"""When what was made of a weight may be used again: the weight's version, memory and the last update say so."""

from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from sj_online import host

_last_update = object()


def _note_update(*_: Any) -> None:
    """Note the step of any optimizer: a fused one changes weights without counting their version up."""
    global _last_update
    _last_update = object()


register_optimizer_step_post_hook(_note_update)


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """What was made of a weight, and the state of the weight then; never changed, so that threads may share it.

    Attributes:
        weight: what it was made of.
        memory: an alias of the weight as it was; while it is here, no other tensor gets this memory.
        version: of the weight.
        update: stands for the last step of any optimizer.
        made: the result.
    """

    weight: nn.Parameter
    memory: Tensor
    version: int
    update: object
    made: Any

    def holds_for(self, weight: nn.Parameter) -> bool:
        """Whether ``made`` is what would be made of ``weight`` now, as far as torch counts writes."""
        return (
            weight is self.weight
            and weight._version == self.version
            and self.update is _last_update
            and _place(weight) == _place(self.memory)
        )


def keep(weight: nn.Parameter, make: Any) -> Kept:
    """Call ``make(weight)``, without a graph, and note the state of the weight before."""
    with torch.inference_mode(False), torch.no_grad():  # autograd takes no tensor of inference mode later
        version, update = weight._version, _last_update  # before the values are read: another thread may write
        return Kept(weight, weight.detach(), version, update, make(weight))


def can_keep(weight: Tensor) -> TypeGuard[nn.Parameter]:
    """Whether a change of the weight would be seen, and what is made of it now is a tensor like any other."""
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or type(weight) is not nn.Parameter  # a parametrisation's, torch.func's, ...
        or weight.is_inference()  # counts no versions
        or host.transformed()
        or (weight.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device
