"""The EM-PF neuron in plain torch: one step for autograd, a sequence with its hand-written backward.

EM-PF, Eq. 3-5 (HD-LIF without its quantiser), for each step t with leak ``decay`` and threshold ``threshold``:

    m[t] = decay_t v[t-1] + x[t]                charge
    v[t] = min(m[t], threshold_t)               a neuron that fires is reset to its threshold exactly
    s[t] = m[t] - v[t] = relu(m[t] - threshold_t)

With chi[t] = 1 where m[t] >= threshold_t (which is where v[t] equals threshold_t), the derivatives are
ds/dm = chi, dv/dm = 1 - chi, ds/dthreshold = -chi, dv/dthreshold = chi. The online gradient cuts v[t-1] and drops the
last one. HD-LIF rounds s to ``spike_bits`` bits, passes the gradient straight through, and resets by the unrounded s.
"""

from collections.abc import Callable

import torch
from torch import Tensor

SPIKE_LEVELS_PER_UNIT = 4
"""HD-LIF's quantiser has steps of 1/4."""


def charge(x: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    """m[t] from x[t] [N, ...] and v[t-1] [N, ...] (EM-PF, Eq. 3)."""
    return decay * v + x


def normalize(m: Tensor, norm: Callable[[Tensor], Tensor], alpha: Tensor, beta: Tensor) -> Tensor:
    """Membrane batch normalisation of m[t] [N, C, ...] (EM-PF, Eq. 6); ``norm`` is the BatchNorm of step t."""
    return alpha * m + beta * norm(m)


def fire(m: Tensor, threshold: Tensor, spike_bits: int, temporal_grad: bool) -> tuple[Tensor, Tensor]:
    """s[t] and v[t] from m[t], all [N, ...] (EM-PF, Eq. 4 and 5).

    Minimum and relu have the same values, but their derivatives at m = threshold are 1/2 and 0, where the paper's chi
    is 1. On a CPU the products take a tenth of the time of ``where``, forward and backward, and chi is all they save.
    """
    if not torch.is_grad_enabled():
        v = torch.minimum(m, threshold)
        return _rounded(m - v, spike_bits), v
    chi = (m >= threshold).to(torch.uint8)  # half the time of a bool in products
    below, fired = m - m * chi, threshold * chi
    v = below + fired  # exact, as one of the two is zero
    s = m - v
    if not temporal_grad:
        v = below + fired.detach()
    if spike_bits:
        s = quantize_(s.detach().clone(), spike_bits) + (s - s.detach())
    return s, v


def step_without_graph(
    x: Tensor, v: Tensor, decay: Tensor, threshold: Tensor, spike_bits: int
) -> tuple[Tensor, Tensor]:
    """s[t] and v[t] as of :func:`charge` and :func:`fire`, in half of the memory: what costs most is new memory."""
    m = (decay * v).add_(x)
    v = torch.minimum(m, threshold)
    return _rounded(m.sub_(v), spike_bits), v


def fire_parallel(x: Tensor, threshold: Tensor, spike_bits: int) -> Tensor:
    """Without a membrane s = relu(x - threshold), for any number of steps at once (EM-PF, Algorithm 1, line 10)."""
    if torch.is_grad_enabled():
        return fire(x, threshold, spike_bits, temporal_grad=True)[0]
    return _rounded((x - threshold).relu_(), spike_bits)


def _rounded(s: Tensor, spike_bits: int) -> Tensor:
    return quantize_(s, spike_bits) if spike_bits else s


def quantize_(s: Tensor, spike_bits: int) -> Tensor:
    """HD-LIF's spike quantiser, in place: steps of 1/4, levels 0 to 2**spike_bits - 1, half to even.

    Example:
        >>> quantize_(torch.tensor([0.1, 0.2, 9.0]), 4)
        tensor([0.0000, 0.2500, 3.7500])
    """
    levels = s.mul_(SPIKE_LEVELS_PER_UNIT).round_().clamp_(0, 2**spike_bits - 1)
    return levels.div_(SPIKE_LEVELS_PER_UNIT)


def forward(
    x_seq: Tensor, v0: Tensor, decay: Tensor, threshold: Tensor, spike_bits: int, keep: str
) -> tuple[Tensor, Tensor, Tensor]:
    """T steps.

    Args:
        x_seq: input current [T, N, ...].
        v0: v before the first step [N, ...]; its dtype is the dtype of the state.
        decay: leak [T], or [1] for all steps, in the dtype of the state.
        threshold: threshold [T] or [1], likewise.
        spike_bits: bits of a spike, 0 for float spikes.
        keep: what to keep for the backward. ``'v'``: every v[t]; ``'fired'``: chi only, which is all that is needed
            where decay needs no gradient; ``''``: nothing.

    Returns:
        s_seq [T, N, ...] in the dtype of x_seq, the last v [N, ...], and what is kept: v_seq [T, N, ...], or chi as
        uint8 [ceil(T / 8), N, ...] with chi[t] in bit t % 8 of row t // 8, or an empty tensor.
    """
    steps = x_seq.shape[0]
    decay, threshold = decay.expand(steps), threshold.expand(steps)
    s_seq = torch.empty_like(x_seq)
    kept = empty_kept(x_seq, v0, keep)
    v_last, m, v = torch.empty_like(v0), torch.empty_like(v0), v0
    for t in range(steps):
        torch.mul(v, decay[t], out=m).add_(x_seq[t])
        v = torch.minimum(m, threshold[t], out=kept[t] if keep == "v" else v_last)
        if keep == "fired":
            chi = (m >= threshold[t]).to(torch.uint8) << t % 8
            kept[t // 8] = kept[t // 8] | chi if t % 8 else chi
        if spike_bits:
            s_seq[t] = quantize_(m.sub_(v), spike_bits)
        else:
            torch.sub(m, v, out=s_seq[t])
    return s_seq, v_last.copy_(v), kept


def empty_kept(x_seq: Tensor, v0: Tensor, keep: str) -> Tensor:
    """What :func:`forward` keeps, not yet filled."""
    if keep == "v":
        return torch.empty_like(x_seq, dtype=v0.dtype)
    shape = ((x_seq.shape[0] + 7) // 8, *v0.shape) if keep == "fired" else (0,)
    return v0.new_empty(shape, dtype=torch.uint8)


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
    """The gradient of :func:`forward`, exact or (``temporal_grad=False``) online.

    Args:
        grad_s: dL/ds_seq [T, N, ...].
        grad_v_last: dL/dv_last [N, ...], or an empty tensor for none.
        grad_v_seq: dL/dv_seq [T, N, ...], or an empty tensor for none.
        v0: as in :func:`forward`.
        kept: as returned by :func:`forward`, v_seq or the fired bits.
        decay: as in :func:`forward`.
        threshold: as in :func:`forward`.
        temporal_grad: False cuts v[t-1] and drops dv/dthreshold.

    Returns:
        Gradients of x_seq [T, N, ...], v0 [N, ...], decay (0 without v_seq) and threshold (each in its own shape).
    """
    steps, has_v = grad_s.shape[0], kept.dtype != torch.uint8
    decay_t, threshold_t = decay.expand(steps), threshold.expand(steps)
    grad_x = torch.empty_like(grad_s)
    grad_decay, grad_threshold = v0.new_zeros(steps), v0.new_empty(steps)
    grad_v = grad_v_last.clone() if grad_v_last.numel() else torch.zeros_like(v0)
    grad_m, product, chi = (torch.empty_like(v0) for _ in range(3))
    for t in reversed(range(steps)):
        if grad_v_seq.numel():
            grad_v += grad_v_seq[t]
        if has_v:
            torch.eq(kept[t], threshold_t[t], out=chi)
        else:
            chi.copy_(kept[t // 8] >> t % 8 & 1)
        torch.lerp(grad_v, grad_s[t].to(v0.dtype), chi, out=grad_m)  # one or the other, faster than where
        grad_x[t] = grad_m
        if has_v:
            grad_decay[t] = torch.mul(grad_m, kept[t - 1] if t else v0, out=product).sum()
        if temporal_grad:
            grad_threshold[t] = torch.sub(grad_v, grad_m, out=product).sum()
            torch.mul(grad_m, decay_t[t], out=grad_v)
        else:
            grad_threshold[t] = -torch.mul(grad_m, chi, out=product).sum()
            grad_v.zero_()
    return grad_x, grad_v, grad_decay.sum_to_size(decay.shape), grad_threshold.sum_to_size(threshold.shape)
