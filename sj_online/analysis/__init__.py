"""Measurements of gradients, memory and cost."""

from sj_online.analysis.cost import Cost, network_cost, neuron_operations
from sj_online.analysis.energy import Energy, Operations, energy, operations
from sj_online.analysis.memory import SavedBytes

__all__ = [
    "Cost",
    "Energy",
    "Operations",
    "SavedBytes",
    "energy",
    "network_cost",
    "neuron_operations",
    "operations",
]
