"""Data sets, split into training, validation and test data."""

from sj_online.data.base import Augmented, DataSet, Shape, describes, own_draws, stack, stack_sequences
from sj_online.data.sampler import EpochSampler, EvaluationSampler

__all__ = [
    "Augmented",
    "DataSet",
    "EpochSampler",
    "EvaluationSampler",
    "Shape",
    "describes",
    "own_draws",
    "stack",
    "stack_sequences",
]
