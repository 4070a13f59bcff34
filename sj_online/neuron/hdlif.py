"""The HD-LIF neuron: EM-PF with spikes of n bits."""

from spikingjelly.activation_based import surrogate

from .empf.node import EMPFNode


class HDLIFNode(EMPFNode):
    """HD-LIF neuron: EM-PF whose spike is rounded to ``spike_bits`` bits.

    s = Q(m - threshold) above the threshold, with steps of 1/4 and levels 0 to 2**spike_bits - 1; the gradient passes Q
    straight through, above the last level too. The reset is by the unrounded overshoot: v = threshold exactly, so that
    all of EM-PF's gradients in time hold (HD-LIF, Theorem 4.2). As EM-PF it wants a batch norm in front, and there is
    none behind the readout.

    Args:
        num_steps: as in :class:`EMPFNode`, and so are all others but spike_bits.
        decay: leak in (0, 1), at the start.
        threshold: threshold in (0, 1), at the start.
        learnable: whether raw parameters are trained.
        membrane_norm: number of channels C, or None.
        parallel: no membrane.
        temporal_grad: True: the exact gradient; False: the online gradient.
        step_mode: ``'s'``: x [N, ...]; ``'m'``: x [T, N, ...].
        backend: ``'torch'``, ``'cupy'`` or ``'auto'``.
        store_v_seq: keep the membrane potentials as ``v_seq`` [T, N, ...].
        spike_bits: 1 to 16; None: float spikes, which is :class:`EMPFNode`.
        tau: the host's word for ``decay``, 1 - 1/tau; for this and the following see :class:`EMPFNode`.
        v_threshold: the host's word for ``threshold``.
        decay_input: of the host; only False.
        v_reset: of the host; only None.
        surrogate_function: of the host; only None.
        detach_reset: of the host; only False.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> import torch
        >>> node = HDLIFNode(spike_bits=4)
        >>> node(torch.tensor([0.4, 0.8, 1.4, 9.0])).tolist()
        [0.0, 0.25, 1.0, 3.75]
    """

    paper = "HD-LIF (Rethinking SNN Online Training and Deployment)"

    def __init__(
        self,
        num_steps: int | None = None,
        *,
        decay: float = 0.5,
        threshold: float = 0.5,
        learnable: bool = True,
        membrane_norm: int | None = None,
        parallel: bool = False,
        temporal_grad: bool = True,
        step_mode: str = "s",
        backend: str = "torch",
        store_v_seq: bool = False,
        spike_bits: int | None = 4,
        tau: float | None = None,
        v_threshold: float | None = None,
        decay_input: bool = False,
        v_reset: float | None = None,
        surrogate_function: surrogate.SurrogateFunctionBase | None = None,
        detach_reset: bool = False,
    ) -> None:
        if spike_bits is not None and (not isinstance(spike_bits, int) or not 1 <= spike_bits <= 16):
            raise ValueError(f"spike_bits={spike_bits!r} is not None or an integer from 1 to 16")
        super().__init__(
            num_steps,
            decay=decay,
            threshold=threshold,
            learnable=learnable,
            membrane_norm=membrane_norm,
            parallel=parallel,
            temporal_grad=temporal_grad,
            step_mode=step_mode,
            backend=backend,
            store_v_seq=store_v_seq,
            tau=tau,
            v_threshold=v_threshold,
            decay_input=decay_input,
            v_reset=v_reset,
            surrogate_function=surrogate_function,
            detach_reset=detach_reset,
        )
        self.spike_bits = spike_bits or 0
