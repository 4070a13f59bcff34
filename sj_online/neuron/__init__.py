"""The neurons of the papers, on SpikingJelly's contract."""

from . import host
from .backend import set_backend
from .base import OnlineNode
from .empf.fold import fold_membrane_norm
from .empf.node import EMPFNode
from .hdlif import HDLIFNode
from .lif import ottt_lif, sltt_lif, stol_lif
from .lmh.node import LMHNode
from .qcfs import QCFS

__all__ = [
    "EMPFNode",
    "HDLIFNode",
    "LMHNode",
    "OnlineNode",
    "QCFS",
    "fold_membrane_norm",
    "ottt_lif",
    "set_backend",
    "sltt_lif",
    "stol_lif",
]

host.register()
