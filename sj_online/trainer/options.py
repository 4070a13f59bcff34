"""The options that rules take by keyword, typed."""

from collections.abc import Callable, Mapping
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from sj_online import check, host
from sj_online.layer import is_synapse
from sj_online.loss import Loss
from sj_online.topology import display_name


class Common(TypedDict, total=False):
    """The options that every rule takes by keyword; see :class:`~sj_online.trainer.base.Rule`."""

    loss_fn: Loss
    num_steps: int | None
    backward: Callable[[Tensor], None] | None
    before_step: Callable[[], Any] | None
    per_step_targets: bool
    compress: bool
    learn_last: int | None


class Options(Common, total=False):
    """Those, and the ones of rules whose paper leaves the choice."""

    update: str | None
    step_scale: str | None


class Signalled(Options, total=False):
    """Those, and the learning signal, which rules of one step take."""

    feedback: str | Mapping[str, Tensor]


class OfOneStep(Signalled, total=False):
    """Those, and the generator of what is drawn."""

    generator: torch.Generator | None


class TracedOptions(OfOneStep, total=False):
    """The options that every traced rule takes by keyword; see :class:`~sj_online.trainer.traced.TracedRule`."""

    trace: Mapping[str, bool] | None
    trace_decay: Mapping[str, float] | float | None


def only(rule: type, options: Mapping[str, Any], known: type) -> None:
    """Raise TypeError for an option that a rule does not take, as Python does for a keyword of a function."""
    for name in options.keys() - known.__annotations__.keys() - Common.__annotations__.keys():
        raise TypeError(f"{rule.__name__}.__init__() got an unexpected keyword argument {name!r}")


def check_traced(net: nn.Module, trace: Mapping[str, bool], trace_decay: Mapping[str, float] | float) -> None:
    """Raise where the options of a traced rule name no synapse, or a leak is out of range."""
    leaks = trace_decay if isinstance(trace_decay, Mapping) else {}
    for name, value in leaks.items():
        check.between(f"trace_decay[{name!r}]", value, 0, 1)
    if not isinstance(trace_decay, Mapping):
        check.between("trace_decay", trace_decay, 0, 1)
    known = {host.shown(name) for name, module in net.named_modules() if is_synapse(module)}
    known |= {display_name(name) for name, _ in net.named_parameters(remove_duplicate=False)}
    for argument, names in (("trace", trace), ("trace_decay", leaks)):
        for name in names:
            if name not in known:
                synapses = ", ".join(name for name, module in net.named_modules() if is_synapse(module))
                raise ValueError(f"{argument} names {name!r}, which is none of the synapses {synapses}")
