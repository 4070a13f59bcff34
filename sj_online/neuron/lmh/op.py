"""The LM-H sequence as an operator of torch; see :mod:`sj_online.neuron.empf.op`."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import reference


def _implementation(backend: str) -> ModuleType:
    if backend == "cupy":
        from . import kernel

        return kernel
    return reference


@torch.library.custom_op("sj_online::lmh", mutates_args=())
def lmh(
    x_seq: Tensor,
    v_d0: Tensor,
    v_s0: Tensor,
    factors: Tensor,
    v_threshold: float,
    alpha: float,
    store_v: bool,
    temporal_grad: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """T steps of LM-H, differentiable if ``store_v`` but not through v_d_seq; see ``reference.forward``."""
    return _implementation(backend).forward(x_seq, v_d0, v_s0, factors, v_threshold, store_v)


@lmh.register_fake
def _(
    x_seq: Tensor,
    v_d0: Tensor,
    v_s0: Tensor,
    factors: Tensor,
    v_threshold: float,
    alpha: float,
    store_v: bool,
    temporal_grad: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    v_d_seq, v_s_seq = (torch.empty_like(x_seq, dtype=v_d0.dtype) if store_v else v_d0.new_empty(0) for _ in range(2))
    return torch.empty_like(x_seq), torch.empty_like(v_d0), torch.empty_like(v_d0), v_d_seq, v_s_seq


@torch.library.custom_op("sj_online::lmh_backward", mutates_args=())
def lmh_backward(
    grad_o: Tensor,
    grad_v_d_last: Tensor,
    grad_v_s_last: Tensor,
    grad_v_s_seq: Tensor,
    v_d0: Tensor,
    v_s0: Tensor,
    v_d_seq: Tensor,
    v_s_seq: Tensor,
    factors: Tensor,
    v_threshold: float,
    alpha: float,
    temporal_grad: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradient of :func:`lmh`; see ``reference.backward``."""
    return _implementation(backend).backward(
        grad_o,
        grad_v_d_last,
        grad_v_s_last,
        grad_v_s_seq,
        v_d0,
        v_s0,
        v_d_seq,
        v_s_seq,
        factors,
        v_threshold,
        alpha,
        temporal_grad,
    )


@lmh_backward.register_fake
def _(grad_o: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    v_d0, factors = args[3], args[7]
    return torch.empty_like(grad_o), torch.empty_like(v_d0), torch.empty_like(v_d0), torch.empty_like(factors)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x_seq, v_d0, v_s0, factors, ctx.v_threshold, ctx.alpha, _, ctx.temporal_grad, ctx.backend = inputs
    ctx.save_for_backward(v_d0, v_s0, output[3], output[4], factors)
    ctx.x_dtype = x_seq.dtype
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    v_d0, v_s0, v_d_seq, v_s_seq, factors = ctx.saved_tensors
    grad_o, grad_v_d_last, grad_v_s_last, _, grad_v_s_seq = grads
    grad_inputs = lmh_backward(
        torch.zeros_like(v_d_seq, dtype=ctx.x_dtype) if grad_o is None else grad_o.contiguous(),
        *(v_d0.new_empty(0) if g is None else g.contiguous() for g in (grad_v_d_last, grad_v_s_last, grad_v_s_seq)),
        v_d0,
        v_s0,
        v_d_seq,
        v_s_seq,
        factors,
        ctx.v_threshold,
        ctx.alpha,
        ctx.temporal_grad,
        ctx.backend,
    )
    return (*grad_inputs, None, None, None, None, None)


lmh.register_autograd(_backward, setup_context=_setup_context)
