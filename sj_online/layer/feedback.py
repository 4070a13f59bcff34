"""A feedback connection: the last features of a step enter its first layer at the next."""

import torch
from spikingjelly.activation_based import base
from torch import Tensor, nn


class Feedback(base.MemoryModule):
    """Add a connection from the output of ``body`` back to its input, with a delay of one step (OTTT, VGG-F).

    y[t] = body(entry(x[t]) + connection(y[t-1])), without the connection's term at the first step. Another batch size
    starts anew, as with neurons.

    Args:
        entry: the synapse that takes the input.
        body: what follows.
        connection: from the shape of y to the shape of ``entry``'s output.

    Shape:
        As ``entry`` takes and ``body`` gives: ``[N, ...]`` step by step, ``[T, N, ...]`` in multi-step mode, which
        runs the steps one after the other.

    Example:
        >>> net = Feedback(nn.Linear(3, 5), nn.Linear(5, 2), connection=nn.Linear(2, 5))
        >>> y = [net(torch.ones(1, 3)) for _ in range(2)]
        >>> bool((y[0] == y[1]).any())
        False
    """

    paper = "OTTT (Xiao et al. 2022)"
    features: Tensor | None

    def __init__(self, entry: nn.Module, body: nn.Module, connection: nn.Module) -> None:
        super().__init__()
        self.entry = entry
        self.body = body
        self.connection = connection
        self.register_memory("features", None)

    def single_step_forward(self, x: Tensor) -> Tensor:
        """One step, ``[N, ...]``."""
        current = self.entry(x)
        batch = 0 if self.step_mode == "s" else 1
        if self.features is not None and self.features.shape[batch] == current.shape[batch]:
            current = current + self.connection(self.features)
        self.features = self.body(current)
        return self.features

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        """All steps of ``[T, N, ...]``, as sequences of one step."""
        return torch.cat([self.single_step_forward(x) for x in x_seq.split(1)])

    def detach(self) -> None:
        """Cut the graph; not in place, as the host does it, because the features may be a view."""
        if self.features is not None:
            self.features = self.features.detach()
