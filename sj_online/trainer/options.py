"""The options that rules take by keyword, typed."""

from collections.abc import Callable, Mapping
from typing import Any, TypedDict

from torch import Tensor

from sj_online.loss import Loss


class Common(TypedDict, total=False):
    """The options that every rule takes by keyword; see :class:`~sj_online.trainer.base.Rule`."""

    loss_fn: Loss
    num_steps: int | None
    backward: Callable[[Tensor], None] | None
    before_step: Callable[[], Any] | None
    per_step_targets: bool
    compress: bool


class Options(Common, total=False):
    """Those, and the ones of rules whose paper leaves the choice."""

    update: str | None
    step_scale: str | None


def only(rule: type, options: Mapping[str, Any], known: type) -> None:
    """Raise TypeError for an option that a rule does not take, as Python does for a keyword of a function."""
    for name in options.keys() - known.__annotations__.keys() - Common.__annotations__.keys():
        raise TypeError(f"{rule.__name__}.__init__() got an unexpected keyword argument {name!r}")
