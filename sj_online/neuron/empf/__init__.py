"""The neuron of EM-PF ("efficient multi-precision firing"), which is also the base of HD-LIF."""
