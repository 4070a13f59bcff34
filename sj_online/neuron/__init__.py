"""The neurons of the papers, on SpikingJelly's contract."""

from .base import OnlineNode, set_backend
from .empf.node import EMPFNode

__all__ = ["EMPFNode", "OnlineNode", "set_backend"]
