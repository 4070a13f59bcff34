"""Local losses as a rule of one's own: every layer learns from its own loss, and no error passes between layers.

Two seams: ``Rule.forwards`` changes the network for a sequence, ``Rule.objective`` is what a backward pass starts at.
"""

from collections.abc import Callable
from functools import partial
from typing import Any
from zlib import crc32

import torch
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn

from sj_online.loss import Targets
from sj_online.trainer import Rule
from sj_online.trainer.cut import cut
from sj_online.tree import tree_map


class LocalLosses(Rule):
    """A fixed random readout and a loss behind each layer of neurons, all summed (Mostafa et al. 2018)."""

    paper = "Local losses (Mostafa et al. 2018)"
    exact = False
    exact_in_one_step = False

    def forwards(self) -> dict[nn.Module, Callable[..., Any]]:
        """Neurons that pass their spikes on without a graph."""
        self.spikes: list[tuple[str, Tensor]] = []
        return cut(self.net, lambda name, s: self.spikes.append((name, s)))

    def objective(self, outputs: Any, targets: Targets, steps: range) -> Tensor:
        """The loss of the network, whose last layer alone it reaches, and that of each layer's readout."""
        total = super().objective(outputs, targets, steps)
        for name, s in self.spikes:
            total = total + super().objective(tree_map(partial(readout, name, s), outputs), targets, steps)
        self.spikes.clear()
        return total


def readout(name: str, s: Tensor, like: Tensor) -> Tensor:
    """The spikes of one step through a random matrix, of the shape of the network's output ``[1, N, ...]``."""
    rows = s.reshape(like.shape[1], -1)
    generator = torch.Generator().manual_seed(crc32(name.encode()))  # by name: a resumed run has the same
    B = torch.randn(rows.shape[1], like[0, 0].numel(), generator=generator).to(rows)
    return (rows @ B / rows.shape[1] ** 0.5).view(like.shape)


if __name__ == "__main__":
    net = nn.Sequential(layer.Linear(32, 64), neuron.LIFNode(), layer.Linear(64, 4))
    rule = LocalLosses(net, torch.optim.Adam(net.parameters(), lr=0.01), num_steps=4)
    x, y = 2 * torch.rand(64, 32), torch.randint(4, (64,))
    print([round(rule.train_step(x, y).loss.item(), 3) for _ in range(100)][::20])
