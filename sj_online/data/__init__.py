"""Data sets, split into training, validation and test data."""

from sj_online.data.base import Augmented, DataSet, Shape, describes, own_draws, stack, stack_sequences
from sj_online.data.sampler import EpochSampler, EvaluationSampler
from sj_online.data.static import Images, Splits, digits

__all__ = [
    "Augmented",
    "DataSet",
    "EpochSampler",
    "EvaluationSampler",
    "Images",
    "Shape",
    "Splits",
    "describes",
    "digits",
    "own_draws",
    "stack",
    "stack_sequences",
]
