"""How far the gradients of rules are from those of backpropagation through time, with frozen weights."""

import copy
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from sj_online import host, registry
from sj_online.layer import is_synapse

Gradient = dict[str, Tensor]
TOTAL, RANDOM = "total", "random direction"


class Learner(Protocol):
    """What is asked of a rule; every :class:`sj_online.trainer.Rule` has it."""

    net: nn.Module
    num_steps: int | None

    def gradients(self, x: Tensor, y: Any, mask: Tensor | None = None) -> Iterator[Any]:
        """Leave ``.grad`` filled, window by window."""

    def scale(self, k: int, T: int) -> float:
        """The weight of the mean loss of k steps."""


Factory = Callable[..., Learner]


@dataclass(frozen=True)
class Similarity:
    """A rule's gradient beside the reference's, over some batches.

    Attributes:
        rule: the name that was given to it.
        layer: the module whose parameters the gradients are of, or ``'total'`` for all that learn.
        cosine: mean of the cosine over the batches in which neither gradient is zero; nan if there is none.
        cosine_spread: its standard deviation.
        distance: mean of the Euclidean distance, in units of the reference's norm.
        distance_spread: its standard deviation.
        norm: mean of the rule's norm, in the same units.
    """

    rule: str
    layer: str
    cosine: float
    cosine_spread: float
    distance: float
    distance_spread: float
    norm: float


def frozen_gradient(rule: Learner, x: Tensor, y: Any, mask: Tensor | None = None) -> Gradient:
    """A rule's gradient of the sum of the steps' losses, accumulated over a sequence without an update.

    Each window is brought to that scale by what the rule says of its own (``scale``), so that rules that average and
    rules that add can be compared.

    Args:
        rule: of a network; its ``.grad`` is lost.
        x: as of ``rule.train_step``, like the others.
        y: see there.
        mask: see there.

    Returns:
        By the name of each parameter that learns; zeros where nothing reaches it.

    Example:
        >>> from sj_online.trainer import SLTT
        >>> fc = nn.Linear(2, 1, bias=False)
        >>> rule = SLTT(fc, torch.optim.SGD(fc.parameters(), lr=0.1), loss_fn=lambda o, y: (o - y).sum())
        >>> frozen_gradient(rule, torch.ones(3, 1, 2), torch.zeros(1, 1))
        {'weight': tensor([[3., 3.]])}
    """
    learning = {name: p for name, p in rule.net.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in learning.items()}
    steps = rule.num_steps or len(x)
    rule.net.zero_grad()
    for window in rule.gradients(x, y, mask):
        k = len(window.steps)
        for name, p in learning.items():
            if p.grad is not None:
                total[name] += p.grad * (k / rule.scale(k, steps))
        rule.net.zero_grad()
    return total


def similarity(
    net: nn.Module,
    batches: Iterable[tuple[Tensor, ...]],
    rules: Mapping[str, Factory],
    *,
    reference: Factory | None = None,
    num_steps: int | None = None,
    seed: int = 0,
) -> list[Similarity]:
    """Cosine similarity and distance of each rule's gradient to the reference's, per layer and in total (STOL, Fig. 2).

    All rules see copies of one network in its present mode, the same batches and the same random numbers; no weight
    changes. A layer is a synapse; the total is over all parameters that learn. A random direction is a row too: what
    no similarity looks like.

    Args:
        net: the network; its state is reset, its weights and statistics stay.
        batches: of (x, y) or (x, y, mask).
        rules: by name, called as ``rule(net, optimizer, num_steps=num_steps)``.
        reference: likewise; None for backpropagation through time.
        num_steps: T of static inputs.
        seed: of dropout, of rules that draw, and of the random direction.

    Example:
        >>> from spikingjelly.activation_based import layer, neuron
        >>> from sj_online.trainer import BPTT
        >>> net = nn.Sequential(layer.Linear(8, 4), neuron.LIFNode(), layer.Linear(4, 3))
        >>> rows = similarity(net, [(torch.rand(6, 2, 8), torch.tensor([0, 2]))], {"BPTT": BPTT})
        >>> [(row.rule, row.layer, round(row.cosine, 3)) for row in rows if row.rule == "BPTT"]
        [('BPTT', '0', 1.0), ('BPTT', '2', 1.0), ('BPTT', 'total', 1.0)]
    """
    functional.reset_net(net)
    oracle = reference or registry.get("trainers", "bptt")
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for place, batch in enumerate(batches):
        expected = _gradient(oracle, net, batch, num_steps, seed + place)
        generator = torch.Generator().manual_seed(seed + place)
        ours = {name: _gradient(rule, net, batch, num_steps, seed + place) for name, rule in rules.items()}
        ours[RANDOM] = {n: _direction(g, generator) for n, g in expected.items()}
        for name, gradient in ours.items():
            for layer, members in _layers(net, expected).items():
                pair = (torch.cat([g[n].flatten() for n in members]) for g in (gradient, expected))
                found.setdefault((name, layer), []).append(_compared(*pair))
    return [Similarity(name, layer, *_moments(values)) for (name, layer), values in found.items()]


def _gradient(rule: Factory, net: nn.Module, batch: tuple[Tensor, ...], num_steps: int | None, seed: int) -> Gradient:
    """Of a copy of the network, with random numbers of its own."""
    device = batch[0].device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        twin = copy.deepcopy(net)
        made = rule(twin, torch.optim.SGD([p for p in twin.parameters() if p.requires_grad]), num_steps=num_steps)
        return frozen_gradient(made, *batch)


def _direction(like: Tensor, generator: torch.Generator) -> Tensor:
    """A random tensor with the norm of another."""
    drawn = torch.randn(like.shape, generator=generator).to(like)
    return drawn * (like.norm() / drawn.norm())


def _layers(net: nn.Module, gradient: Gradient) -> dict[str, list[str]]:
    """The parameters of each synapse that learn, and all of them."""
    names = [name for name, module in net.named_modules() if is_synapse(module)]
    layers = {host.shown(name): [n for n in gradient if n.startswith(f"{name}." if name else "")] for name in names}
    return {name: members for name, members in layers.items() if members} | {TOTAL: list(gradient)}


def _compared(ours: Tensor, expected: Tensor) -> tuple[float, float, float]:
    """Cosine, distance and norm, the latter two in units of the reference's norm; in float64."""
    ours, expected = ours.double(), expected.double()
    unit, norm = expected.norm().item(), ours.norm().item()
    cosine = (ours @ expected).item() / (unit * norm) if unit and norm else math.nan
    distance = (ours - expected).norm().item()
    return (cosine, distance / unit, norm / unit) if unit else (cosine, math.nan, math.nan)


def _moments(values: list[tuple[float, float, float]]) -> tuple[float, float, float, float, float]:
    cosines, distances, norms = zip(*values, strict=True)
    return *_mean_and_spread(cosines), *_mean_and_spread(distances), _mean_and_spread(norms)[0]


def _mean_and_spread(values: Iterable[float]) -> tuple[float, float]:
    """Over the batches in which there is a value."""
    there = [value for value in values if not math.isnan(value)]
    if not there:
        return math.nan, math.nan
    return statistics.fmean(there), statistics.stdev(there) if len(there) > 1 else 0.0
