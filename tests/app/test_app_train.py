"""A run from the command line: what it leaves, and what the options of a recipe do to it."""

import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sj_online.app import reader
from sj_online.app.cli import main


def test_a_run_leaves_these_files(run_dir):
    names = {path.name for path in run_dir.iterdir()} - {".lock"}
    assert names == {"config.yaml", "metrics.jsonl", "summary.json", "last.ckpt", "best.ckpt", "tensorboard"}


def test_summary(run_dir):
    summary = json.loads((run_dir / "summary.json").read_text())
    assert 0.3 < summary["test_accuracy"] <= 1
    assert summary["train_seconds"] > 0
    assert summary["peak_memory_bytes"] > summary["saved_bytes"] > 0
    stem, convs, readout, norms, neurons = 4 * 9, (4 * 8 + 8 * 16) * 9, 16 * 10 + 10, 2 * (4 + 8 + 16), 3 * 2 * 2
    assert summary["parameters"] == stem + convs + readout + norms + neurons


def test_metrics_are_also_in_tensorboard(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[1]["loss"] < lines[0]["loss"]
    assert lines[1]["lr"] == pytest.approx(lines[0]["lr"] / 2)
    board = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    for name in ("loss", "train_accuracy", "val_accuracy", "lr"):
        assert [event.value for event in board.Scalars(name)] == pytest.approx([line[name] for line in lines])


def test_config_is_the_whole_recipe(run_dir):
    config = reader.load(run_dir / "config.yaml")
    assert (config.num_steps, config.train.epochs, config.train.rule.name) == (2, 2, "sltt")
    assert config.model.options == {"width": 4, "stem": "float"}
    assert config.to_yaml() == (run_dir / "config.yaml").read_text()


def test_a_resumed_run_without_options_takes_its_own_recipe(tmp_path, tiny):
    """Trained for one epoch, gone on with to the second: as the run of two, but for the longer schedule's first."""
    out = str(tmp_path / "run")
    assert main(["train", "--out", out, *tiny[:-2], "--train.batch_size=128", "--train.epochs=1"]) == 0
    assert main(["train", "--out", out, "--resume", "--train.epochs=2"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[1]["lr"] == pytest.approx(0.05)
    config = reader.load(tmp_path / "run" / "config.yaml")
    assert (config.model.options, config.train.batch_size, config.train.epochs) == (
        {"width": 4, "stem": "float"},
        128,
        2,
    )


def test_resume_leaves_a_finished_run_alone(run_dir, tiny, capsys):
    before = {path: path.stat().st_mtime_ns for path in run_dir.iterdir()}
    assert main(["train", "--out", str(run_dir), *tiny, "--resume"]) == 0
    assert "is finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run_dir.iterdir()} == before


def test_resume_refuses_another_recipe(run_dir, tiny, capsys):
    assert main(["train", "--out", str(run_dir), *tiny, "--train.optimizer.options.lr=0.5", "--resume"]) == 2
    assert "was begun with another recipe (lr: 0.1)" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--fabric.threads=2", "--data=elsewhere", "--train.workers=1"])
def test_resume_may_change_where_it_runs(run_dir, tiny, capsys, option):
    assert main(["train", "--out", str(run_dir), *tiny, option, "--resume"]) == 0
    assert "is finished" in capsys.readouterr().out


@pytest.mark.slow
def test_the_default_recipe_reaches_its_accuracy(tmp_path):
    """A schedule, a weight decay or an augmentation that is not applied leaves it above 98 %; no training does not."""
    assert main(["train", "--out", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["test_accuracy"] > 0.98
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert state["progress"]["epoch"] == 12
