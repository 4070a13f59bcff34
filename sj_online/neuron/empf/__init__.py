"""The neuron of EM-PF ("effective multi-precision firing"), which is also the base of HD-LIF."""
