"""Synapses and small layers of the papers, step-mode aware as the host's."""

from sj_online.layer.feedback import Feedback
from sj_online.layer.norm import StepBatchNorm2d
from sj_online.layer.quant import (
    BinaryConv1d,
    BinaryConv2d,
    BinaryLinear,
    TernaryConv1d,
    TernaryConv2d,
    TernaryLinear,
)
from sj_online.layer.seca import SECA
from sj_online.layer.synapse import is_synapse
from sj_online.layer.ws import ScaledWSConv2d, ScaledWSLinear

__all__ = [
    "SECA",
    "BinaryConv1d",
    "BinaryConv2d",
    "BinaryLinear",
    "Feedback",
    "ScaledWSConv2d",
    "ScaledWSLinear",
    "StepBatchNorm2d",
    "TernaryConv1d",
    "TernaryConv2d",
    "TernaryLinear",
    "is_synapse",
]
