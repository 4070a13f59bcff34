"""The EM-PF sequence as an operator of torch: one for every backend, opaque to the compiler, with its own backward."""

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


@torch.library.custom_op("sj_online::empf", mutates_args=())
def empf(
    x_seq: Tensor,
    v0: Tensor,
    decay: Tensor,
    threshold: Tensor,
    spike_bits: int,
    store_v: bool,
    temporal_grad: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """T steps of EM-PF, differentiable if ``store_v``; see :func:`sj_online.neuron.empf.reference.forward`."""
    return _implementation(backend).forward(x_seq, v0, decay, threshold, spike_bits, store_v)


@empf.register_fake
def _(
    x_seq: Tensor,
    v0: Tensor,
    decay: Tensor,
    threshold: Tensor,
    spike_bits: int,
    store_v: bool,
    temporal_grad: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    v_seq = torch.empty_like(x_seq, dtype=v0.dtype) if store_v else v0.new_empty(0)
    return torch.empty_like(x_seq), torch.empty_like(v0), v_seq


@torch.library.custom_op("sj_online::empf_backward", mutates_args=())
def empf_backward(
    grad_s: Tensor,
    grad_v_last: Tensor,
    grad_v_seq: Tensor,
    v0: Tensor,
    v_seq: Tensor,
    decay: Tensor,
    threshold: Tensor,
    temporal_grad: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradient of :func:`empf`; see :func:`sj_online.neuron.empf.reference.backward`."""
    return _implementation(backend).backward(
        grad_s, grad_v_last, grad_v_seq, v0, v_seq, decay, threshold, temporal_grad
    )


@empf_backward.register_fake
def _(
    grad_s: Tensor,
    grad_v_last: Tensor,
    grad_v_seq: Tensor,
    v0: Tensor,
    v_seq: Tensor,
    decay: Tensor,
    threshold: Tensor,
    temporal_grad: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(grad_s), torch.empty_like(v0), torch.empty_like(decay), torch.empty_like(threshold)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x_seq, v0, decay, threshold, _, _, ctx.temporal_grad, ctx.backend = inputs
    ctx.save_for_backward(v0, output[2], decay, threshold)
    ctx.x_dtype = x_seq.dtype
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_s: Tensor | None, grad_v_last: Tensor | None, grad_v_seq: Tensor | None
) -> tuple[Tensor | None, ...]:
    v0, v_seq, decay, threshold = ctx.saved_tensors
    grads = empf_backward(
        torch.zeros_like(v_seq, dtype=ctx.x_dtype) if grad_s is None else grad_s,
        torch.zeros_like(v0) if grad_v_last is None else grad_v_last,
        v0.new_empty(0) if grad_v_seq is None else grad_v_seq,
        v0,
        v_seq,
        decay,
        threshold,
        ctx.temporal_grad,
        ctx.backend,
    )
    return (*grads, None, None, None, None)


empf.register_autograd(_backward, setup_context=_setup_context)
