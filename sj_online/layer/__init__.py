"""Synapses and small layers of the papers, step-mode aware as the host's."""

from sj_online.layer.quant import BinaryConv2d, BinaryLinear

__all__ = ["BinaryConv2d", "BinaryLinear"]
