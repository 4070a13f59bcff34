"""Training rules: each trains any SpikingJelly network, and all share one loop."""

from sj_online.trainer.base import Result, Rule, Window
from sj_online.trainer.bptt import BPTT
from sj_online.trainer.groups import param_groups
from sj_online.trainer.ottt import OTTT
from sj_online.trainer.random_bp import RandomBP
from sj_online.trainer.sltt import SLTT

__all__ = ["BPTT", "OTTT", "SLTT", "RandomBP", "Result", "Rule", "Window", "param_groups"]
