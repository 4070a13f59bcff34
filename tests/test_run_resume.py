import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sj_online.cli import main


def weights(directory):
    state = torch.load(directory / "last.ckpt", weights_only=True)
    return {**state["net"], **{f"momentum {k}": v["momentum_buffer"] for k, v in state["optimizer"]["state"].items()}}


def metrics(directory):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def assert_same_run(directory, reference):
    for name, value in weights(reference).items():
        assert torch.equal(weights(directory)[name], value), name
    assert metrics(directory) == metrics(reference)
    ours, theirs = (json.loads((each / "summary.json").read_text()) for each in (directory, reference))
    for name in ("test_accuracy", "best_epoch", "best_val_accuracy", "saved_bytes", "parameters", "epochs"):
        assert ours[name] == theirs[name], name


def train_until_killed(arguments, name, nth):
    """Train; SIGKILL just before the ``nth`` complete file ``name`` takes its place."""
    replace, count = Path.replace, 0

    def replace_or_die(temporary, target):
        nonlocal count
        count += target.name == name
        if target.name == name and count == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(temporary, target)

    Path.replace = replace_or_die
    main(arguments)


def killed(arguments, name, nth):
    child = multiprocessing.get_context("fork").Process(target=train_until_killed, args=(arguments, name, nth))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("name", "nth"),
    [
        ("config.yaml", 1),
        ("metrics.jsonl", 1),
        ("best.ckpt", 1),
        ("last.ckpt", 1),
        ("last.ckpt", 2),
        ("summary.json", 1),
    ],
)
def test_killed_at_any_write_and_resumed_is_the_same_run(tmp_path, run_dir, tiny, name, nth):
    arguments = ["train", "--out", str(tmp_path / "run"), *tiny]
    killed(arguments, name, nth)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert main([*arguments, "--resume"]) == 0
    assert_same_run(tmp_path / "run", run_dir)


@pytest.mark.parametrize("rule", ["random_bp", "fptt"])
def test_rules_that_draw_or_remember_resume_too(tmp_path, tiny, rule):
    options = [*tiny, "--train.rule", rule, "--train.options={}"]
    whole, broken = (["train", "--out", str(tmp_path / name), *options] for name in ("whole", "broken"))
    assert main(whole) == 0
    killed(broken, "last.ckpt", 2)
    assert main([*broken, "--resume"]) == 0
    assert_same_run(tmp_path / "broken", tmp_path / "whole")


def test_a_directory_is_in_use_until_its_process_is_killed(tmp_path, run_dir, tiny, capsys):
    out = tmp_path / "run"
    arguments = ["train", "--out", str(out), *tiny]
    command = [sys.executable, "-c", "import sys; from sj_online.cli import main; sys.exit(main())"]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline().startswith("small_vgg on digits")
        process.send_signal(signal.SIGSTOP)
        assert main([*arguments, "--resume"]) == 2
        assert f"{out} is in use: another process is training there" in capsys.readouterr().err
        process.send_signal(signal.SIGCONT)
        assert process.stdout.readline().startswith("epoch 1/2")
    finally:
        process.kill()
        process.wait()
    assert main([*arguments, "--resume"]) == 0
    assert_same_run(out, run_dir)


def test_resume_leaves_a_finished_run_alone(run_dir, tiny, capsys):
    before = {path: path.stat().st_mtime_ns for path in run_dir.iterdir()}
    assert main(["train", "--out", str(run_dir), *tiny, "--resume"]) == 0
    assert "is finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run_dir.iterdir()} == before


def test_resume_without_options_takes_the_recipe_of_the_run(tmp_path, run_dir, tiny):
    out = shutil.copytree(run_dir, tmp_path / "run")
    (out / "summary.json").unlink()
    assert main(["train", "--out", str(out), "--resume"]) == 0
    assert_same_run(out, run_dir)


def test_resume_refuses_another_recipe(run_dir, tiny, capsys):
    assert main(["train", "--out", str(run_dir), *tiny, "--train.lr=0.5", "--resume"]) == 2
    assert "was begun with another recipe (lr: 0.1)" in capsys.readouterr().err


def test_resume_may_change_the_device(tmp_path, run_dir, tiny):
    out = shutil.copytree(run_dir, tmp_path / "run")
    (out / "summary.json").unlink()
    assert main(["train", "--out", str(out), *tiny, "--fabric.accelerator=cpu", "--fabric.threads=2", "--resume"]) == 0
    assert "accelerator: cpu" in (out / "config.yaml").read_text()
    assert_same_run(out, run_dir)


def test_another_seed_is_another_run(tmp_path, run_dir, tiny):
    """The control of the comparisons above."""
    assert main(["train", "--out", str(tmp_path / "run"), *tiny, "--seed=1"]) == 0
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "run", run_dir)
