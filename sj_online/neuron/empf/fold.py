"""Fold the membrane batch normalisation of EM-PF into its leak and its input, for inference."""

from typing import cast

import torch
from torch import Tensor, nn

from ..base import OnlineNode
from ..units import first
from . import reference
from .node import EMPFNode


class FoldedEMPFNode(OnlineNode):
    """EM-PF with a leak, a scale and a shift per step and channel: what :func:`fold_membrane_norm` returns.

    m = decay v + scale x - shift; v = min(m, threshold); s = m - v.

    Args:
        decay: [T, C], or [1, C] for all steps.
        scale: of the input, likewise.
        shift: of the input, likewise.
        threshold: [T] or [1].
        spike_bits: bits of a spike, 0 for float spikes.
        num_steps: T, or None for any number of steps.
        step_mode: ``'s'``: x [N, C, ...]; ``'m'``: x [T, N, C, ...].
    """

    paper = EMPFNode.paper

    def __init__(
        self,
        decay: Tensor,
        scale: Tensor,
        shift: Tensor,
        threshold: Tensor,
        *,
        spike_bits: int = 0,
        num_steps: int | None = None,
        step_mode: str = "s",
    ) -> None:
        super().__init__(
            num_steps,
            memories={"v": 0.0},
            v_threshold=first(threshold),
            surrogate_function=None,
            temporal_grad=True,
            step_mode=step_mode,
            backend="torch",
            store_v_seq=False,
            detach_reset=False,
        )
        self.spike_bits = spike_bits
        for name, value in (("decay", decay), ("scale", scale), ("shift", shift), ("threshold", threshold)):
            self.register_buffer(name, value)

    @property
    def supported_backends(self) -> tuple[str, ...]:
        """Plain torch."""
        return ("torch", "auto")

    def step(self, x: Tensor, states: tuple[Tensor, ...], t: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See :meth:`OnlineNode.step`; x [N, C, ...]."""
        (v,) = states
        channels = (1, -1, *(1 for _ in x.shape[2:]))
        decay, scale, shift = (self._at(p, t, 1, v.dtype).view(channels) for p in (self.decay, self.scale, self.shift))
        m = reference.charge(scale * x - shift, v, decay)
        s, v = reference.fire(m, self._at(self.threshold, t, 1, v.dtype)[0], self.spike_bits, self.temporal_grad)
        return s, (v,)


@torch.no_grad()
def fold_membrane_norm(node: EMPFNode) -> FoldedEMPFNode:
    """The node without BatchNorm that equals ``node`` in eval mode.

    With BN(m) = gamma (m - mu) / sigma + b, mixed in as alpha m + beta BN(m), one channel and step is scaled by
    A = alpha + beta gamma / sigma and shifted by B = beta (gamma mu / sigma - b): m = A decay v + (A x - B), and the
    threshold stays as it is. (EM-PF, Eq. 7-8 and Corollary 4.3 print B with "+ b", which is not the same neuron.)

    Args:
        node: an EM-PF or HD-LIF neuron with membrane_norm.

    Raises:
        ValueError: the node has no membrane_norm.

    Example:
        >>> node = EMPFNode(membrane_norm=3).eval()
        >>> x = torch.randn(2, 3, 4, 4)
        >>> torch.allclose(fold_membrane_norm(node)(x), node(x), atol=1e-6)
        True
    """
    if not node.membrane_norm:
        raise ValueError(f"node={node} has no membrane_norm to fold")
    norms = cast(list[nn.BatchNorm2d], list(node.membrane_norm))
    names = ("weight", "bias", "running_mean", "running_var")
    gamma, b, mu, var = (torch.stack([getattr(norm, name) for norm in norms]) for name in names)
    sigma = (var + norms[0].eps).sqrt()
    alpha, beta = node.raw_alpha.sigmoid()[:, None], node.raw_beta.sigmoid()[:, None]
    scale = alpha + beta * gamma / sigma
    return FoldedEMPFNode(
        scale * node.decay[:, None],
        scale,
        beta * (gamma * mu / sigma - b),
        node.threshold,
        spike_bits=node.spike_bits,
        num_steps=node.num_steps,
        step_mode=node.step_mode,
    )
