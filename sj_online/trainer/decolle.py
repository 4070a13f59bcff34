"""DECOLLE: a readout and a loss behind each layer, and a graph that ends there."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from sj_online import check, host
from sj_online.frames import Frames
from sj_online.loss import one_hot_smooth_l1, window_loss
from sj_online.neuron.leak import is_neuron
from sj_online.topology import Place
from sj_online.trainer.cut import cut
from sj_online.trainer.options import Common
from sj_online.trainer.readouts import Readouts
from sj_online.trainer.result import Window
from sj_online.trainer.synapse import Trace
from sj_online.trainer.traced import TracedRule
from sj_online.unroll import Unroll


class _Options(Common, total=False):
    update: str | None
    step_scale: str | None
    generator: torch.Generator | None
    trace_decay: Mapping[str, float] | float | None


class DECOLLE(TracedRule):
    r"""Deep continuous local learning (Kaiser et al. 2020): no error passes between layers.

    Behind neuron l a fixed random readout :math:`r_l = G_l s_l`, with G in U(-1, 1) / sqrt(units), has a loss of its
    own at every step, and what goes on to the next layer is detached; the network's own output has its loss too. Each
    layer is propagated before the next one runs, so that memory is that of the largest layer; where a current enters
    several neurons (shortcuts of currents), or blocks hold several, all are at the end of the step. With a presynaptic
    trace (OTTT's, where the authors filter in front of the weights) the gradient of a layer is that of backpropagation
    through time of its own loss, if the reset is detached and nothing recurs.

    Args:
        net: see :class:`~sj_online.trainer.traced.TracedRule`, as the arguments not named here.
        optimizer: see there. Readouts that learn are to be in it.
        readouts: ``'random'``, behind every neuron; or ``{neuron: module}``, where the module makes of the spikes
            ``[N, ...]`` what the loss takes: blocks between those neurons, with heads of their own.
        burn_in: steps at the start of a sequence that do not learn.
        trace: False: of the spikes of the step; or ``{name: False}``.
        options: see there; ``loss_fn`` is of each readout and of the output, :func:`sj_online.loss.one_hot_smooth_l1`
            if it is not given.

    Raises:
        ValueError: an argument out of range, a name that is no neuron's, a network that memopt has treated.

    Example:
        >>> from spikingjelly.activation_based import layer, neuron
        >>> net = nn.Sequential(layer.Linear(8, 4), neuron.LIFNode(), layer.Linear(4, 3))
        >>> rule = DECOLLE(net, torch.optim.Adam(net.parameters()), burn_in=2)
        >>> rule.train_step(torch.rand(6, 2, 8), torch.tensor([0, 2])).output.shape
        torch.Size([2, 3])
    """

    paper = "DECOLLE (Kaiser et al. 2020)"
    exact = False
    exact_in_one_step = False
    takes_feedback = False
    paper_update = "step"
    paper_step_scale = "sum"

    def __init__(
        self,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        readouts: str | Mapping[str, nn.Module] = "random",
        burn_in: int = 0,
        trace: bool | Mapping[str, bool] = True,
        **options: Unpack[_Options],
    ) -> None:
        check.at_least("burn_in", burn_in, 0)
        self.traced = trace is not False
        self.burn_in = burn_in
        options.setdefault("loss_fn", one_hot_smooth_l1)
        super().__init__(net, optimizer, trace=None if isinstance(trace, bool) else trace, **options)
        self.readouts = Readouts(net, readouts, self.generator)

    def synapse(self, place: Place) -> Trace | None:
        """A trace of everything but a readout, which has no memory behind it."""
        return Trace(True, True) if self.traced and place.role != "readout" else None

    def windows(self, T: int) -> Iterator[tuple[range, bool]]:
        """Single steps."""
        if self.burn_in >= T:
            raise ValueError(f"burn_in={self.burn_in} leaves none of the T={T} steps to learn from")
        return super().windows(T)

    def looked(self, frames: Frames) -> None:
        """Place the traces and the readouts."""
        super().looked(frames)
        self.readouts.look(frames)
        own = self.readouts.modules
        every = own is None or own.keys() >= {name for name, module in self.net.named_modules() if is_neuron(module)}
        shared = [name for name, p in self.places.items() if p.role != "readout" and len(p.neurons) > 1]
        self.at_once = every and not shared

    def forwards(self) -> dict[nn.Module, Callable[..., Any]]:
        """The traces, and neurons whose spikes go on detached."""
        return super().forwards() | cut(self.net, self._behind, self.readouts.modules)

    def window(
        self,
        unroll: Unroll,
        steps: range,
        learns: bool,
        scale: float,
        poison: Tensor | float,
        counted: range | None = None,
    ) -> Window:
        """See :meth:`Rule.window`; the layers learn while the step runs."""
        learns = learns and steps.start >= self.burn_in
        self._now = unroll.frames.targets(steps), scale
        self._local: Tensor | float = 0.0
        return super().window(unroll, steps, learns, scale, poison, counted)

    def forward(self, unroll: Unroll, steps: range) -> Any:
        """One step, eager, because compiled code would not stop behind a layer."""
        with torch.compiler.set_stance("force_eager"):
            return super().forward(unroll, steps)

    def _behind(self, name: str, s: Tensor) -> None:
        targets, scale = self._now
        with host.without_modes():  # what runs in here is none of the network's synapses
            loss = window_loss(self.loss_fn, self.readouts(name, s), targets)
            if loss.requires_grad and self.at_once:
                self.backward(loss * scale)
                loss = loss.detach()
        self._local = self._local + loss

    def objective(self, outputs: Any, targets: Any, steps: range) -> Tensor:
        """The loss of the output, and those of the layers, which have been propagated where that could be."""
        return super().objective(outputs, targets, steps) + self._local

    def propagate(self, loss: Tensor) -> None:
        """The backward pass of what is behind the last cut, if anything there learns."""
        if loss.requires_grad:
            super().propagate(loss)

    def state_dict(self) -> dict[str, Any]:
        """With the readouts."""
        return super().state_dict() | {"readouts": self.readouts.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        self.readouts.load_state_dict(state["readouts"])
