"""Packed deployment: one bit per binary weight, two per ternary one, in the file and in memory."""

from sj_online.deploy.file import export, load, read_header

__all__ = ["export", "load", "read_header"]
