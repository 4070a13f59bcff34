"""Generators of every kind are put back to where they were kept, as often as asked."""

import random

import numpy as np
import pytest
import torch

from sj_online.randomness import GENERATORS, KeptGenerator, Randomness

DRAWS = {
    torch.Generator: lambda g: torch.rand((), generator=g).item(),
    random.Random: lambda g: g.random(),
    np.random.Generator: lambda g: g.random(),
    np.random.RandomState: lambda g: g.rand(),
}
MAKE = {np.random.Generator: np.random.default_rng}


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_held_generator(kind):
    generator, draw = MAKE.get(kind, kind)(), DRAWS[kind]
    draw(generator)
    kept = KeptGenerator(generator)
    drawn = [draw(generator), draw(generator)]
    assert drawn[0] != drawn[1]
    for _ in range(2):
        assert kept.put() is generator
        assert [draw(generator), draw(generator)] == drawn


def test_the_generators_of_the_process():
    kept = Randomness(torch.device("cpu"))
    drawn = [torch.rand(()).item(), random.random(), np.random.rand()]
    again = [torch.rand(()).item(), random.random(), np.random.rand()]
    kept.put()
    assert [torch.rand(()).item(), random.random(), np.random.rand()] == drawn
    assert all(a != b for a, b in zip(drawn, again, strict=True))
