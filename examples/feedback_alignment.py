"""Feedback alignment as a rule of one's own: errors go back through fixed random matrices, not through the weights.

    python examples/feedback_alignment.py

An example of two seams: ``TracedRule.synapse`` says which trace a synapse keeps, ``Trace.gradients`` what its gradients
are made of.
"""

from zlib import crc32

import torch
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn

from sj_online.topology import Place
from sj_online.trainer import TracedRule
from sj_online.trainer.synapse import Trace


class RandomFeedback(Trace):
    """A presynaptic trace as OTTT has it, and a random matrix B in the place of W for the gradient of the input."""

    B: Tensor | None = None

    def gradients(self, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """As of the parent, but for the gradient of the input."""
        if self.B is None:
            # Seeded by the name of the synapse: a resumed run has the same matrix, and nothing to save.
            generator = torch.Generator().manual_seed(crc32(self.name.encode()))
            shape = self.call.weight.shape
            self.B = torch.randn(shape, generator=generator).to(self.call.weight) / shape[1:].numel() ** 0.5
        call = self.call
        return call.grad_input(grad_output, self.B), call.grad_weight(grad_output), call.grad_bias(grad_output)


class FeedbackAlignment(TracedRule):
    """OTTT with random feedback (Lillicrap et al. 2016). Arguments as of :class:`~sj_online.trainer.TracedRule`."""

    paper = "Feedback alignment (Lillicrap et al. 2016)"
    exact = False
    exact_in_one_step = False

    def synapse(self, place: Place) -> Trace | None:
        """Random feedback wherever there is something to send an error to."""
        return None if place.role == "input" else RandomFeedback()


def main() -> None:
    """Learn random patterns."""
    torch.manual_seed(0)
    net = nn.Sequential(layer.Linear(32, 64), neuron.LIFNode(), layer.Linear(64, 4))
    rule = FeedbackAlignment(net, torch.optim.Adam(net.parameters(), lr=0.01), num_steps=4)
    x, y = 2 * torch.rand(64, 32), torch.randint(4, (64,))
    for step in range(101):
        result = rule.train_step(x, y)
        if step % 20 == 0:
            print(f"step {step:3}  loss {result.loss:.3f}")
    print(rule)


if __name__ == "__main__":
    main()
