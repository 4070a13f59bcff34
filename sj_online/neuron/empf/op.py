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
    keep: str,
    temporal_grad: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """T steps of EM-PF; which gradients it has depends on ``keep``, see ``reference.forward``."""
    return _implementation(backend).forward(x_seq, v0, decay, threshold, spike_bits, keep)


@empf.register_fake
def _(
    x_seq: Tensor,
    v0: Tensor,
    decay: Tensor,
    threshold: Tensor,
    spike_bits: int,
    keep: str,
    temporal_grad: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x_seq), torch.empty_like(v0), reference.empty_kept(x_seq, v0, keep)


@torch.library.custom_op("sj_online::empf_backward", mutates_args=())
def empf_backward(
    grad_s: Tensor,
    grad_v_last: Tensor,
    grad_v_seq: Tensor,
    v0: Tensor,
    kept: Tensor,
    decay: Tensor,
    threshold: Tensor,
    temporal_grad: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradient of :func:`empf`; see :func:`sj_online.neuron.empf.reference.backward`."""
    return _implementation(backend).backward(grad_s, grad_v_last, grad_v_seq, v0, kept, decay, threshold, temporal_grad)


@empf_backward.register_fake
def _(
    grad_s: Tensor,
    grad_v_last: Tensor,
    grad_v_seq: Tensor,
    v0: Tensor,
    kept: Tensor,
    decay: Tensor,
    threshold: Tensor,
    temporal_grad: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(grad_s), torch.empty_like(v0), torch.empty_like(decay), torch.empty_like(threshold)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x_seq, v0, decay, threshold, _, _, ctx.temporal_grad, ctx.backend = inputs
    ctx.save_for_backward(v0, output[2], decay, threshold)
    ctx.x_shape, ctx.x_dtype = x_seq.shape, x_seq.dtype
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_s: Tensor | None, grad_v_last: Tensor | None, grad_v_seq: Tensor | None
) -> tuple[Tensor | None, ...]:
    v0, kept, decay, threshold = ctx.saved_tensors
    grad_x, grad_v0, grad_decay, grad_threshold = empf_backward(
        v0.new_zeros(ctx.x_shape, dtype=ctx.x_dtype) if grad_s is None else grad_s.contiguous(),
        v0.new_empty(0) if grad_v_last is None else grad_v_last.contiguous(),
        v0.new_empty(0) if grad_v_seq is None else grad_v_seq,
        v0,
        kept,
        decay,
        threshold,
        ctx.temporal_grad,
        ctx.backend,
    )
    return grad_x, grad_v0, None if kept.dtype == torch.uint8 else grad_decay, grad_threshold, None, None, None, None


empf.register_autograd(_backward, setup_context=_setup_context)
