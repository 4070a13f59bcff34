"""Change a network in place: its neurons, its activations, its synapses."""

from ..layer.replace import quantize_synapses
from .ann import qcfs_to_lmh, relu_to_qcfs
from .neurons import Swap, swap_neurons

__all__ = ["Swap", "qcfs_to_lmh", "quantize_synapses", "relu_to_qcfs", "swap_neurons"]
