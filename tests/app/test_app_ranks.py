"""Two ranks train as one process with the joined batch."""

import json
import multiprocessing
import os
import socket
from dataclasses import replace
from functools import partial

import pytest
import small
import torch

from sj_online.app import state
from sj_online.app.callbacks import Checkpoint, Log
from sj_online.app.loop import fit

FORK = multiprocessing.get_context("fork")
DOUBLE = replace(small.RECIPE, fabric=replace(small.RECIPE.fabric, precision="64-true"))
TWO = replace(DOUBLE, fabric=replace(DOUBLE.fabric, devices=2))


class Stop(Checkpoint):
    """Saves after each batch, and ends the run after some."""

    def __init__(self, batches):
        super().__init__(0.0)
        self.batches = batches

    def on_batch(self, run):
        super().on_batch(run)
        if run.progress.batches == self.batches:
            raise SystemExit(0)


def train(recipe, out, stop=None, resume=False, words=None):
    callbacks = [Log(), Stop(stop)] if stop else None
    parts = small.parts(recipe, net=partial(small.network, norm=False, dropout=0.0), callbacks=callbacks)
    if parts.fabric.is_global_zero and words is not None:
        parts.fabric.print = lambda text, **_: words.put(text)
    try:
        fit(parts, out, resume=resume)
    except ValueError as error:
        words.put(f"error: {error}")
        raise SystemExit(2) from error


def rank_of_torchrun(rank, port, arguments):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    train(*arguments)


def ranks(recipe, out, stop=None, resume=False, code=0):
    """Train on two ranks; returns what they said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = FORK.Queue()
    arguments = (recipe, out, stop, resume, words)
    processes = [FORK.Process(target=rank_of_torchrun, args=(rank, port, arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == code
    said = []
    while not words.empty():
        said.append(words.get())
    return said


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_close(out, reference):
    ours, theirs = (state.read(each / "last.ckpt") for each in (out, reference))
    for name, value in theirs["net"].items():
        torch.testing.assert_close(ours["net"][name], value, rtol=0, atol=1e-12, msg=name)
    for line, expected in zip(lines(out), lines(reference), strict=True):
        for name in ("loss", "lr", "train_accuracy", "train_top5", "val_accuracy", "val_top5"):
            assert line[name] == pytest.approx(expected[name], abs=1e-6), name
    ours, theirs = (json.loads((each / "summary.json").read_text()) for each in (out, reference))
    assert ours["test_accuracy"] == theirs["test_accuracy"]  # of 101 images: counting one twice shows
    assert ours["test_top5"] == theirs["test_top5"]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "run"
    train(DOUBLE, out)
    return out


def test_two_ranks_train_as_one_process(tmp_path, one):
    said = ranks(TWO, tmp_path / "run")
    assert_close(tmp_path / "run", one)
    assert [text.split()[1] for text in said if text.startswith("epoch")] == ["1/2", "2/2"]


@pytest.mark.parametrize("stop", [3, 5])  # within an epoch, and after its last batch
def test_resume_on_two_ranks_and_on_one(tmp_path, one, stop):
    with pytest.raises(SystemExit):
        train(DOUBLE, tmp_path / "a", stop=stop)
    said = ranks(TWO, tmp_path / "a", resume=True)
    assert f"resuming after epoch 0, batch {stop}" in said
    assert_close(tmp_path / "a", one)
    ranks(TWO, tmp_path / "b", stop=stop)
    train(DOUBLE, tmp_path / "b", resume=True)
    assert_close(tmp_path / "b", one)


def odd(recipe):
    return replace(recipe, train=replace(recipe.train, batch_size=65))


def test_a_rest_is_said_and_not_mixed_with_another_batch(tmp_path):
    said = ranks(odd(TWO), tmp_path / "run", stop=3)
    assert not said
    with pytest.raises(ValueError, match="batches of 64 images, which do not divide over 1 ranks: resume on as many"):
        fit(small.parts(odd(DOUBLE), net=partial(small.network, norm=False)), tmp_path / "run", resume=True)
    said = ranks(odd(TWO), tmp_path / "run", resume=True)
    assert "65 images do not divide over 2 ranks: a batch has 64" in said
    assert "resuming after epoch 0, batch 3" in said
    assert [line["epoch"] for line in lines(tmp_path / "run")] == [1, 2]


def test_an_error_of_the_first_rank_ends_all(tmp_path, one):
    said = ranks(TWO, one, code=2)
    assert said == [f"error: {one} is in use: it holds a run; give --resume to go on with it, or another --out"] * 2
    (tmp_path / "few").mkdir()
    few = replace(TWO, train=replace(TWO.train, batch_size=1))
    assert (
        ranks(few, tmp_path / "few", code=2) == ["error: train.batch_size=1 is less than the 2 ranks that share it"] * 2
    )
