"""S-TLLR as a rule of one's own: OTTT with a second term, of what a neuron did before (Apolinario & Roy 2025).

The gradient of a weight is alpha_post (delta Y[t-1]) x[t]^T + alpha_pre (delta psi) X[t]^T, with delta the gradient of
the spikes and the traces X[t] = lambda_pre X[t-1] + x[t] and Y[t] = lambda_post Y[t-1] + psi[t]. The first term is a
backward pass of its own from each neuron's current to the weights behind which it stands, so that norms and pooling may
stand between. A signal at the last steps alone is ``learn_last=k``, direct feedback ``feedback='random'``.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sj_online.neuron.leak import is_neuron
from sj_online.topology import Place
from sj_online.trainer import TracedRule
from sj_online.trainer.derivatives import Derivatives, Local
from sj_online.trainer.synapse import Trace


class Pre(Trace):
    """The trace X, and in a backward pass of the second term the input x itself."""

    def __init__(self, rule: "STLLR") -> None:
        super().__init__()
        self.rule = rule

    def add(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        self.x = s.detach()
        return super().add(s)

    def gradients(self, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        if self.rule.post:
            return None, self.call.grad_weight(grad_output, self.x), None
        dW, alpha = self.call.grad_weight(grad_output), self.rule.alpha_pre
        return self.call.grad_input(grad_output), None if dW is None else alpha * dW, self.call.grad_bias(grad_output)


class STLLR(TracedRule):
    """Arguments as of TracedRule; lambda_pre=None: the leak of the neuron behind a synapse."""

    paper = "S-TLLR (Apolinario & Roy 2025)"
    exact = False
    paper_step_scale = "sum"
    post = False

    def __init__(
        self, net: nn.Module, optimizer: torch.optim.Optimizer, *, lambda_post: float = 0.2,
        lambda_pre: float | None = 0.75, alpha_post: float = -1.0, alpha_pre: float = 1.0, **options: Any,
    ) -> None:  # fmt: skip
        self.lambda_post, self.alpha_post, self.alpha_pre = lambda_post, alpha_post, alpha_pre
        super().__init__(net, optimizer, **({"trace_decay": lambda_pre} if lambda_pre is not None else {}) | options)

    def synapse(self, place: Place) -> Trace | None:
        return None if place.role == "readout" else Pre(self)

    def forwards(self) -> dict[nn.Module, Callable[..., Any]]:
        nodes = {name: module for name, module in self.net.named_modules() if is_neuron(module)}
        return super().forwards() | {node: self._post(name, node) for name, node in nodes.items()}

    def _post(self, name: str, node: nn.Module) -> Callable[[Tensor], Tensor]:
        local, Y = Local(name, node), 0.0
        behind = [each for each in self.traces if name in self.places[each].neurons]
        weights = [W for each in behind if (W := self._weight(each)) is not None and W.requires_grad]

        def each(x: Tensor, s: Tensor, derivatives: Derivatives) -> Tensor:
            nonlocal Y
            before, Y = Y, self.lambda_post * Y + derivatives.spike["x"]
            return _Fires.apply(s, x, derivatives.spike["x"], self, x, before, weights)

        return lambda x: local.run(x, each)


class _Fires(torch.autograd.Function):
    """Spikes with the surrogate derivative psi; their gradient delta also goes, times Y, to the weights before."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, x: Tensor, psi: Tensor, *more: Any) -> Tensor:
        ctx.save_for_backward(psi)
        ctx.more = more
        return s.view_as(s)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:
        rule, x, Y, weights = ctx.more
        if rule.alpha_post and isinstance(Y, Tensor) and weights:
            rule.post = True
            with torch.enable_grad():
                torch.autograd.backward(x, rule.alpha_post * delta * Y, retain_graph=True, inputs=weights)
            rule.post = False
        return None, delta * ctx.saved_tensors[0], *[None] * (len(ctx.more) + 1)
