"""Online training and 1-bit deployment of spiking neural networks, as a plugin to SpikingJelly."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["predict"]

_LAZY = ("analysis", "registry", "testing")


def __getattr__(name: str) -> Any:
    """Import what is asked for on its first use: importing the package alone imports no torch."""
    if name == "predict":
        return import_module("sj_online.prediction").predict
    if name in _LAZY:
        return import_module(f"sj_online.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
