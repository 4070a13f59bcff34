"""The LM-H neuron in plain torch: one step for autograd, a sequence with its hand-written backward.

LM-H, Eq. 4, for each step t, with the dendrite v_d, the soma v_s, the step function H and x = I:

    v_d[t] = mu_d v_d[t-1] + mu_s v_s[t-1] + x[t]
    m[t]   = lambda_s v_s[t-1] + lambda_d v_d[t]
    o[t]   = v_threshold H(m[t] - v_threshold)
    v_s[t] = m[t] - o[t]                            o detached

H' is the triangle max(0, alpha - alpha^2 |m - v_threshold|). The exact adjoint, with G_m = dL/dm and G_d = dL/dv_d:

    G_m[t] = dL/do[t] v_threshold H' + lambda_s G_m[t+1] + mu_s G_d[t+1]
    G_d[t] = lambda_d G_m[t] + mu_d G_d[t+1] = dL/dx[t]

This is not LM-H, Eq. 8-9, which count the path v_d[t] -> m[t] -> v_s[t] -> v_d[t+1] twice and miss
v_s[t] -> v_d[t+1] -> v_d[t+2]: they are the gradient only where mu_s = 0.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def step(
    x: Tensor,
    v_d: Tensor,
    v_s: Tensor,
    factors: Tensor,
    v_threshold: float,
    surrogate: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """o[t], v_d[t] and v_s[t] [N, ...] from x[t], v_d[t-1] and v_s[t-1] [N, ...]; factors [4] as in :func:`forward`."""
    mu_d, mu_s, lambda_s, lambda_d = factors
    v_d = mu_d * v_d + mu_s * v_s + x
    m = lambda_s * v_s + lambda_d * v_d
    o = v_threshold * surrogate(m - v_threshold)
    return o, v_d, m - o.detach()


def forward(
    x_seq: Tensor, v_d0: Tensor, v_s0: Tensor, factors: Tensor, v_threshold: float, store_v: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """T steps.

    Args:
        x_seq: input current [T, N, ...].
        v_d0: v_d before the first step [N, ...]; its dtype is the dtype of the state.
        v_s0: v_s before the first step, likewise.
        factors: rows mu_d, mu_s, lambda_s, lambda_d [4, T], or [4, 1] for all steps, in the dtype of the state.
        v_threshold: threshold and height of a spike.
        store_v: whether to return every v_d[t] and v_s[t].

    Returns:
        o_seq [T, N, ...] in the dtype of x_seq; the last v_d and v_s [N, ...]; v_d_seq and v_s_seq [T, N, ...], or two
        empty tensors.
    """
    steps = x_seq.shape[0]
    mu_d, mu_s, lambda_s, lambda_d = factors.expand(4, steps)
    o_seq = torch.empty_like(x_seq)
    v_d_seq, v_s_seq = (torch.empty_like(x_seq, dtype=v_d0.dtype) if store_v else v_d0.new_empty(0) for _ in range(2))
    v_d_last, v_s_last, product, o = (torch.empty_like(v_d0) for _ in range(4))
    v_d, v_s = v_d0, v_s0
    for t in range(steps):
        torch.mul(v_s, mu_s[t], out=product)
        v_d = torch.mul(v_d, mu_d[t], out=v_d_seq[t] if store_v else v_d_last).add_(product).add_(x_seq[t])
        torch.mul(v_d, lambda_d[t], out=product)
        m = torch.mul(v_s, lambda_s[t], out=v_s_seq[t] if store_v else v_s_last).add_(product)
        o_seq[t] = torch.ge(m, v_threshold, out=o).mul_(v_threshold)
        v_s = m.sub_(o)
    return o_seq, v_d_last.copy_(v_d), v_s_last.copy_(v_s), v_d_seq, v_s_seq


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
    """The gradient of :func:`forward`: the exact adjoint above or (``temporal_grad=False``) without its terms in t+1.

    Args:
        grad_o: dL/do_seq [T, N, ...].
        grad_v_d_last: dL/d of the last v_d [N, ...], or an empty tensor for none.
        grad_v_s_last: dL/d of the last v_s [N, ...], likewise.
        grad_v_s_seq: dL/dv_s_seq [T, N, ...], or an empty tensor for none.
        v_d0: as in :func:`forward`; so are v_s0, factors and v_threshold.
        v_s0: see v_d0.
        v_d_seq: as returned by :func:`forward`, and so is v_s_seq.
        v_s_seq: see v_d_seq.
        factors: see v_d0.
        v_threshold: see v_d0.
        alpha: of the triangle H'.
        temporal_grad: False cuts v_d[t-1] and v_s[t-1].

    Returns:
        Gradients of x_seq [T, N, ...], v_d0, v_s0 [N, ...] and factors (in its own shape).
    """
    steps = grad_o.shape[0]
    mu_d, mu_s, lambda_s, lambda_d = factors.expand(4, steps)
    grad_x, grad_factors = torch.empty_like(grad_o), factors.new_empty(4, steps)
    G_m, G_d = (g.clone() if g.numel() else torch.zeros_like(v_d0) for g in (grad_v_s_last, grad_v_d_last))
    product, slope = torch.empty_like(v_d0), torch.empty_like(v_d0)
    for t in reversed(range(steps)):
        v_d, v_d_before, v_s_before = v_d_seq[t], v_d_seq[t - 1] if t else v_d0, v_s_seq[t - 1] if t else v_s0
        if grad_v_s_seq.numel():
            G_m += grad_v_s_seq[t]
        torch.mul(v_s_before, lambda_s[t], out=slope).add_(torch.mul(v_d, lambda_d[t], out=product)).sub_(v_threshold)
        slope.abs_().mul_(-alpha * alpha * v_threshold).add_(alpha * v_threshold).clamp_(min=0)
        G_m += slope.mul_(grad_o[t])
        G_d += torch.mul(G_m, lambda_d[t], out=product)
        grad_x[t] = G_d
        for row, (G, v) in enumerate(((G_d, v_d_before), (G_d, v_s_before), (G_m, v_s_before), (G_m, v_d))):
            grad_factors[row, t] = torch.dot(G.flatten(), v.flatten())
        if temporal_grad:
            G_m.mul_(lambda_s[t]).add_(torch.mul(G_d, mu_s[t], out=product))
            G_d.mul_(mu_d[t])
        else:
            G_m.zero_()
            G_d.zero_()
    return grad_x, G_d, G_m, grad_factors.sum_to_size(factors.shape)
