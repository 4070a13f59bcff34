"""BSO and T-BSO: binary weights that an optimizer moves by flipping signs."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sj_online import check
from sj_online.layer.quantized import Quantized
from sj_online.optim.groups import param_groups
from sj_online.registry import cite

EPS = 1e-10


def binary_parameters(net: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The weights of the binary layers of a network, and all its other parameters.

    Example:
        >>> from sj_online.layer import BinaryLinear
        >>> [len(part) for part in binary_parameters(nn.Sequential(nn.Linear(3, 4), BinaryLinear(4, 2)))]
        [1, 2]
    """
    layers = (module for module in net.modules() if isinstance(module, Quantized) and module.bits == 1)
    binary = {id(module.weight): module.weight for module in layers}
    return list(binary.values()), [p for p in net.parameters() if id(p) not in binary]


class BSO(torch.optim.Optimizer):
    r"""Binary spiking optimizer (Liang et al. 2025): weights of +-1 without latent weights, and its temporal form.

    Of a weight w with gradient g, at every update:

    .. math::
        m &\leftarrow (1 - \beta_1) m + \beta_1 g, \\
        \text{BSO:} \quad w &\leftarrow -w, \; m \leftarrow 0 \quad \text{where } w m > \gamma, \\
        \text{T-BSO:} \quad v_t &\leftarrow (1 - \beta_2) v_t + \beta_2 \, \mathrm{mean}(g^2), \quad
            w \leftarrow -w \quad \text{where } w m > \gamma (\sqrt{v_t} + \epsilon),

    with one number :math:`v_t` for each tensor and time step.

    What it is: as w is +-1, the test is ``w = -sign(m)`` with a hysteresis of :math:`\gamma`. In T-BSO, for
    :math:`\gamma \to 0`, m is minus the latent weight of plain SGD with learning rate :math:`\beta_1` and weight decay
    1, so there is a float for each weight: the momentum. The published :math:`\gamma` = 5e-7 holds back a few weights
    in a million; it begins to matter from 0.01 on (T-BSO). What is saved is the second float of latent weights with
    momentum: 4 bytes a weight of state in the place of 8.

    The learning rate of the binary weights, 1 at first, is a factor of :math:`\beta_1` and :math:`\gamma`: a schedule
    anneals both, as the authors do.

    Args:
        params: the binary weights, see :func:`binary_parameters`. They become signs (0 becomes +1; where a tensor has
            but one sign, as new binary layers have, those of the distances from its mean).
        threshold: gamma, above 0.
        beta1: rate of m, in (0, 1].
        beta2: rate of v, in (0, 1].
        num_steps: T-BSO for T updates a sequence (``update='step'``; 1 with ``update='sequence'``); None: BSO.
        rest: the optimizer of all other parameters; stepped, scheduled and saved with this one.

    Raises:
        ValueError: an argument out of range, weight decay, or, at a step, weights that are not +-1 any more.

    Example:
        >>> from sj_online.layer import BinaryLinear
        >>> net = nn.Sequential(BinaryLinear(2, 1), nn.Linear(1, 1))
        >>> binary, rest = binary_parameters(net)
        >>> opt = BSO(binary, threshold=0.1, beta1=1.0, rest=torch.optim.SGD(rest, lr=0.1))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.copy_(torch.tensor([[1.0, -1.0]]))
        >>> net[0].weight.grad = torch.tensor([[0.2, 0.2]])
        >>> opt.step()
        >>> net[0].weight.tolist()
        [[-1.0, -1.0]]
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        threshold: float = 5e-7,
        beta1: float = 1e-3,
        beta2: float = 1e-5,
        num_steps: int | None = None,
        rest: torch.optim.Optimizer | None = None,
    ) -> None:
        if not threshold > 0:
            raise ValueError(f"threshold={threshold!r} is not above 0")
        for name, value in (("beta1", beta1), ("beta2", beta2)):
            if not 0 < value <= 1:
                raise ValueError(f"{name}={value!r} is not in (0, 1]")
        check.at_least_or_none("num_steps", num_steps)
        defaults = {"lr": 1.0, "threshold": threshold, "beta1": beta1, "beta2": beta2, "updates": 0}
        self.num_steps = num_steps
        self.rest: torch.optim.Optimizer | None = None
        super().__init__(params, defaults)
        self.own = len(self.param_groups)
        for group in self.param_groups:
            if group.get("weight_decay"):
                raise ValueError(f"weight_decay={group['weight_decay']!r} of binary weights, which it cannot move")
            for p in group["params"]:
                _to_signs(p)
        if rest is not None:
            self.state.update(rest.state)
            self.param_groups += rest.param_groups
            self.rest = rest
            self._share()

    def _share(self) -> None:
        """Groups and state are one with those of the other optimizer, so that schedules and checkpoints have both."""
        if self.rest is not None:
            self.rest.state, self.rest.param_groups = self.state, self.param_groups[self.own :]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters that are not binary, to the other optimizer; before it is there, binary ones."""
        if self.rest is None:
            super().add_param_group(param_group)
            return
        self.rest.add_param_group(param_group)
        self.param_groups.append(self.rest.param_groups[-1])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave, of both optimizers."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Flip what is to be flipped, and step the other optimizer."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups[: self.own]:
            for p in group["params"]:
                if p.grad is not None and group["lr"] > 0:
                    self._flip(p, group)
            group["updates"] += 1
        if self.rest is not None:
            self.rest.step()
        return loss

    def _flip(self, w: Tensor, group: dict[str, Any]) -> None:
        if bool((w.abs() != 1).any()):
            raise ValueError(f"a binary weight of shape {tuple(w.shape)} is not +-1 any more: something wrote to it")
        state, g = self.state[w], w.grad
        assert g is not None
        m = state.setdefault("m", torch.zeros_like(w))
        m.lerp_(g, group["lr"] * group["beta1"])
        gamma: Tensor | float = group["lr"] * group["threshold"]
        if self.num_steps is not None:
            v = state.setdefault("v", w.new_zeros(self.num_steps))[group["updates"] % self.num_steps]
            v.lerp_(g.square().mean(), group["beta2"])
            gamma = gamma * (v.sqrt() + EPS)
        flips = w * m > gamma
        w.copy_(torch.where(flips, -w, w))
        if self.num_steps is None:
            m.masked_fill_(flips, 0.0)


@torch.no_grad()
def _to_signs(w: Tensor) -> None:
    one_sign = bool((w > 0).all() or (w < 0).all()) and bool((w != w.flatten()[0]).any())
    w.copy_(torch.where((w - w.mean() if one_sign else w) < 0, -1.0, 1.0))


@cite("BSO (Liang et al. 2025)")
def bso(
    net: nn.Module,
    *,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    threshold: float = 5e-7,
    beta1: float = 1e-3,
    beta2: float = 1e-5,
    num_steps: int | None = None,
) -> BSO:
    """:class:`BSO` for the binary weights of a network, and SGD for all its others; what recipes name.

    Args:
        net: the network.
        lr: of SGD.
        momentum: of SGD.
        weight_decay: of SGD; it spares the neurons.
        threshold: see :class:`BSO`, as the others.
        beta1: see there.
        beta2: see there.
        num_steps: see there.

    Raises:
        ValueError: the network has no binary layer.
    """
    binary, _ = binary_parameters(net)
    if not binary:
        raise ValueError("bso needs a network with binary layers (BinaryConv2d, BinaryLinear), and this one has none")
    known = {id(p) for p in binary}
    groups = [
        group | {"params": [p for p in group["params"] if id(p) not in known]}
        for group in param_groups(net, weight_decay)
    ]
    rest = torch.optim.SGD(groups, lr=lr, momentum=momentum)
    return BSO(binary, threshold=threshold, beta1=beta1, beta2=beta2, num_steps=num_steps, rest=rest)
