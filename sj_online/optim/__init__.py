"""Optimizers, and what they are given."""

from sj_online.optim.bso import BSO, binary_parameters, bso
from sj_online.optim.groups import param_groups

__all__ = ["BSO", "binary_parameters", "bso", "param_groups"]
