"""Rate-based backpropagation: one backward pass on rates, whatever the number of steps."""

from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from sj_online import host
from sj_online.frames import Frames
from sj_online.install import replaced_forwards
from sj_online.loss import Targets
from sj_online.neuron.leak import is_neuron
from sj_online.prediction import mixing
from sj_online.topology import find
from sj_online.trainer.base import Rule
from sj_online.trainer.inspection import check_network
from sj_online.trainer.options import Common, only
from sj_online.trainer.rates import TwoPasses
from sj_online.tree import tree_map
from sj_online.unroll import Unroll


class _Options(Common, total=False):
    step_scale: str | None


class RateBP(Rule):
    """Rate-based backpropagation (Yu et al. 2024): T steps without a graph, then one step of rates with one backward.

    The first pass keeps of every neuron its rate r and E, the mean over the steps of ds[t]/dc for a current c shifted
    at all steps; the second runs the network on rates, each neuron giving r with the derivative E, see
    :mod:`sj_online.trainer.rates`. Memory is that of one step and two numbers a neuron for any T, and there is one
    backward pass. The loss is that of the one output, which is the mean output where what follows the last neurons is
    linear. Equal to BPTT of that loss for one hidden layer and a static input (soft reset, detached), and for T = 1;
    never for streams, as nothing can be learnt before the last step. Batch norm of either step mode is as in the
    paper's multi-step mode; the released single-step mode uses the last step's statistics and input.

    Args:
        net: see :class:`~sj_online.trainer.base.Rule`, as the arguments not named here.
        optimizer: see there.
        options: see there; ``step_scale='mean'`` divides the gradient by T, as the authors do, ``'sum'`` does not.

    Raises:
        ValueError: at the first step, a layer that it cannot run: recurrent or stateful, dropout that draws at each
            step, neurons that are not elementwise, that learn parameters of their own, or that memopt runs again.

    Example:
        >>> from spikingjelly.activation_based import layer, neuron
        >>> net = nn.Sequential(layer.Linear(8, 4), neuron.LIFNode(), layer.Linear(4, 3))
        >>> rule = RateBP(net, torch.optim.SGD(net.parameters(), lr=0.1), num_steps=6)
        >>> rule.train_step(torch.rand(2, 8), torch.tensor([0, 2])).output.shape
        torch.Size([2, 3])
    """

    paper = "Rate-based backpropagation (Yu et al. 2024)"
    exact = False
    takes_feedback = False
    streams = False
    stride = None

    def __init__(self, net: nn.Module, optimizer: torch.optim.Optimizer, **options: Unpack[_Options]) -> None:
        only(type(self), options, _Options)
        super().__init__(net, optimizer, **options)
        if self.per_step_targets:
            raise ValueError("per_step_targets=True, but RateBP has one output for all steps")
        check_network(net, 1, 1)

    def looked(self, frames: Frames) -> None:
        """Refuse what has no rate, by name."""
        check_network(self.net, 1, 1)
        self.neurons = {name: module for name, module in self.net.named_modules() if is_neuron(module)}
        for name, module in self.net.named_modules():
            if why := self._why_not(module):
                raise ValueError(f"{host.shown(name)!r} ({type(module).__name__}) {why}: RateBP cannot run it")
        if (name := mixing(self.net, frames, 1)) is not None:
            raise ValueError(f"{name!r} mixes the steps of a sequence: RateBP cannot run it on rates")
        for name, place in find(self.net, frames.first(2), 1).places.items():
            if place.role == "feedback":
                raise ValueError(f"{name!r} takes what comes from the step before: RateBP has no recurrent rates")

    def _why_not(self, module: nn.Module) -> str:
        if isinstance(module, host.CHECKPOINTED):
            return "is run again in backward (memopt)"
        if is_neuron(module):
            learns = any(p.requires_grad for p in module.parameters())
            return "learns parameters of its own, which a rate does not reach (requires_grad_(False))" * learns
        if isinstance(module, _DropoutNd) and module.p > 0 and module.training:
            return "draws at each step (the host's layer.Dropout keeps its mask)"
        kept = set(host.memories(module)) - {"mask"}
        return f"keeps {min(kept)!r} from step to step" if kept else ""

    def scale(self, k: int, T: int) -> float:
        """The one loss, over T steps as the authors' code has it."""
        return 1 / T if self.step_scale == "mean" else 1.0

    def forward(self, unroll: Unroll, steps: range) -> Any:
        """Both passes; the one output, for each of the steps."""
        first = self.first(len(steps))
        passes = TwoPasses(self.net, self.neurons, len(steps), first)
        with torch.compiler.set_stance("force_eager"):
            with torch.no_grad(), replaced_forwards(passes.forwards(second=False)):
                for window in [steps] if unroll.mode == "m" else [range(t, t + 1) for t in steps]:
                    unroll(window)
            x = unroll.frames.window(range(first, steps.stop))
            x = x.mean(0, dtype=None if x.is_floating_point() else torch.get_default_dtype())
            with replaced_forwards(passes.forwards(second=True)):
                outputs = Unroll(self.net, Frames(x, num_steps=1))(range(1))
        return tree_map(lambda output: output.expand(len(steps), *output.shape[1:]), outputs)

    def objective(self, outputs: Any, targets: Targets, steps: range) -> Tensor:
        """The loss of the one output."""
        mask = targets.mask
        if mask is not None and bool((mask.bool() != mask[0].bool()).any()):
            raise ValueError("a mask that differs from step to step, but RateBP has one output for all steps")
        one = Targets(targets.each[:1], None if mask is None else mask[:1])
        return super().objective(tree_map(lambda output: output[:1], outputs), one, steps[:1])
