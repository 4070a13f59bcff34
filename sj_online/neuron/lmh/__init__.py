"""The LM-H neuron (learnable multi-hierarchical: a dendrite and a soma)."""
