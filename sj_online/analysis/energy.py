"""Operations of a spiking network, measured, and the energy that papers make of them, with their assumptions.

The figures are conventions, not measurements of a device: 4.6 pJ for a multiplication with an addition in float32 and
0.9 pJ for an addition, both of Horowitz (2014) for 45 nm; memory traffic, which costs more than either, is left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from spikingjelly.activation_based.op_counter import DispatchCounterMode, SynOpCounter
from torch import Tensor, nn

from sj_online import check, host
from sj_online.analysis.cost import neuron_operations
from sj_online.frames import Frames
from sj_online.unroll import Unroll, evaluating

PJ_PER_MAC = 4.6
PJ_PER_SOP = 0.9
FLOAT_BITS = 32
aten = torch.ops.aten


@dataclass(frozen=True)
class Operations:
    """Of one sample over all steps.

    Attributes:
        sops: synaptic operations: pairs of an input that is not zero and a weight that is not zero, of all synapses
            but the first.
        first_macs: multiplications of the first synapse, whose input is real-valued, in one step.
        nops: operations of neurons, three for an element and step, one without a membrane (HD-LIF).
        steps: T.
    """

    sops: float
    first_macs: float
    nops: float
    steps: int


@dataclass(frozen=True)
class Energy:
    """What :func:`energy` says, and on which assumptions; print it to see both."""

    millijoules: float
    assumptions: str

    def __str__(self) -> str:
        return f"{self.millijoules:.4f} mJ ({self.assumptions})"


@torch.no_grad()
def operations(net: nn.Module, x: Tensor, num_steps: int | None = None) -> Operations:
    """Count what a network does for samples, by the host's counters; its state is reset.

    The first synapse is the one that is called first in a step. A convolution counts as it is computed: padding counts
    nothing. Quantised weights of zero count nothing either.

    Args:
        net: a network with latent weights or a loaded one with ``runtime='packed'`` or ``'unpacked'``.
        x: ``[T, N, ...]``, or with ``num_steps`` one static input ``[N, ...]``.
        num_steps: T of a static input.

    Returns:
        The mean over the N samples.

    Example:
        >>> from spikingjelly.activation_based import neuron
        >>> net = nn.Sequential(nn.Linear(2, 3), neuron.IFNode(), nn.Linear(3, 4))
        >>> nn.init.ones_(net[0].weight), nn.init.zeros_(net[0].bias)  # doctest: +ELLIPSIS
        (...)
        >>> operations(net, torch.ones(1, 2), num_steps=5)  # three spikes a step, each to four neurons
        Operations(sops=60.0, first_macs=6.0, nops=45.0, steps=5)
    """
    frames = Frames(x, num_steps=num_steps)
    tally = _Tally()
    counter = SynOpCounter(extra_rules=tally.rules())
    with evaluating(net):
        host.reset(net)
        run = Unroll(net, frames)
        with DispatchCounterMode([counter]):
            for t in range(frames.T):
                tally.begin()
                run(range(t, t + 1))
        host.reset(net)
        step = frames[0] if run.mode == "s" else frames.window(range(1))
        nops = neuron_operations(net, step) * frames.T
    return Operations(counter.get_total() / frames.N, tally.first / frames.T / frames.N, nops / frames.N, frames.T)


def energy(
    sops: float,
    first_macs: float = 0.0,
    *,
    model: str = "spikformer",
    spike_bits: int | None = 1,
    first_steps: int = 1,
) -> Energy:
    """The energy that a paper would print.

    ``'spikformer'`` (Zhou et al. 2023): 4.6 pJ per MAC of the first, real-valued synapse and 0.9 pJ per SOP, however
    many bits a spike has. ``'hdlif'`` (HD-LIF, Tab. 2): 0.9 pJ per SOP, divided by 32 / n for spikes of n > 1 bits, but
    by 1 for binary and for float spikes; the first synapse is left out. So a row of 4 bits is divided by 8 and its
    baseline of 1 bit is not, which is where "11 times" comes from. ``'bits'``: n / 32 of 0.9 pJ for everybody, float
    spikes with n = 32, and the first synapse counted.

    Args:
        sops: of a sample, see :func:`operations`.
        first_macs: of the first synapse in one step.
        model: one of the three.
        spike_bits: n; None: float spikes.
        first_steps: how often the first synapse is run: once for a static image, T if it is run at every step.

    Raises:
        ValueError: another model, or a number below 1.

    Example:
        >>> print(energy(233.84e6, model="hdlif", spike_bits=4))
        0.0263 mJ (hdlif: 0.9 pJ/SOP x 4/32, first synapse not counted)
    """
    check.one_of("model", model, ("spikformer", "hdlif", "bits"))
    check.at_least("first_steps", first_steps)
    if spike_bits is not None:
        check.at_least("spike_bits", spike_bits)
    bits = spike_bits or FLOAT_BITS
    divided = model == "bits" or (model == "hdlif" and 1 < bits < FLOAT_BITS)
    share = bits / FLOAT_BITS if divided else 1.0
    macs = 0.0 if model == "hdlif" else first_macs * first_steps
    words = f"{model}: {PJ_PER_SOP} pJ/SOP" + (f" x {bits}/{FLOAT_BITS}" if divided else "")
    words += ", first synapse " + ("not counted" if model == "hdlif" else f"{PJ_PER_MAC} pJ/MAC x {first_steps}")
    return Energy(1e-9 * (PJ_PER_SOP * sops * share + PJ_PER_MAC * macs), words)


class _Tally:
    """Counts pairs that are not zero; of the first call of a step all of them, apart."""

    def __init__(self) -> None:
        self.first = 0.0
        self.is_first = True

    def begin(self) -> None:
        self.is_first = True

    def rules(self) -> dict[Any, Callable[..., int]]:
        return {
            aten.convolution.default: lambda args, kwargs, out: self._count(
                args[0], args[1], lambda x, w: aten.convolution(x, w, None, *args[3:])
            ),
            aten.mm.default: lambda args, kwargs, out: self._count(args[0], args[1], torch.mm),
            aten.addmm.default: lambda args, kwargs, out: self._count(args[1], args[2], torch.mm),
        }

    def _count(self, x: Tensor, w: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> int:
        if self.is_first:
            self.is_first = False
            self.first += float(product(torch.ones_like(x), torch.ones_like(w)).sum(dtype=torch.float64))
            return 0
        return round(float(product((x != 0).to(x.dtype), (w != 0).to(w.dtype)).sum(dtype=torch.float64)))
