"""Packed deployment: one bit per binary weight, two per ternary one, in the file and in memory."""

from sj_online.deploy.file import export, load, read_header
from sj_online.deploy.fold import fold

__all__ = ["export", "fold", "load", "read_header"]
