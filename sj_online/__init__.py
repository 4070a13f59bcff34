"""Online training and 1-bit deployment of spiking neural networks, as a plugin to SpikingJelly."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["predict"]


def __getattr__(name: str) -> Any:
    """Import :func:`predict` on its first use, so that asking for help or the version imports no torch."""
    if name == "predict":
        from .prediction import predict

        return predict
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
