"""Maps that are linear in their input, with the gradients of input, weight and bias apart from each other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

Needs = tuple[bool, bool, bool]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class Linear:
    """y = s W^T + b."""

    def forward(self, s: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        """See the class."""
        return torch.ops.aten.linear(s, W, b)  # F.linear would go to the mode that sent it here

    def gradients(self, g: Tensor, a: Tensor, W: Tensor, needs: Needs) -> Gradients:
        """Of s, W and b, from that of y and what stands for s in the weight's."""
        rows = g.flatten(0, -2)
        ds = g @ W if needs[0] else None
        dW = rows.t() @ a.flatten(0, -2) if needs[1] else None
        return ds, dW, rows.sum(0) if needs[2] else None


@dataclass(frozen=True)
class Conv:
    """A convolution, or a transposed one, of any number of axes."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool = False
    output_padding: tuple[int, ...] = (0,)

    def _how(self) -> tuple[Any, ...]:
        return self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups

    def forward(self, s: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        """See the class."""
        return torch.convolution(s, W, b, *self._how())

    def gradients(self, g: Tensor, a: Tensor, W: Tensor, needs: Needs) -> Gradients:
        """See :meth:`Linear.gradients`."""
        # The gradient of the input does not depend on the input: with the trace in its place all three are right.
        channels = W.shape[1] * self.groups if self.transposed else W.shape[0]
        return torch.ops.aten.convolution_backward(g, a, W, [channels], *self._how(), list(needs))


@dataclass(frozen=True)
class Bilinear:
    """Any product of the input and the weight, ``fn(s, W)``."""

    fn: Callable[[Tensor, Tensor], Tensor]

    def forward(self, s: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        """See the class."""
        return self.fn(s, W)

    def gradients(self, g: Tensor, a: Tensor, W: Tensor, needs: Needs) -> Gradients:
        """See :meth:`Linear.gradients`."""
        with torch.enable_grad():
            pair = [each.detach().requires_grad_() for each in (a, W)]
            ds, dW = torch.autograd.grad(self.fn(*pair), pair, g)
        return ds, dW, None


class Traced(Function):
    """A linear map whose weight gradient is made of a trace ``a``, and whose bias gradient has the factor ``a_b``."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, W: Tensor, b: Tensor | None, a: Tensor, a_b: Tensor | None, op: Any) -> Tensor:
        """The output of the map for its input s."""
        ctx.save_for_backward(W, a, a_b)
        ctx.op = op
        return op.forward(s, W, b)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of s, W and b."""
        W, a, a_b = ctx.saved_tensors
        ds, dW, db = ctx.op.gradients(g, a, W, ctx.needs_input_grad[:3])
        return ds, dW, times(db, a_b), None, None, None


class Overridden(Function):
    """As :class:`Traced`, through the ``gradients`` of a subclass of ``Trace``."""

    @staticmethod
    def forward(
        ctx: Any, s: Tensor, W: Tensor, b: Tensor | None, a: Tensor, a_b: Tensor | None, op: Any, trace: Any
    ) -> Tensor:
        """See :class:`Traced`."""
        ctx.save_for_backward(W, a, a_b)
        ctx.op, ctx.trace = op, trace
        return op.forward(s, W, b)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of s, W and b."""
        W, a, a_b = ctx.saved_tensors
        ctx.trace.call = Call(ctx.op, W, a, a_b, ctx.needs_input_grad[:3])
        return *ctx.trace.gradients(g), None, None, None, None


@dataclass
class Call:
    """One call of a synapse, as its backward pass sees it.

    Attributes:
        op: the linear map.
        weight: W, what the forward pass used.
        trace: what the weight gradient is made of, of the shape of the input.
        bias_trace: the factor of the bias' gradient; None: 1.
        needs: whether the gradients of input, weight and bias are asked for.
    """

    op: Any
    weight: Tensor
    trace: Tensor
    bias_trace: Tensor | None
    needs: tuple[bool, bool, bool]

    def grad_input(self, grad_output: Tensor, weight: Tensor | None = None) -> Tensor | None:
        """The gradient of the input, with another weight than W if one is given."""
        W = self.weight if weight is None else weight.to(self.weight)
        return self.op.gradients(grad_output, self.trace, W, (self.needs[0], False, False))[0]

    def grad_weight(self, grad_output: Tensor, trace: Tensor | None = None) -> Tensor | None:
        """The gradient of W, made of another trace than this synapse's if one is given."""
        a = self.trace if trace is None else trace.to(self.trace)
        return self.op.gradients(grad_output, a, self.weight, (False, self.needs[1], False))[1]

    def grad_bias(self, grad_output: Tensor) -> Tensor | None:
        """The gradient of the bias."""
        db = self.op.gradients(grad_output, self.trace, self.weight, (False, False, self.needs[2]))[2]
        return times(db, self.bias_trace)


def times(a: Tensor | None, factor: Tensor | float | None) -> Tensor | None:
    """The product, where there is something to multiply."""
    return a if a is None or factor is None else a * factor
