"""A network in two passes: all steps without a graph, which keeps means, and one step of those means with a graph."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sj_online import host
from sj_online.trainer.derivatives import Derivatives, Local, Sloped


class RateNeuron:
    """A neuron in the first pass, and its rate in the second.

    With a current c shifted by the same amount at every step so far, e[t] = du[t] / dc, the first pass keeps the means
    over the steps of s[t] and of ds[t] / dc = H'(u[t]) e[t], whatever the neuron's equation. The second gives
    r + E (c - c.detach()).

    Args:
        name: of the neuron.
        node: the neuron.
        steps: T.
        skip: the first steps, which the means leave out.
    """

    def __init__(self, name: str, node: nn.Module, steps: int, skip: int) -> None:
        self.local = Local(name, node)
        self.steps = steps
        self.skip = skip
        self.t = 0
        self.tangents: dict[str, Tensor] = {}
        self.r: Tensor | float = 0.0
        self.E: Tensor | float = 0.0

    def first(self, x: Tensor) -> Tensor:
        """The spikes of the steps of x."""
        return self.local.run(x, self._step)

    def _step(self, x: Tensor, s: Tensor, derivatives: Derivatives) -> Tensor:
        ds, self.tangents = derivatives.push({"x": 1.0, **self.tangents})
        if self.t >= self.skip:
            dtype = torch.promote_types(s.dtype, torch.float32)
            self.r, self.E = self.r + s.to(dtype), self.E + ds.to(dtype)
        self.t += 1
        return s

    def second(self, c: Tensor) -> Tensor:
        """The rate, with the derivative E."""
        if self.t != self.steps or not isinstance(self.r, Tensor) or not isinstance(self.E, Tensor):
            raise ValueError(f"{self.local.name!r} does not run once in every step, so that it has no rate")
        r, E = ((total / (self.t - self.skip)).to(c.dtype).view_as(c) for total in (self.r, self.E))
        return Sloped.apply(r, c, E)


class RateNorm(TorchFunctionMode):
    r"""A batch norm in the first pass, and with the statistics of that in the second.

    With the statistics of the calls of the first pass, one for all steps or one for each, and x the rates:

    .. math::
        y = \gamma (x - \hat\mu) / \sqrt{\hat v + \epsilon} + \beta, \quad
        \mu = \mathrm{mean}_t \, \mu_t, \quad 1 / (v + \epsilon) = \mathrm{mean}_t \, 1 / (v_t + \epsilon),

    where :math:`\hat\mu` and :math:`\hat v` have these values and the gradients of the mean and variance of x.
    """

    def __init__(self, norm: nn.Module, steps: int, skip: int) -> None:
        super().__init__()
        self.norm: Any = norm
        self.steps = steps
        self.skip = skip
        self.rates = False
        self.seen: list[tuple[Tensor, Tensor]] = []

    def first(self, inner: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The norm as it is."""
        with self:
            return inner(x)

    def second(self, inner: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Of rates; what the norm counts and keeps is not touched."""
        counted = self.norm.num_batches_tracked
        before = None if counted is None else counted.clone()
        self.rates = True
        with self:
            y = inner(x)
        if counted is not None:
            counted.copy_(before)
        return y

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.batch_norm:
            return func(*args, **(kwargs or {}))
        return self._batch_norm(*args, **(kwargs or {}))

    def _batch_norm(
        self, x: Tensor, mean: Any, var: Any, weight: Any, bias: Any, training: bool, momentum: float, eps: float
    ) -> Tensor:
        if not training:
            return F.batch_norm(x, mean, var, weight, bias, training, momentum, eps)
        axes = [axis for axis in range(x.dim()) if axis != 1]
        if not self.rates:
            v, mu = torch.var_mean(x, axes, correction=0, keepdim=True)
            self.seen.append((mu, 1 / (v + eps)))
            return F.batch_norm(x, mean, var, weight, bias, training, momentum, eps)
        last = self.seen[self.skip :] if len(self.seen) == self.steps else self.seen
        mu, inverse = (torch.stack(each).mean(0) for each in zip(*last, strict=True))
        of_rates = x.mean(axes, keepdim=True)
        d = x - (mu + (of_rates - of_rates.detach()))
        spread = d.square().mean(axes, keepdim=True)
        scale = (1 / inverse + (spread - spread.detach())).rsqrt()
        y = d * (scale if weight is None else scale * weight.view(mu.shape))  # d is all that is saved of its size
        return (y if bias is None else y + bias.view(mu.shape)).to(x.dtype)


class TwoPasses:
    """What stands in a network for both passes.

    Args:
        net: the network.
        nodes: its neurons by name.
        steps: T.
        skip: the first steps, which the means leave out.
    """

    def __init__(self, net: nn.Module, nodes: dict[str, nn.Module], steps: int, skip: int) -> None:
        self.neurons = {node: RateNeuron(name, node, steps, skip) for name, node in nodes.items()}
        norms = [module for module in net.modules() if isinstance(module, host.BATCH_NORMS)]
        self.norms = {norm: RateNorm(norm, steps, skip) for norm in norms}
        self.inner = {norm: norm.forward for norm in norms}

    def forwards(self, second: bool) -> dict[nn.Module, Callable[..., Any]]:
        """Those of one of the passes."""
        made: dict[nn.Module, Callable[..., Any]] = {
            node: each.second if second else each.first for node, each in self.neurons.items()
        }
        for norm, each in self.norms.items():
            made[norm] = _with(each.second if second else each.first, self.inner[norm])
        return made


def _with(pass_of: Callable[..., Tensor], inner: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: pass_of(inner, x)
