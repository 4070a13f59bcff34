"""Online training with a regulariser that pulls the parameters to their running average."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sj_online.loss import Loss
from sj_online.trainer.base import Result, Rule


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

    Args:
        net: see :class:`~sj_online.trainer.base.Rule`, as the arguments not named here.
        optimizer: see there; its parameters are averaged.
        alpha: weight of the regulariser, above 0.
        beta: rate of the running average, in (0, 1].

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

    def __init__(
        self,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        alpha: float = 0.1,
        beta: float = 0.5,
        *,
        loss_fn: Loss = F.cross_entropy,
        num_steps: int | None = None,
        step_scale: str = "sum",
        backward: Callable[[Tensor], None] | None = None,
        before_step: Callable[[], bool | None] | None = None,
    ) -> None:
        if not alpha > 0:
            raise ValueError(f"alpha={alpha!r} is not above 0")
        if not 0 < beta <= 1:
            raise ValueError(f"beta={beta!r} is not in (0, 1]")
        super().__init__(
            net,
            optimizer,
            loss_fn=loss_fn,
            num_steps=num_steps,
            update="step",
            step_scale=step_scale,
            backward=backward,
            before_step=before_step,
        )
        self.alpha = alpha
        self.beta = beta
        self.parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        self.means = [p.detach().clone() for p in self.parameters]
        self.multipliers = [torch.zeros_like(p) for p in self.means]

    def penalty(self) -> Tensor:
        """The regulariser."""
        terms = [
            self.alpha / 2 * (p - mean).square().sum() - (multiplier * p).sum()
            for p, mean, multiplier in zip(self.parameters, self.means, self.multipliers, strict=True)
        ]
        return torch.stack(terms).sum()

    def step(self) -> None:
        """Step the optimizer, then move the multipliers and the averages."""
        super().step()
        with torch.no_grad():
            for p, mean, multiplier in zip(self.parameters, self.means, self.multipliers, strict=True):
                multiplier -= self.alpha * (p - mean)
                mean += self.beta * (p - mean) - self.beta / self.alpha * multiplier

    def train_step(self, x: Tensor, y: Tensor) -> Result:
        """Train on one batch, and end at the averages; see :meth:`Rule.train_step`."""
        result = super().train_step(x, y)
        with torch.no_grad():
            for p, mean in zip(self.parameters, self.means, strict=True):
                p.copy_(mean)
        return result

    def state_dict(self) -> dict[str, Any]:
        """The averages and multipliers, in the order of the optimizer's parameters."""
        return {"means": self.means, "multipliers": self.multipliers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave.

        Raises:
            ValueError: it is of other parameters.
        """
        shapes = [p.shape for p in self.parameters]
        for name in ("means", "multipliers"):
            if [value.shape for value in state[name]] != shapes:
                raise ValueError(
                    f"state[{name!r}] does not fit the shapes of the {len(shapes)} parameters trained here"
                )
            for own, value in zip(getattr(self, name), state[name], strict=True):
                own.copy_(value)
