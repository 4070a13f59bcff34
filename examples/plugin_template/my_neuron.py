"""A neuron of my own: LIF with a soft reset."""

from spikingjelly.activation_based import surrogate
from torch import Tensor

from sj_online.neuron import OnlineNode


class MyNode(OnlineNode):
    """Leaky integration: m = decay v + x; s = H(m - 1); v = m - s.

    Args:
        decay: leak.
        temporal_grad: False: the state enters each step detached.
        step_mode: ``'s'``: x [N, ...]; ``'m'``: x [T, N, ...].
        backend: ``'torch'``, or ``'auto'``, which is the same here.
        store_v_seq: keep the membrane potentials as ``v_seq`` [T, N, ...].
    """

    paper = "mine"

    def __init__(
        self,
        *,
        decay: float = 0.5,
        temporal_grad: bool = True,
        step_mode: str = "s",
        backend: str = "torch",
        store_v_seq: bool = False,
    ) -> None:
        super().__init__(
            None,
            memories={"v": 0.0},
            v_threshold=1.0,
            surrogate_function=surrogate.Sigmoid(),
            temporal_grad=temporal_grad,
            step_mode=step_mode,
            backend=backend,
            store_v_seq=store_v_seq,
        )
        self.decay = decay

    @property
    def supported_backends(self) -> tuple[str, ...]:
        """No kernel."""
        return ("torch", "auto")

    def leak(self, t: int) -> float:
        """For a presynaptic trace."""
        return self.decay

    def step(self, x: Tensor, states: tuple[Tensor, ...], t: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Spikes and new states of one step; x and v [N, ...]. Sequences, and the cut in time, follow from it."""
        (v,) = states
        m = self.decay * v + x
        s = self.surrogate_function(m - self.v_threshold)
        return s, (m - s,)
