"""The presynaptic trace inside a synapse: the spike goes forward, the trace makes the weight gradient, in one pass."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.overrides import TorchFunctionMode


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor, W: Tensor, b: Tensor | None, a: Tensor, a_b: Tensor | None) -> Tensor:
        ctx.save_for_backward(W, a, a_b)
        return F.linear(s, W, b)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        W, a, a_b = ctx.saved_tensors
        need_s, need_W, need_b, *_ = ctx.needs_input_grad
        rows = g.flatten(0, -2)
        ds = g @ W if need_s else None
        dW = rows.t() @ a.flatten(0, -2) if need_W else None
        db = rows.sum(0) if need_b else None
        return ds, dW, _times(db, a_b), None, None


class _Conv(Function):
    @staticmethod
    def forward(
        ctx: Any, s: Tensor, W: Tensor, b: Tensor | None, a: Tensor, a_b: Tensor | None, how: tuple[Any, ...]
    ) -> Tensor:
        ctx.save_for_backward(W, a, a_b)
        ctx.how = how
        stride, padding, dilation, groups = how
        return torch.convolution(s, W, b, stride, padding, dilation, False, [0], groups)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        W, a, a_b = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.how
        need_s, need_W, need_b, *_ = ctx.needs_input_grad
        # The gradient of the input does not depend on the input: with the trace in its place all three are right.
        ds, dW, db = torch.ops.aten.convolution_backward(
            g, a, W, [len(W)], stride, padding, dilation, False, [0], groups, [need_s, need_W, need_b]
        )
        return ds, dW, _times(db, a_b), None, None, None


class Trace(TorchFunctionMode):
    r"""The trace of one synapse, :math:`\hat a[t] = \lambda \hat a[t-1] + s[t]` (OTTT, Eq. 4).

    While it is entered, ``F.linear`` and ``F.conv1d`` to ``F.conv3d`` compute their weight gradient from the trace of
    their input, whatever makes the weight: a parameter, a quantiser, a standardisation. A synapse that is used several
    times in a step keeps a trace of each use.

    Args:
        weight: the weight gradient is made of the trace, else of the spike.
        bias: the same for the bias, whose input is the constant 1.

    Example:
        >>> fc, trace = nn.Linear(2, 1, bias=False), Trace()
        >>> for t in range(3):
        ...     trace.begin(0.5)
        ...     with trace:
        ...         fc(torch.ones(1, 2)).sum().backward()
        >>> fc.weight.grad.tolist()  # 1 + 1.5 + 1.75
        [[4.25, 4.25]]
    """

    def __init__(self, weight: bool = True, bias: bool = False) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.clear()

    def clear(self) -> None:
        """Forget the sequence."""
        self.uses: list[tuple[Tensor | None, Tensor | None]] = []
        self.use = 0

    @torch.no_grad()
    def begin(self, leak: Tensor | float) -> None:
        """Begin a step: let the traces leak."""
        self.uses = [(_times(a, leak), _times(a_b, leak)) for a, a_b in self.uses]
        self.use = 0

    def add(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Add the input of this step; returns it, and what the gradients of weight and bias are made of."""
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

    def linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """In the place of ``F.linear``."""
        s, a, a_b = self.add(input)
        s, W, b = _autocast(s, weight, bias)
        return _Linear.apply(s, W, b, a.to(s.dtype), a_b)

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
        s, a, a_b = self.add(input)
        s, W, b = _autocast(s, weight, bias)
        return _Conv.apply(s, W, b, a.to(s.dtype), a_b, (stride, padding, dilation, groups))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear:
            func = self.linear
        elif func in (F.conv1d, F.conv2d, F.conv3d):
            func = self.conv
        return func(*args, **(kwargs or {}))

    def around(self, synapse: nn.Module) -> Callable[[Tensor], Tensor]:
        """The forward of ``synapse`` with this trace in it."""
        inner = synapse.forward

        def forward(x: Tensor) -> Tensor:
            with self:
                return inner(x)

        return forward


@contextmanager
def replaced_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Replace the ``forward`` of modules, so that ``torch.compile`` sees it: hooks added later it would ignore."""
    with ExitStack() as stack:
        for module, forward in forwards.items():
            if "forward" in vars(module):
                stack.callback(setattr, module, "forward", module.forward)
            else:
                stack.callback(delattr, module, "forward")
            module.forward = forward
        yield


def _tuple(value: Any, dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


def _times(a: Tensor | None, factor: Tensor | float | None) -> Tensor | None:
    return a if a is None or factor is None else a * factor


def _autocast(s: Tensor, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast as autocast casts the arguments of a matrix product, outside of the function that it cannot see into."""
    device = s.device.type
    if s.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return s, W, b
    dtype = torch.get_autocast_dtype(device)
    return s.to(dtype), W.to(dtype), None if b is None else b.to(dtype)
