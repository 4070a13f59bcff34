"""The neurons of the papers, on SpikingJelly's contract."""

from .base import OnlineNode, set_backend
from .empf.node import EMPFNode
from .hdlif import HDLIFNode

__all__ = ["EMPFNode", "HDLIFNode", "OnlineNode", "set_backend"]
