"""Sparse weights by STDS: a threshold that grows during training takes the small weights to zero."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from spikingjelly.activation_based import layer
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sj_online import check
from sj_online.layer.quantized import Quantized
from sj_online.layer.synapse import is_synapse

OWN_WEIGHTS = (Quantized, layer.WSConv2d, layer.WSLinear)
"""Synapses that make another weight of theirs, which is not zero where theirs is."""


def soft_threshold(weight: Tensor, threshold: Tensor | float) -> Tensor:
    """Shrink weights towards zero (STDS, Chen et al. 2022; LM-H, Eq. S1).

    Forward: Ws = sign(W) max(|W| - d, 0). Gradient: passed on as it is, also below d, so that a weight which is shrunk
    to zero can grow again; zero only where W itself is zero. So a weight that is exactly zero stays it.

    Args:
        weight: W, of any shape.
        threshold: d, at least 0.

    Example:
        >>> soft_threshold(torch.tensor([-0.3, 0.05, 0.2]), 0.1)
        tensor([-0.2000,  0.0000,  0.1000])
    """
    fixed = weight.detach()
    d = torch.as_tensor(threshold, dtype=fixed.dtype, device=fixed.device)
    return torch.where(fixed == 0, fixed, weight) - fixed.clamp(-d, d)


def sine_schedule(n: int, total: int, D: float) -> float:
    """The threshold before step n = 1 ... total: D (sin(pi (n / total - 1/2)) + 1) / 2 (LM-H, Eq. S2).

    Example:
        >>> [sine_schedule(n, 100, D=0.05) for n in (0, 50, 100)]
        [0.0, 0.025, 0.05]
    """
    return D * (math.sin(math.pi * (n / total - 0.5)) + 1) / 2


class SoftThreshold(nn.Module):
    """:func:`soft_threshold` as a parametrisation; ``threshold`` [] is a buffer, so that a checkpoint holds it."""

    threshold: Tensor

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("threshold", like.new_zeros(()))

    def forward(self, weight: Tensor) -> Tensor:
        """Sparse weights from learnt ones."""
        return soft_threshold(weight, self.threshold)


class Sparsification:
    """The schedule over the thresholds of a network, see :func:`sparsify`.

    Attributes:
        names: of the synapses whose weights become sparse.
        n: the step that the thresholds are for, 0 before the first.
        threshold: d, the present threshold.
    """

    def __init__(self, net: nn.Module, D: float, total: int) -> None:
        self.places = dict(_sparse(net))
        self.names = list(self.places)
        self.D, self.total = D, total
        self.go_to(0)

    def step(self) -> float:
        """Before the forward of each training batch: the next threshold; after the last one it stays D."""
        return self.go_to(self.n + 1)

    def go_to(self, n: int) -> float:
        """The threshold of step n, as in a run that goes on after a checkpoint."""
        self.n = min(n, self.total)
        self.threshold = sine_schedule(self.n, self.total, self.D)
        for place in self.places.values():
            place.threshold.fill_(self.threshold)
        return self.threshold


def sparsify(net: nn.Module, D: float, total: int) -> Sparsification:
    """Let the weights of a network become sparse while it learns, in place, by parametrisation (STDS).

    The weights go on from what they are, biases stay dense, and the parameters stay the same objects, so that an
    optimizer that holds them goes on. Convolutions and linear layers take part, but not those that make another weight
    of theirs, binary, ternary and standardised ones. :func:`bake` makes the sparse weights plain parameters at the end.

    Args:
        net: any network.
        D: the threshold at the end; the paper has 0.05.
        total: steps until then: epochs times batches.

    Returns:
        The schedule: call its ``step()`` before each training batch.

    Raises:
        ValueError: nothing in net to make sparse, or D or total out of range.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> schedule = sparsify(net, D=0.05, total=100)
        >>> for _ in range(100):
        ...     d = schedule.step()  # and then train on a batch
        >>> d, schedule.names
        (0.05, ['0', '2'])
    """
    check.at_least("total", total)
    if not (D >= 0 and math.isfinite(D)):
        raise ValueError(f"D={D!r} is not a finite number of at least 0")
    prepare(net)
    return Sparsification(net, D, total)


def prepare(net: nn.Module) -> None:
    """Parametrise the weights, with thresholds of zero: the form of a network whose sparse weights can be loaded.

    Raises:
        ValueError: there is nothing to make sparse.
    """
    found: list[Any] = [
        module for module in net.modules() if is_synapse(module) and not isinstance(module, OWN_WEIGHTS)
    ]
    if not found:
        raise ValueError(f"net={type(net).__name__}: no convolution or linear layer inside it to make sparse")
    for module in found:
        if _soft_threshold(module) is None:
            parametrize.register_parametrization(module, "weight", SoftThreshold(module.weight))


def bake(net: nn.Module) -> list[str]:
    """Make the sparse weights of a network plain parameters, in place, and return the names of their synapses.

    The parameters are new ones, which an optimizer does not know: the network is for use, or to begin another training.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 4))
        >>> schedule = sparsify(net, D=0.5, total=1)
        >>> bake(net), type(net[0]).__name__
        (['0'], 'Linear')
    """
    names = [name for name, _ in _sparse(net)]
    modules: list[Any] = [net.get_submodule(name) for name in names]
    for module in modules:
        made = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
        del module.parametrizations
        module.__class__ = type(module).__bases__[0]  # as torch takes its own class away
        for name, value in made.items():
            module.register_parameter(name, nn.Parameter(value))
    return names


def synapses(net: nn.Module) -> dict[str, nn.Module]:
    """The synapses whose weights :func:`sparsify` has parametrised, by every name that they have."""
    return {name: m for name, m in net.named_modules(remove_duplicate=False) if _soft_threshold(m) is not None}


@torch.no_grad()
def sparsity(net: nn.Module) -> float:
    """The share of the weights that are zero, of 0 to 1, over all convolutions and linear layers as they are used.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> net[1].weight.data = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
        >>> sparsity(net)
        0.375
    """
    counts = list(zeros(net).values())
    of = sum(total for _, total in counts)
    return sum(none for none, _ in counts) / of if of else 0.0


@torch.no_grad()
def zeros(net: nn.Module) -> dict[str, tuple[int, int]]:
    """How many weights of each synapse are zero, and how many there are."""
    counts = {}
    for name, module in net.named_modules():
        if is_synapse(module):
            weight: Any = module.weight
            weight = module.quantize(weight) if isinstance(module, Quantized) else weight
            counts[name] = (weight.numel() - int(weight.count_nonzero()), weight.numel())
    return counts


def _sparse(net: nn.Module) -> Iterator[tuple[str, SoftThreshold]]:
    for name, module in net.named_modules():
        place = _soft_threshold(module)
        if place is not None:
            yield name, place


def _soft_threshold(module: Any) -> SoftThreshold | None:
    """What makes the weight of a synapse sparse, if anything does."""
    if not is_synapse(module) or not parametrize.is_parametrized(module, "weight"):
        return None
    made_by = module.parametrizations["weight"]
    return next((each for each in made_by if isinstance(each, SoftThreshold)), None)
