"""The presynaptic trace inside a synapse: the spike goes forward, the trace makes the weight gradient, in one pass."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sj_online.trainer.activity import Activity
from sj_online.trainer.linear_maps import Bilinear, Call, Conv, Linear, Overridden, Traced, times


class Trace(TorchFunctionMode):
    r"""The trace of one synapse, :math:`\hat a[t] = \lambda \hat a[t-1] + s[t]` (OTTT, Eq. 4).

    While it is entered, whatever is linear in one input (``F.linear``, the convolutions and transposed ones) computes
    its weight gradient from the trace of its input, whatever makes the weight: a parameter, a quantiser, a
    standardisation. A synapse that is called several times in a step keeps a trace of each call, in their
    order; where it is called fewer times than before, what is left of the others joins the last call.

    Args:
        weight: the weight gradient is made of the trace, else of the spike.
        bias: the same for the bias, whose input is the constant 1.

    Attributes:
        call: while :meth:`gradients` runs, the call whose gradients are asked for.
        name: of the synapse in its network.
        neurons: what the neurons that its :class:`~sj_online.topology.Place` names did in this step, if the rule has
            ``watches_neurons = True``.

    Example:
        >>> fc, trace = nn.Linear(2, 1, bias=False), Trace()
        >>> for t in range(3):
        ...     trace.begin(0.5)
        ...     with trace:
        ...         fc(torch.ones(1, 2)).sum().backward()
        >>> fc.weight.grad.tolist()  # 1 + 1.5 + 1.75
        [[4.25, 4.25]]
    """

    call: Call
    use: int
    """How many times the synapse has been called in this step."""

    def __init__(self, weight: bool = True, bias: bool = False) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.name = ""
        self.clear()

    def clear(self) -> None:
        """Forget the sequence."""
        self.neurons: tuple[Activity, ...] = ()
        self.uses: list[tuple[Tensor | None, Tensor | None]] = []
        self.use = 0
        self.saved: list[Tensor] = []
        self.again = False

    @torch.no_grad()
    def begin(self, leak: Tensor | float) -> None:
        """Begin a step: let the traces leak."""
        self.uses = [(times(a, leak), times(a_b, leak)) for a, a_b in self.uses]
        self.use = 0
        self.saved = []
        self.again = False

    @torch.no_grad()
    def end(self) -> None:
        """End a step's forward pass; a synapse that is run again from here on (checkpointing) adds nothing."""
        self.again = True
        last = self.use - 1
        for a, a_b in self.uses[self.use :] if self.use else []:
            kept, kept_b = self.uses[last]
            if a is not None and kept is not None and a.shape == kept.shape:
                for tensor in {id(t): t for t in (kept, self.saved[last])}.values():
                    tensor.data.add_(a)  # autograd has saved it and would see a change of its own
            if a_b is not None and kept_b is not None:
                kept_b.data.add_(a_b)
        if self.use:
            del self.uses[self.use :]

    def gradients(self, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of input, weight and bias of :attr:`call`, of the shapes of those; None where not needed.

        A rule of another kind overrides it, and may use the parts: ``self.call.grad_input(grad_output, B)``.

        Args:
            grad_output: of the shape of the synapse's output.
        """
        call = self.call
        return call.grad_input(grad_output), call.grad_weight(grad_output), call.grad_bias(grad_output)

    def add(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Add the input of this step; returns it, and what the gradients of weight and bias are made of."""
        if self.again:
            return self._added(s)
        a, a_b = self.uses[self.use] if self.use < len(self.uses) else (None, None)
        dtype = torch.promote_types(s.dtype, torch.float32)  # in half precision every step would round the trace
        if self.weight:
            full = s.detach().to(dtype)
            a = full if a is None else a.add_(full)  # begin() has made a tensor of its own
        if self.bias:
            a_b = s.new_ones((), dtype=dtype) if a_b is None else a_b + 1
        self.uses[self.use : self.use + 1] = [(a, a_b)]
        self.use += 1
        return s, s.detach() if a is None else a, a_b

    def _added(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        if len(self.uses) != 1:
            raise RuntimeError(
                "a synapse that is called several times in a step is run again in the backward pass (checkpointing), "
                "where its traces cannot be told apart: leave it out of the checkpoint, or out by trace={name: False}"
            )
        a, a_b = self.uses[0]
        return s, s.detach() if a is None else a, a_b

    def _apply(self, s: Tensor, W: Tensor, b: Tensor | None, op: Any) -> Tensor:
        s, a, a_b = self.add(s)
        s, W, b = _autocast(s, W, b)
        a = a.to(s.dtype)
        if not self.again:
            self.saved.append(a)
        if type(self).gradients is Trace.gradients:
            return Traced.apply(s, W, b, a, a_b, op)
        return Overridden.apply(s, W, b, a, a_b, op, self)

    def linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """In the place of ``F.linear``."""
        return self._apply(input, weight, bias, Linear())

    def conv(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        """In the place of ``F.conv1d``, ``F.conv2d`` and ``F.conv3d``."""
        dims = weight.dim() - 2
        stride, dilation = _tuple(stride, dims), _tuple(dilation, dims)
        if padding == "same":
            extra = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
            input = F.pad(input, [side for e in reversed(extra) for side in (e // 2, e - e // 2)])
        padding = _tuple(0 if isinstance(padding, str) else padding, dims)
        return self._apply(input, weight, bias, Conv(stride, padding, dilation, groups))

    def conv_transpose(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Tensor:
        """In the place of ``F.conv_transpose1d``, ``F.conv_transpose2d`` and ``F.conv_transpose3d``."""
        dims = weight.dim() - 2
        how = [_tuple(value, dims) for value in (stride, padding, dilation, output_padding)]
        return self._apply(input, weight, bias, Conv(how[0], how[1], how[2], groups, True, how[3]))

    def product(self, s: Tensor, W: Tensor, fn: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """In the place of ``fn(s, W)``, linear in both."""
        return self._apply(s, W, None, Bilinear(fn))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear:
            func = self.linear
        elif func in (F.conv1d, F.conv2d, F.conv3d):
            func = self.conv
        elif func in (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d):
            func = self.conv_transpose
        return func(*args, **(kwargs or {}))

    def around(self, synapse: nn.Module) -> Callable[[Tensor], Tensor]:
        """The forward of ``synapse`` with this trace in it."""
        inner = synapse.forward

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            with self:
                return inner(*args, **kwargs)

        return forward


def _tuple(value: Any, dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


def _autocast(s: Tensor, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast as autocast casts the arguments of a matrix product, outside of the function that it cannot see into."""
    device = s.device.type
    if s.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return s, W, b
    dtype = torch.get_autocast_dtype(device)
    return s.to(dtype), W.to(dtype), None if b is None else b.to(dtype)
