"""Packed deployment: one bit per binary weight, two per ternary one, in the file and in memory."""

from sj_online.deploy.choose import report
from sj_online.deploy.file import export, load, read_header
from sj_online.deploy.fold import fold_norms
from sj_online.deploy.live import stream
from sj_online.deploy.size import size_report

__all__ = ["export", "fold_norms", "load", "read_header", "report", "size_report", "stream"]
