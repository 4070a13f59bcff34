"""Online training with a regulariser that pulls the parameters to their running average."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from sj_online.trainer.base import Result, Rule
from sj_online.trainer.options import Common, only


class _Options(Common, total=False):
    step_scale: str | None
    feedback: str | Mapping[str, Tensor]
    generator: torch.Generator | None


class FPTT(Rule):
    r"""Forward propagation through time (Kag & Saligrama 2021; Yin et al. 2023), as sFPTT's code runs it.

    Each step's loss goes back through that step alone, with a regulariser in the place of the past. With the running
    average :math:`\bar\theta` and the multiplier :math:`\lambda` of every parameter :math:`\theta`:

    .. math::
        \theta &\leftarrow \text{step on } \ell_t
            - \langle \lambda, \theta \rangle + \tfrac{\alpha}{2} \|\theta - \bar\theta\|^2, \\
        \lambda &\leftarrow \lambda - \alpha (\theta - \bar\theta), \\
        \bar\theta &\leftarrow (1 - \beta) \bar\theta + \beta \theta - \tfrac{\beta}{\alpha} \lambda,

    and :math:`\theta \leftarrow \bar\theta` when the sequence ends. The loss of the result is without the regulariser.
    The averages belong to :meth:`train_step`; :meth:`gradients` leaves them as they are.

    The averages follow the network: a parameter without ``requires_grad`` is neither averaged nor moved, one that the
    optimizer got later joins, and one that was written to between sequences (weights were loaded) starts anew from what
    was written.

    Args:
        net: see :class:`~sj_online.trainer.base.Rule`, as the arguments not named here.
        optimizer: see there; its parameters are averaged.
        alpha: weight of the regulariser, above 0.
        beta: rate of the running average, in (0, 1].
        options: see there.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> from spikingjelly.activation_based import layer, neuron
        >>> net = nn.Sequential(layer.Linear(8, 4), neuron.LIFNode(), layer.Linear(4, 3))
        >>> rule = FPTT(net, torch.optim.SGD(net.parameters(), lr=0.1), alpha=0.5)
        >>> rule.train_step(torch.rand(6, 2, 8), torch.tensor([0, 2])).output.shape
        torch.Size([2, 3])
    """

    paper = "FPTT (Kag & Saligrama 2021; Yin et al. 2023)"
    exact = False
    paper_update = "step"
    paper_step_scale = "sum"

    def __init__(
        self,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        alpha: float = 0.1,
        beta: float = 0.5,
        **options: Unpack[_Options],
    ) -> None:
        if not alpha > 0:
            raise ValueError(f"alpha={alpha!r} is not above 0")
        if not 0 < beta <= 1:
            raise ValueError(f"beta={beta!r} is not in (0, 1]")
        only(type(self), options, _Options)
        super().__init__(net, optimizer, **options)
        self.alpha = alpha
        self.beta = beta
        self.parameters: list[Tensor] = []
        self.means: list[Tensor] = []
        self.multipliers: list[Tensor] = []
        self.versions: list[int] = []
        self._look()
        self._left(at_means=True)

    def _look(self) -> None:
        """Take the parameters that the optimizer has now; new ones are their own average."""
        held = zip(self.means, self.multipliers, self.versions, strict=True)
        known = dict(zip(map(id, self.parameters), held, strict=True))
        self.parameters = list({id(p): p for group in self.optimizer.param_groups for p in group["params"]}.values())
        now = [known.get(id(p)) or (p.detach().clone(), torch.zeros_like(p), p._version) for p in self.parameters]
        self.means = [mean for mean, _, _ in now]
        self.multipliers = [multiplier for _, multiplier, _ in now]
        self.versions = [version for _, _, version in now]

    def _left(self, *, at_means: bool) -> None:
        """Note how the rule leaves the parameters: at their means, or in the middle of a sequence."""
        self.at_means = at_means
        self.versions = [p._version for p in self.parameters]

    def _follow(self) -> None:
        """Take the optimizer's parameters, and start those anew that something else has written to."""
        self._look()
        for i, (p, mean) in enumerate(zip(self.parameters, self.means, strict=True)):
            # By value where it is known: a checkpoint loaded again is no change, a write through `.data` is one.
            same = torch.equal(p, mean.to(p)) if self.at_means else p._version == self.versions[i]
            self.means[i] = mean.to(p) if same else p.detach().clone()
            self.multipliers[i] = self.multipliers[i].to(p) if same else torch.zeros_like(self.means[i])

    def _trained(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Each parameter that learns, with its average and multiplier."""
        every = zip(self.parameters, self.means, self.multipliers, strict=True)
        return (each for each in every if each[0].requires_grad)

    def penalty(self) -> Tensor | float:
        """The regulariser."""
        terms = [
            self.alpha / 2 * (p - mean).square().sum() - (multiplier * p).sum()
            for p, mean, multiplier in self._trained()
        ]
        return torch.stack(terms).sum() if terms else 0.0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """As of all rules; and the averages fit the network when a sequence begins."""
        self._follow()
        with super().installed():
            yield

    def update_weights(self) -> None:
        """Step the optimizer, then move the multipliers and the averages."""
        super().update_weights()
        with torch.no_grad():
            for p, mean, multiplier in self._trained():
                multiplier -= self.alpha * (p - mean)
                mean += self.beta * (p - mean) - self.beta / self.alpha * multiplier
        self._left(at_means=False)

    def train_step(self, x: Tensor, y: Any, mask: Tensor | None = None) -> Result:
        """Train on one batch, and end at the averages; see :meth:`Rule.train_step`."""
        result = super().train_step(x, y, mask)
        with torch.no_grad():
            for p, mean, _ in self._trained():
                p.copy_(mean)
        self._left(at_means=True)
        return result

    def state_dict(self) -> dict[str, Any]:
        """The averages and multipliers, in the order of the optimizer's parameters."""
        self._look()
        own = {"means": self.means, "multipliers": self.multipliers, "at_means": self.at_means}
        return super().state_dict() | own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave.

        Raises:
            ValueError: it is of other parameters.
        """
        self._look()
        shapes = [p.shape for p in self.parameters]
        for name in ("means", "multipliers"):
            if [value.shape for value in state[name]] != shapes:
                raise ValueError(
                    f"state[{name!r}] does not fit the shapes of the {len(shapes)} parameters trained here"
                )
        for name in ("means", "multipliers"):
            for own, value in zip(getattr(self, name), state[name], strict=True):
                own.copy_(value)
        self._left(at_means=state.get("at_means", True))
        super().load_state_dict(state)
