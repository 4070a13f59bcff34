"""Each step's loss through the last k steps, with their states and the weights of the present."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Unpack

import torch
from torch import nn

from sj_online import check, host
from sj_online.frames import Frames
from sj_online.trainer.base import Rule
from sj_online.trainer.horizon import History, check_replay
from sj_online.trainer.options import Options
from sj_online.unroll import Unroll


class STOL(Rule):
    r"""Spatio-temporal online learning: each loss goes back through its step and the one before (STOL, Alg. 1).

    With :math:`u` and :math:`s` as they were, the present weights :math:`w`, and :math:`\theta = H'(u - V_{th})`:

    .. math::
        \delta_t^l &= (w^{l+1})^T \delta_t^{l+1} \theta_t^l, \\
        \delta_{t-1}^l &= (w^{l+1})^T \delta_{t-1}^{l+1} \theta_{t-1}^l
            + \delta_t^l \, \partial u_t^l / \partial u_{t-1}^l, \\
        \nabla w^l &= \delta_t^l (s_t^{l-1})^T + \delta_{t-1}^l (s_{t-1}^{l-1})^T.

    The readout of step t - 1 has no loss. With ``horizon=T`` and ``update='sequence'`` this is backpropagation through
    time of the summed loss; with ``horizon=1`` it is SLTT. It needs no special neuron: a step that is run again gives
    every neuron the current that it had then (a neuron's own learnable parameters are those of the present), the random
    numbers too, and what the network keeps is afterwards as if it had run once. For that the random generators of the
    process (torch's, Python's, NumPy's) are put back and forth. Recorders, which see such a step too, may ask
    :func:`sj_online.trainer.replaying`. Once per network it is checked that all this changes nothing.

    Args:
        net: see :class:`~sj_online.trainer.base.Rule`, as the arguments not named here.
        optimizer: see there.
        horizon: k, the number of steps in one graph.
        first_history: the authors' code runs a history of zero input before the first step, which gives biases and
            batch normalisation a gradient that belongs to no step; True for that.
        history_statistics: their batch normalisation counts every step twice into its running statistics; True for
            that.
        spatial_history: False for their ablation without spatial history: the past reaches a layer through the
            potentials of its own neurons only.
        options: see there.

    Raises:
        ValueError: an argument out of range, a network that the host's ``memopt`` has wrapped, or, at the first step,
            one whose state cannot be put back.

    Example:
        >>> from spikingjelly.activation_based import layer, neuron
        >>> net = nn.Sequential(layer.Linear(8, 4), neuron.LIFNode(), layer.Linear(4, 3))
        >>> rule = STOL(net, torch.optim.SGD(net.parameters(), lr=0.1))
        >>> rule.train_step(torch.rand(6, 2, 8), torch.tensor([0, 2])).output.shape
        torch.Size([2, 3])
    """

    paper = "STOL (Xue et al.)"
    exact = False
    takes_feedback = False
    paper_update = "step"
    paper_step_scale = "sum"

    def __init__(
        self,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        horizon: int = 2,
        *,
        first_history: bool = False,
        history_statistics: bool = False,
        spatial_history: bool = True,
        **options: Unpack[Options],
    ) -> None:
        check.at_least("horizon", horizon)
        self.horizon = self.k = horizon
        super().__init__(net, optimizer, **options)
        self._check_recomputation()
        self.first_history = first_history
        self.history_statistics = history_statistics
        self.spatial_history = spatial_history

    def looked(self, frames: Frames) -> None:
        """Check that the network can be run again as it was."""
        self._check_recomputation()
        if self.k > 1:
            check_replay(self._made, frames)

    def _check_recomputation(self) -> None:
        for name, module in self.net.named_modules():
            if isinstance(module, host.CHECKPOINTED):
                raise ValueError(
                    f"{name!r} is run again in backward (memopt), where STOL cannot give it its past currents"
                )

    def _made(self) -> History:
        return History(
            self.net,
            self.k - 1,
            first=self.first_history,
            statistics=self.history_statistics,
            spatial=self.spatial_history,
        )

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The steps that are kept live as long as the sequence."""
        self._history = self._made()
        try:
            yield
        finally:
            self._history.end()
            del self._history

    def forward(self, unroll: Unroll, steps: range) -> Any:
        """The step, and in its graph those before it."""
        return self._history.run(unroll, steps)
