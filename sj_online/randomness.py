"""Random generators and their states: those of the process, and those that somebody holds."""

import random
from typing import Any

import numpy as np
import torch

from sj_online import host

GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)


class KeptGenerator:
    """A generator and its state.

    Args:
        generator: one of torch, Python or NumPy.
    """

    def __init__(self, generator: Any) -> None:
        self.generator = generator
        self.state = self._state()

    def _state(self) -> Any:
        match self.generator:
            case torch.Generator() | np.random.RandomState():
                return self.generator.get_state()
            case random.Random():
                return self.generator.getstate()
        return self.generator.bit_generator.state

    def put(self) -> Any:
        """Put the generator back to it, and return it."""
        match self.generator:
            case torch.Generator() | np.random.RandomState():
                self.generator.set_state(self.state)
            case random.Random():
                self.generator.setstate(self.state)
            case _:
                self.generator.bit_generator.state = self.state
        return self.generator


class Randomness:
    """The states of the process's random generators: torch's, Python's and NumPy's."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.torch = host.random_state(device)
        self.python = random.getstate()
        self.numpy = np.random.get_state()

    def put(self) -> None:
        """Put the generators back to it."""
        host.set_random_state(self.torch, self.device)
        random.setstate(self.python)
        np.random.set_state(self.numpy)
