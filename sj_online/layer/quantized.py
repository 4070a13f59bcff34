"""What binary and ternary synapses share: the quantised weight, made once for each weight, and its integer form."""

from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from sj_online.layer import integer as integers
from sj_online.layer.integer import Integers
from sj_online.layer.kept import Kept, can_keep, keep


class Quantized(nn.Module):
    """A synapse whose ``weight`` is latent: the forward pass sees ``quantize(weight)``; subclasses name the quantiser.

    The quantised weight is kept until the weight changes. A write that torch does not count, as through ``.data`` or in
    another process, is seen after :func:`forget`, ``train()``, ``eval()``, ``load_state_dict()``, ``to()`` or the step
    of any optimizer.

    With ``integer`` the synapse computes with integers where its input is spikes or levels, in float32 on a CPU; see
    :mod:`sj_online.layer.integer`. Its output is then equal up to rounding, and so are its gradients. Under a rule with
    traces, in half precision or compiled it computes as without.

    Attributes:
        weight: latent weights.
        integer: see above.
        bits: of a weight, packed.
        quantize: from latent to quantised weights, with the pseudo-gradient; what is known of them may be given.
        levels: from latent weights to levels and scale, whose product is the quantised weight.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    bits: int
    quantize: Callable[..., Tensor]
    levels: Callable[[Tensor], tuple[Tensor, Tensor]]
    _kept: Kept | None = None
    _ready: Kept | None = None
    _integer = False

    @property
    def integer(self) -> bool:
        """Whether spikes and levels are computed with as integers.

        Raises:
            ValueError: set where it cannot be, with the reason.
        """
        return self._integer

    @integer.setter
    def integer(self, value: bool) -> None:
        reason = integers.why_not() if value else None
        if reason:
            raise ValueError(f"integer=True cannot be: {reason}")
        self._integer = value

    def quantised(self, weight: Tensor) -> Tensor:
        """``quantize(weight)``, from what is kept if it was made of this weight as it is now."""
        if not can_keep(weight):
            return self.quantize(weight)
        kept = self._kept
        if kept is None or not kept.holds_for(weight):
            kept = keep(weight, self.quantize)
            self._kept = kept if type(kept.made) is Tensor else None  # a fake one is of no use later
        return self.quantize(weight, kept.made) if torch.is_grad_enabled() else kept.made

    def _as_integers(self, x: Tensor) -> Tensor | None:
        """The output by the integer synapse; None where that would not be the same, or not be seen."""
        weight, bias = self.weight, self.bias
        if not (self._integer and can_keep(weight) and weight.dtype == torch.float32 and integers.usable()):
            return None
        geometry, padding = integers.laid_out(self)
        x = integers.padded(x, padding)
        found = integers.levels_of(x)
        if found is None:
            return None
        ready = self._ready
        if ready is None or not ready.holds_for(weight):
            ready = self._ready = keep(weight, partial(self._prepared, geometry=geometry))
        made = self.quantised(weight) if torch.is_grad_enabled() else weight
        return integers.synapse(x, made, bias, *found, ready.made)

    def _prepared(self, weight: Tensor, geometry: integers.Geometry | None) -> Integers:
        return integers.prepare(*self.levels(weight), geometry)

    def _forget(self) -> None:
        self._kept = self._ready = None

    def train(self, mode: bool = True) -> Self:
        """As of any module; what is kept is dropped."""
        self._forget()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self._forget()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._forget()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_kept", "_ready")}


def forget(net: nn.Module) -> None:
    """Drop the quantised weights that the synapses of a network keep; they are made again when they are needed.

    Example:
        >>> from sj_online.layer import BinaryLinear
        >>> linear = BinaryLinear(2, 1)
        >>> with torch.no_grad():
        ...     before = linear(torch.ones(2))
        ...     linear.weight.data.fill_(-3)  # torch does not count this
        ...     stale = linear(torch.ones(2))
        ...     forget(linear)
        ...     bool(stale == before), linear(torch.ones(2)).item()
        tensor([[-3., -3.]])
        (True, -6.0)
    """
    for module in net.modules():
        if isinstance(module, Quantized):
            module._forget()


def set_integer(net: nn.Module, value: bool = True) -> int:
    """Let the quantised synapses of a network compute with integers, or not; see :class:`Quantized`.

    Returns:
        How many there are.

    Raises:
        ValueError: it cannot be on this machine, with the reason.

    Example:
        >>> from sj_online.layer import BinaryLinear
        >>> set_integer(nn.Sequential(BinaryLinear(2, 1), nn.Linear(1, 1)), False)
        1
    """
    synapses = [module for module in net.modules() if isinstance(module, Quantized)]
    for synapse in synapses:
        synapse.integer = value
    return len(synapses)
