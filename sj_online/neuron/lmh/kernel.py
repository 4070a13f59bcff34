"""The LM-H sequence on CuPy: the signatures of :mod:`sj_online.neuron.lmh.reference`, on ``kernel.cu``."""

from pathlib import Path

import torch
from torch import Tensor

from ...cuda import loader

SOURCE = Path(__file__).with_name("kernel.cu")


def forward(
    x_seq: Tensor, v_d0: Tensor, v_s0: Tensor, factors: Tensor, v_threshold: float, store_v: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`sj_online.neuron.lmh.reference.forward`."""
    x_seq, v_d0, v_s0, factors = (a.contiguous() for a in (x_seq, v_d0, v_s0, factors))
    o_seq, v_d_last, v_s_last = (torch.empty_like(a) for a in (x_seq, v_d0, v_s0))
    v_d_seq, v_s_seq = (torch.empty_like(x_seq, dtype=v_d0.dtype) if store_v else v_d0.new_empty(0) for _ in range(2))
    N, P = v_d0.numel(), factors.shape[1]
    V = loader.lanes(N, x_seq, v_d0, v_s0)
    loader.launch(
        SOURCE,
        f"lmh_forward<{loader.SCALARS[x_seq.dtype]}, {'true' if store_v else 'false'}, {V}>",
        x_seq.device,
        loader.grid(N),
        (x_seq, v_d0, v_s0, factors, o_seq, v_d_last, v_s_last, v_d_seq, v_s_seq)
        + (N, len(x_seq), P > 1, float(v_threshold)),
    )
    return o_seq, v_d_last, v_s_last, v_d_seq, v_s_seq


def backward(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See :func:`sj_online.neuron.lmh.reference.backward`."""
    states = grad_v_d_last, grad_v_s_last, grad_v_s_seq, v_d0, v_s0, v_d_seq, v_s_seq
    arrays = [a.contiguous() for a in (grad_o, *states, factors)]
    grad_x, grad_v_d0, grad_v_s0 = (torch.empty_like(arrays[i]) for i in (0, 4, 5))
    N, P = v_d0.numel(), factors.shape[1]
    V = loader.lanes(N, *arrays[:-1])
    grid = loader.reducing_grid(N, 4 * P, grad_o.device)
    partial = v_d0.new_empty(grid.blocks, 4, P)
    scalars = N, len(grad_o), P > 1, float(v_threshold), alpha * v_threshold, alpha * alpha * v_threshold
    loader.launch(
        SOURCE,
        f"lmh_backward<{loader.SCALARS[grad_o.dtype]}, {'true' if temporal_grad else 'false'}, {V}>",
        grad_o.device,
        grid,
        (*arrays, grad_x, grad_v_d0, grad_v_s0, partial, *scalars),
    )
    return grad_x, grad_v_d0, grad_v_s0, partial.sum(0)
