"""Synapses and small layers of the papers, step-mode aware as the host's."""

from .quant import BinaryConv2d, BinaryLinear

__all__ = ["BinaryConv2d", "BinaryLinear"]
