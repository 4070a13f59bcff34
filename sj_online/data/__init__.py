"""Data sets, split into training, validation and test data."""

from sj_online.data.static import Images, Splits, digits

__all__ = ["Images", "Splits", "digits"]
