"""Optimizers, and what they are given."""

from sj_online.optim.groups import param_groups

__all__ = ["param_groups"]
