"""A run that is killed at any moment and resumed is, bit for bit, the run that was not."""

import json
import multiprocessing
import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import small
import torch

from sj_online.app import state
from sj_online.app.loop import fit
from sj_online.trainer import FPTT, RandomBP

FORK = multiprocessing.get_context("fork")
RULES = {"sltt": {}, "fptt": {"rule": FPTT}, "random_bp": {"rule": RandomBP}}
OF_THE_MACHINE = {"seconds", "images_per_second", "waiting", "peak_memory_bytes", "train_seconds"}


def train(out, resume=False, workers=0, rule="sltt", **train):
    fit(small.parts(small.recipe(workers=workers, **train), **RULES[rule]), out, resume=resume)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    start = time.perf_counter()
    for rule in RULES:
        train(out / rule, rule=rule)
    return out, (time.perf_counter() - start) / len(RULES)


def flat(value, name=""):
    if isinstance(value, dict | list | tuple):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flat(each, f"{name}.{key}")
    else:
        yield name, value


def everything(out):
    """All that a run leaves but for what the clock and the machine say."""
    for which in ("last", "best"):
        for name, value in flat(state.read(out / f"{which}.ckpt"), which):
            if "seconds" not in name:
                yield name, value.tolist() if isinstance(value, torch.Tensor) else value
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in [*lines, json.loads((out / "summary.json").read_text())]:
        yield from ((name, value) for name, value in line.items() if name not in OF_THE_MACHINE)


def assert_same_run(out, reference):
    ours, theirs = list(everything(out)), list(everything(reference))
    assert [name for name, _ in ours] == [name for name, _ in theirs]
    for (name, value), (_, expected) in zip(ours, theirs, strict=True):
        assert value == expected, name
    assert len(ours) > 50


def killed_after(seconds, target):
    """Run ``target`` in a process that is killed after so long; returns whether it was still running."""
    child = FORK.Process(target=target)
    child.start()
    child.join(seconds)
    alive = child.is_alive()
    child.kill()
    child.join()
    assert alive or child.exitcode == 0
    return alive


def at_random(tmp_path, whole, seed, workers):
    reference, seconds = whole
    moment = random.Random(seed).uniform(0.1, 1.0)
    for n in range(3):  # and again on the way
        killed_after(moment * (seconds + workers * 0.2), partial(train, tmp_path / "run", n > 0, workers))
    train(tmp_path / "run", (tmp_path / "run").exists(), 0)
    assert_same_run(tmp_path / "run", reference / "sltt")


@pytest.mark.parametrize(("seed", "workers"), [(1, 0), (2, 0), (3, 2)])
def test_killed_at_a_random_moment(tmp_path, whole, seed, workers):
    at_random(tmp_path, whole, seed, workers)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4, 24))
def test_killed_at_many_random_moments(tmp_path, whole, seed):
    at_random(tmp_path, whole, seed, workers=seed % 3)


def die_at(name, nth, out, rule):
    """Train; SIGKILL just before the ``nth`` complete file ``name`` takes its place."""
    replace, count = Path.replace, 0

    def replace_or_die(temporary, target):
        nonlocal count
        count += target.name == name
        if target.name == name and count == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(temporary, target)

    Path.replace = replace_or_die
    train(out, rule=rule)


@pytest.mark.parametrize(
    ("name", "nth", "rule"),
    [
        ("config.yaml", 1, "sltt"),
        ("last.ckpt", 1, "sltt"),  # before the first batch
        ("last.ckpt", 4, "random_bp"),  # within the first epoch
        ("last.ckpt", 10, "fptt"),  # within the second
        ("best.ckpt", 1, "sltt"),
        ("last.ckpt", 7, "sltt"),  # after the first epoch
        ("summary.json", 1, "sltt"),
    ],
)
def test_killed_at_any_write(tmp_path, whole, name, nth, rule):
    out = tmp_path / "run"
    child = FORK.Process(target=die_at, args=(name, nth, out, rule))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert not (out / "summary.json").exists()
    train(out, resume=True, rule=rule)
    assert_same_run(out, whole[0] / rule)
    assert not [path for path in out.iterdir() if path.name.endswith(".tmp")]


def test_workers_change_nothing(tmp_path, whole):
    train(tmp_path / "run", workers=2)
    assert_same_run(tmp_path / "run", whole[0] / "sltt")


def test_another_seed_is_another_run(tmp_path, whole):
    """The control of the comparisons above."""
    fit(small.parts(small.replace(small.recipe(), seed=1)), tmp_path / "run")
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "run", whole[0] / "sltt")
