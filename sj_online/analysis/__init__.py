"""Measurements of gradients, memory and cost."""

from sj_online.analysis.memory import SavedBytes

__all__ = ["SavedBytes"]
