"""OTTT: online training through time, by a trace of what enters each synapse."""

from typing import Unpack

from torch import nn, optim

from sj_online.topology import Place
from sj_online.trainer.options import TracedOptions
from sj_online.trainer.synapse import Trace
from sj_online.trainer.traced import TracedRule


class OTTT(TracedRule):
    r"""Online training through time: gradients of one step, weight gradients from presynaptic traces (OTTT, Eq. 4-5).

    :math:`\nabla_W L[t] = g_u[t] \, \hat a[t]^\top` with the trace :math:`\hat a[t] = \lambda \hat a[t-1] + s[t]` of
    what enters the synapse (behind a dropout, say), where :math:`\lambda` is the leak of the neuron that receives its
    current. Equal to BPTT in a last layer that spikes (soft reset, detached), approximate below. A readout has no
    membrane behind it; it is traced with the leak of the neurons that feed it, as the authors do.

    ``update='sequence'`` is the paper's OTTT_A, ``'step'`` its OTTT_O. ``exact=True`` is what Eq. 4 says of every
    layer: inputs and biases are traced, and a readout, which has no membrane, is not. The default is what the authors
    run, the other way round; on data with time the equations are the better choice.

    Args:
        net: see :class:`~sj_online.trainer.traced.TracedRule`, as the arguments not named here.
        optimizer: see there.
        exact: the traces of the equations; else the authors'. What the next three say goes before.
        trace_input: trace the input of the synapses that no neuron feeds.
        trace_bias: trace the constant input of biases.
        trace_readout: trace the input of the synapses that reach no neuron.
        options: see there.

    Raises:
        ValueError: an argument out of range; at the first step, synapses that need a ``trace_decay``.

    Example:
        >>> import torch
        >>> from spikingjelly.activation_based import layer, neuron
        >>> net = nn.Sequential(layer.Linear(8, 4), neuron.LIFNode(), layer.Linear(4, 3))
        >>> rule = OTTT(net, torch.optim.SGD(net.parameters(), lr=0.1), num_steps=6)
        >>> result = rule.train_step(torch.rand(2, 8), torch.tensor([0, 2]))
        >>> print(rule)
        OTTT (OTTT (Xiao et al. 2022); approximate; horizon 1 step; update per sequence; loss mean over steps)
          0  Linear  input    spike
          2  Linear  readout  traced, leak 0.5 of 1
    """

    paper = "OTTT (Xiao et al. 2022)"
    exact = False

    def __init__(
        self,
        net: nn.Module,
        optimizer: optim.Optimizer,
        *,
        exact: bool = False,
        trace_input: bool | None = None,
        trace_bias: bool | None = None,
        trace_readout: bool | None = None,
        **options: Unpack[TracedOptions],
    ) -> None:
        self.trace_input = exact if trace_input is None else trace_input
        self.trace_bias = exact if trace_bias is None else trace_bias
        self.trace_readout = not exact if trace_readout is None else trace_readout
        super().__init__(net, optimizer, **options)

    def synapse(self, place: Place) -> Trace | None:
        """A trace of the weight, of the bias, or of both."""
        weight = {"input": self.trace_input, "readout": self.trace_readout}.get(place.role, True)
        bias = self.trace_bias and (weight or place.role == "input")
        return Trace(weight, bias) if weight or bias else None
