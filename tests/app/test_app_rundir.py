import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sj_online.app.rundir import RunDirectory, kept_errors
from sj_online.files import append_line, replacing, whole_lines


def claimed(path, resume=False):
    with RunDirectory(path).claim("seed: 0\n", resume):
        return sorted(each.name for each in Path(path).iterdir())


HOLD = """
import os, sys, time
from sj_online.app.rundir import RunDirectory
with RunDirectory(sys.argv[1]).claim("", True):
    if os.fork() == 0:
        print(os.getpid(), flush=True)  # the worker says that it runs: only then has it let go of the lock
    time.sleep(60)
"""


def test_the_lock_is_held_by_the_process_and_not_by_its_workers(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    worker = int(holder.stdout.readline())
    try:
        with pytest.raises(ValueError, match=f"{tmp_path} is in use: another process"):
            claimed(tmp_path, resume=True)
        holder.kill()
        holder.wait()
        os.kill(worker, 0)  # the worker is still there
        assert "config.yaml" in claimed(tmp_path, resume=True)
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_process_does_not_claim_twice_and_may_claim_again(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    ask = [sys.executable, "-c", HOLD.replace("sleep(60)", "sleep(0)"), str(tmp_path / "run")]
    with RunDirectory(tmp_path / "run").claim("", False):
        for path in ("run", "link"):
            with pytest.raises(ValueError, match="another process is training"):
                claimed(tmp_path / path, resume=True)
        assert b"another process is training" in subprocess.run(ask, capture_output=True).stderr
    assert claimed(tmp_path / "run", resume=True) == [".lock", "config.yaml"]


def test_the_configuration_is_written_in_new_folders(tmp_path):
    claimed(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "config.yaml").read_text() == "seed: 0\n"


def test_left_temporary_files_are_removed_and_others_are_not(tmp_path):
    for name in (".last.ckpt.tmp", ".hidden", "notes.tmp"):
        (tmp_path / name).write_text("half")
    assert claimed(tmp_path) == [".hidden", ".lock", "config.yaml", "notes.tmp"]


@pytest.mark.parametrize(
    ("there", "resume", "message"),
    [
        (["config.yaml"], False, "is in use: it holds a run; give --resume"),
        (["last.ckpt"], False, "holds last.ckpt but no config.yaml"),
        (["last.ckpt"], True, "holds last.ckpt but no config.yaml"),
        (["metrics.jsonl"], True, "holds metrics.jsonl but no config.yaml"),
        (["summary.json"], False, "holds summary.json but no config.yaml"),
        (["config.yaml", "best.ckpt"], True, "holds best.ckpt but no last.ckpt"),
        (["config.yaml", "metrics.jsonl"], True, "holds metrics.jsonl but no last.ckpt"),
    ],
)
def test_a_run_is_never_started_over(tmp_path, there, resume, message):
    for name in there:
        (tmp_path / name).write_text("what was there")
    with pytest.raises(ValueError, match=message):
        claimed(tmp_path, resume)
    assert all((tmp_path / name).read_text() == "what was there" for name in there)


@pytest.mark.parametrize("there", [[], ["config.yaml"], ["config.yaml", "last.ckpt", "metrics.jsonl"]])
def test_what_can_be_resumed(tmp_path, there):
    for name in there:
        (tmp_path / name).write_text("")
    assert set(claimed(tmp_path, resume=True)) == {".lock", "config.yaml", *there}


def test_metrics_are_cut_to_the_epochs_of_the_checkpoint_and_a_torn_line_goes(tmp_path):
    directory = RunDirectory(tmp_path)
    lines = [json.dumps({"epoch": epoch, "loss": 0.5}) for epoch in (1, 2, 3)]
    directory.metrics.write_text("\n".join(lines) + '\n{"epoch": 2, "lo')
    directory.begin(2, 3)
    assert directory.metrics.read_text() == "\n".join(lines[:2]) + "\n"
    directory.begin(0, 3)
    assert directory.metrics.read_text() == ""


def test_a_run_that_goes_on_is_not_finished(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.finish({})
    directory.begin(2, 2)
    assert directory.summary.exists()
    directory.begin(2, 3)
    assert not directory.summary.exists()


@pytest.mark.parametrize("line", [b"\0\0\0\0", b"[1]", b"{}", b'{"epoch": "two"}', b"\xff\xfe"])
def test_lines_that_are_no_metrics_go(tmp_path, line):
    directory = RunDirectory(tmp_path)
    directory.metrics.write_bytes(b'{"epoch": 1}\n' + line + b"\n")
    directory.begin(5, 5)
    assert directory.metrics.read_bytes() == b'{"epoch": 1}\n'


def test_metrics_go_to_the_file_and_to_tensorboard_and_purge_what_is_done_anew(tmp_path):
    directory = RunDirectory(tmp_path)
    for epoch, loss in ((1, 0.75), (2, 0.5)):
        with directory.claim("", resume=True):
            directory.log({"epoch": epoch, "loss": loss})
            seen = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
            assert seen[-1].value == loss  # before the run ends, in which way ever
            directory.checkpoint("last").touch()
        directory = RunDirectory(tmp_path)
    with directory.claim("", resume=True):
        directory.begin(1, 2)
        directory.log({"epoch": 2, "loss": 0.25})
    assert [json.loads(line) for line in directory.metrics.read_text().splitlines()] == [
        {"epoch": 1, "loss": 0.75},
        {"epoch": 2, "loss": 0.25},
    ]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(1, 0.75), (2, 0.25)]
    assert board.Tags()["scalars"] == ["loss"]


@pytest.mark.parametrize("name", ["a[0-9]*?", "s3:x", "~", "file:x"])
def test_a_directory_means_the_same_place_all_run_long(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    directory = RunDirectory(name)
    with directory.claim("", False):
        monkeypatch.chdir("/")
        directory.log({"epoch": 1, "loss": 1.0})
        directory.finish({"test_accuracy": 0.5})
    assert {each.name for each in (tmp_path / name).iterdir()} == {
        ".lock", "config.yaml", "metrics.jsonl", "summary.json", "tensorboard"
    }  # fmt: skip
    assert json.loads((tmp_path / name / "summary.json").read_text()) == {"test_accuracy": 0.5}
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_a_foreign_error_keeps_its_traceback(tmp_path):
    directory = RunDirectory(tmp_path)
    with pytest.raises(ValueError, match=r"KeyError: 'x' \(the traceback is in .*/error.log\)"), kept_errors(directory):
        {}["x"]
    assert "KeyError: 'x'" in directory.errors.read_text()
    assert "line" in directory.errors.read_text()
    with pytest.raises(ValueError, match="error.3.log"), kept_errors(directory, rank=3):
        int("three")
    assert "ValueError: invalid literal" in (tmp_path / "error.3.log").read_text()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("one\n two\n", "one two"),
        ("", ""),
        ("Caught in worker 0.\nOriginal Traceback (most recent call last):\n  File x\nKeyError: 7\n", "KeyError: 7"),
        ("x" * 1000, "x" * 300),
    ],
)
def test_of_a_long_error_one_line_is_said(tmp_path, text, line):
    directory = RunDirectory(tmp_path)
    with pytest.raises(ValueError) as error, kept_errors(directory):
        raise RuntimeError(text)
    assert str(error.value) == f"RuntimeError: {line} (the traceback is in {directory.errors})"


def test_an_error_of_ours_stays_as_it_is(tmp_path):
    directory = RunDirectory(tmp_path)
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(ValueError, match="no config.yaml"), kept_errors(directory):
        directory.check_free(resume=False)
    with pytest.raises(BrokenPipeError), kept_errors(directory):
        raise BrokenPipeError
    assert not directory.errors.exists()


def test_an_interrupted_save_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(target) as temporary:
        temporary.write_text("new")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_lines_are_on_disk_before_the_next_thing_happens(tmp_path, monkeypatch):
    synced, seen = [], []
    real = os.fsync

    def fsync(handle):
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        seen.append(whole_lines(tmp_path / "a"))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    handles = os.listdir("/proc/self/fd")
    append_line(tmp_path / "a", "one")
    assert synced == [str(tmp_path / "a"), str(tmp_path)]
    append_line(tmp_path / "a", "two")
    assert synced == [str(tmp_path / "a"), str(tmp_path), str(tmp_path / "a")]
    with replacing(tmp_path / "b") as temporary:
        temporary.write_text("")
    assert synced[3:] == [str(temporary), str(tmp_path)]
    assert whole_lines(tmp_path / "a") == ["one", "two"]
    assert seen[0] == ["one"] and seen[2] == ["one", "two"]  # nothing is left in this process's buffer
    assert os.listdir("/proc/self/fd") == handles
