"""The LIF neurons of OTTT, SLTT and STOL: the host's ``LIFNode`` with the constants of each paper."""

from spikingjelly.activation_based.neuron import LIFNode
from spikingjelly.activation_based.surrogate import SurrogateFunctionBase

from ..registry import cite
from . import surrogates


@cite("OTTT (Xiao et al. 2022)")
def ottt_lif(
    *,
    tau: float = 2.0,
    v_threshold: float = 1.0,
    surrogate_function: SurrogateFunctionBase | str = "sigmoid",
    step_mode: str = "s",
    store_v_seq: bool = False,
) -> LIFNode:
    """The neuron of OTTT: leak 1 - 1/tau, x not scaled, reset by subtraction without gradient.

    Args:
        tau: of the leak.
        v_threshold: threshold, and what a spike subtracts.
        surrogate_function: a surrogate, or the name of one: ``'sigmoid'``, ``'triangle'``, ``'quasi_clamp'``.
        step_mode: ``'s'``: x [N, ...]; ``'m'``: x [T, N, ...].
        store_v_seq: keep the membrane potentials as ``v_seq`` [T, N, ...].

    Example:
        >>> ottt_lif().tau
        2.0
    """
    function = surrogates.named(surrogate_function)
    return LIFNode(tau, False, v_threshold, None, function, True, step_mode, store_v_seq)


@cite("SLTT (Meng et al. 2023)")
def sltt_lif(
    *,
    tau: float = 1.1,
    v_threshold: float = 1.0,
    surrogate_function: SurrogateFunctionBase | str = "triangle",
    step_mode: str = "s",
    store_v_seq: bool = False,
) -> LIFNode:
    """The neuron of SLTT: as OTTT's, with a leak of 1/11 and the triangle.

    Args:
        tau: of the leak.
        v_threshold: threshold, and what a spike subtracts.
        surrogate_function: a surrogate, or the name of one: ``'sigmoid'``, ``'triangle'``, ``'quasi_clamp'``.
        step_mode: ``'s'``: x [N, ...]; ``'m'``: x [T, N, ...].
        store_v_seq: keep the membrane potentials as ``v_seq`` [T, N, ...].

    Example:
        >>> sltt_lif().tau
        1.1
    """
    return ottt_lif(
        tau=tau,
        v_threshold=v_threshold,
        surrogate_function=surrogate_function,
        step_mode=step_mode,
        store_v_seq=store_v_seq,
    )


@cite("STOL (Xue et al.)")
def stol_lif(
    *,
    tau: float = 2.0,
    v_threshold: float = 1.0,
    surrogate_function: SurrogateFunctionBase | str = "triangle",
    step_mode: str = "s",
    store_v_seq: bool = False,
) -> LIFNode:
    """The neuron of STOL: leak 1 - 1/tau, x not scaled, reset to zero whose gradient is kept.

    Args:
        tau: of the leak. STOL's leak is 1/tau where the host's is 1 - 1/tau: a tau of p there is p / (p - 1) here, so
            that 4, for CIFAR10-DVS, is 4/3.
        v_threshold: threshold.
        surrogate_function: a surrogate, or the name of one: ``'sigmoid'``, ``'triangle'``, ``'quasi_clamp'``.
        step_mode: ``'s'``: x [N, ...]; ``'m'``: x [T, N, ...].
        store_v_seq: keep the membrane potentials as ``v_seq`` [T, N, ...].

    Example:
        >>> stol_lif(tau=4 / 3).v_reset
        0.0
    """
    function = surrogates.named(surrogate_function)
    return LIFNode(tau, False, v_threshold, 0.0, function, False, step_mode, store_v_seq)
