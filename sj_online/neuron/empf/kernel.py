"""The EM-PF sequence on CuPy: the signatures of :mod:`sj_online.neuron.empf.reference`, on ``kernel.cu``."""

from pathlib import Path

import torch
from torch import Tensor

from ...cuda import loader
from .reference import empty_kept

SOURCE = Path(__file__).with_name("kernel.cu")
KEEP = {"": "NOTHING", "v": "V_SEQ", "fired": "FIRED"}


def forward(
    x_seq: Tensor, v0: Tensor, decay: Tensor, threshold: Tensor, spike_bits: int, keep: str
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`sj_online.neuron.empf.reference.forward`."""
    x_seq, v0, decay, threshold = (a.contiguous() for a in (x_seq, v0, decay, threshold))
    s_seq, v_last, kept = torch.empty_like(x_seq), torch.empty_like(v0), empty_kept(x_seq, v0, keep)
    v_seq, fired = (kept if keep == kind else None for kind in ("v", "fired"))
    N = v0.numel()
    V = loader.lanes(N, x_seq, v0)
    scalars = N, len(x_seq), len(decay) > 1, len(threshold) > 1, float(2**spike_bits - 1)
    loader.launch(
        SOURCE,
        f"empf_forward<{loader.SCALARS[x_seq.dtype]}, {KEEP[keep]}, {'true' if spike_bits else 'false'}, {V}>",
        x_seq.device,
        loader.grid(N),
        (x_seq, v0, decay, threshold, s_seq, v_last, v_seq, fired, *scalars),
    )
    return s_seq, v_last, kept


def backward(
    grad_s: Tensor,
    grad_v_last: Tensor,
    grad_v_seq: Tensor,
    v0: Tensor,
    kept: Tensor,
    decay: Tensor,
    threshold: Tensor,
    temporal_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See :func:`sj_online.neuron.empf.reference.backward`."""
    arrays = [a.contiguous() for a in (grad_s, grad_v_last, grad_v_seq, v0, kept, decay, threshold)]
    grad_x, grad_v0 = (torch.empty_like(arrays[i]) for i in (0, 3))
    N, d = v0.numel(), len(decay)
    V = loader.lanes(N, *arrays[:5])
    grid = loader.reducing_grid(N, d + len(threshold), v0.device)
    partial = v0.new_empty(grid.blocks, d + len(threshold))
    kept_t = "unsigned char" if kept.dtype == torch.uint8 else "float"
    scalars = N, len(grad_s), d > 1, len(threshold) > 1
    loader.launch(
        SOURCE,
        f"empf_backward<{loader.SCALARS[grad_s.dtype]}, {kept_t}, {'true' if temporal_grad else 'false'}, {V}>",
        grad_s.device,
        grid,
        (*arrays, grad_x, grad_v0, partial, *scalars),
    )
    return grad_x, grad_v0, partial[:, :d].sum(0), partial[:, d:].sum(0)
