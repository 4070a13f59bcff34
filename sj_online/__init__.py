"""Online training and 1-bit deployment of spiking neural networks, as a plugin to SpikingJelly."""

__version__ = "0.1.0"
