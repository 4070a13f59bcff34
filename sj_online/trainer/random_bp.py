"""Backward at K random steps only."""

from collections.abc import Iterator
from typing import Unpack

import torch
from torch import nn

from sj_online import check
from sj_online.trainer import parallel
from sj_online.trainer.base import Rule
from sj_online.trainer.options import Signalled


class RandomBP(Rule):
    """SLTT at K of the T steps, drawn anew for each batch; the others run under no_grad (EM-PF, Sec. 4.3; SLTT-K).

    Batch normalisation stays in training mode at every step. SLTT-K is
    ``RandomBP(k=K, step_scale='mean', update='sequence')``.

    Args:
        net: see :class:`~sj_online.trainer.base.Rule`, as the arguments not named here.
        optimizer: see there.
        k: K, at most T.
        generator: of the draws; torch's default one if None. Its state is in :meth:`state_dict`.
        stop_early: leave out the steps after the last one that learns.
        options: see there.

    Example:
        >>> from spikingjelly.activation_based import layer, neuron
        >>> net = nn.Sequential(layer.Linear(8, 4), neuron.LIFNode(), layer.Linear(4, 3))
        >>> rule = RandomBP(net, torch.optim.SGD(net.parameters(), lr=0.1), num_steps=6)
        >>> [len(window.steps) for window in rule.gradients(torch.rand(2, 8), torch.tensor([0, 2]))]
        [1]
    """

    paper = "EM-PF (random back-propagation); SLTT-K (Meng et al. 2023)"
    exact = False
    paper_update = "step"
    paper_step_scale = "sum"
    streams = False

    def __init__(
        self,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        k: int = 1,
        generator: torch.Generator | None = None,
        *,
        stop_early: bool = False,
        **options: Unpack[Signalled],
    ) -> None:
        check.at_least("k", k)
        super().__init__(net, optimizer, generator=generator, **options)
        self.k = k
        self.stop_early = stop_early

    def windows(self, T: int) -> Iterator[tuple[range, bool]]:
        """Single steps, K of which learn."""
        first = self.first(T)
        if self.k > T - first:
            last = f"the last {T - first} of " * (first > 0)
            raise ValueError(f"k={self.k} steps cannot be drawn from {last}T={T}")
        device = self.generator.device if self.generator else "cpu"
        drawn = first + torch.randperm(T - first, generator=self.generator, device=device)
        learning = set(parallel.from_first(drawn)[: self.k].tolist())
        for t in range(max(learning) + 1 if self.stop_early else T):
            yield range(t, t + 1), t in learning
