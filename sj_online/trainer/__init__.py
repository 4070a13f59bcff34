"""Training rules: each trains any SpikingJelly network, and all share one loop."""

from sj_online.state import replaying
from sj_online.trainer.base import Result, Rule, Window
from sj_online.trainer.bptt import BPTT
from sj_online.trainer.decolle import DECOLLE
from sj_online.trainer.eprop import EProp
from sj_online.trainer.fptt import FPTT
from sj_online.trainer.ndot import NDOT
from sj_online.trainer.ottt import OTTT
from sj_online.trainer.random_bp import RandomBP
from sj_online.trainer.rate_bp import RateBP
from sj_online.trainer.sltt import SLTT
from sj_online.trainer.stol import STOL
from sj_online.trainer.time_slicing import TimeSlicing
from sj_online.trainer.traced import TracedRule

__all__ = [
    "BPTT",
    "DECOLLE",
    "FPTT",
    "NDOT",
    "OTTT",
    "SLTT",
    "STOL",
    "EProp",
    "RandomBP",
    "RateBP",
    "Result",
    "Rule",
    "TimeSlicing",
    "TracedRule",
    "Window",
    "replaying",
]
