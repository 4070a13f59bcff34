"""Hostile recipes, configurations and packed files: no code runs, no process starts, nothing hangs, one line each.

A fixed sample runs by default, all of them with ``-m slow``.
"""

import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest
from hostile import HEADERS, POPEN, WRITTEN, exchange, mutant

from sj_online.app import loop
from sj_online.app.cli import main

SPAWNS = {"os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "subprocess.Popen"}


@pytest.fixture
def survives(tmp_path, monkeypatch, capfd):
    """Run a command that may fail only in one line of ours; returns its code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "fit", lambda *args, **kwargs: None)
    spawned = []
    WATCH.append(spawned)
    (tmp_path / "work").mkdir()

    def run(*arguments):
        monkeypatch.chdir(tmp_path / "work")
        signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
        signal.alarm(60)
        try:
            code = main([str(argument) for argument in arguments])
        finally:
            signal.alarm(0)
        error = capfd.readouterr().err
        assert code in (0, 2)
        assert error.count("\n") == (code == 2), error
        assert code == 0 or error.startswith("sj-online: error: ")
        assert "traceback" not in error.lower()
        assert len(error) < 2500
        assert spawned == []
        assert list((tmp_path / "work").iterdir()) == []
        return code

    yield run
    WATCH.remove(spawned)


WATCH = []


def _hook(event, args):
    if WATCH and event in SPAWNS:
        WATCH[-1].append((event, args))


sys.addaudithook(_hook)


def sampled(cases, every):
    """All cases, those out of the sample marked slow."""
    return [
        pytest.param(case, marks=[] if i % every == 0 else pytest.mark.slow, id=str(i)) for i, case in enumerate(cases)
    ]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("text", sampled(WRITTEN, 12))
def test_recipe(tmp_path, survives, text):
    assert survives("train", "--recipe", write(tmp_path / "x.yaml", text), "--out", tmp_path / "run") == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", sampled(WRITTEN, 20))
def test_configuration_of_a_run(tmp_path, run_dir, survives, text):
    run = shutil.copytree(run_dir, tmp_path / "run")
    write(run / "config.yaml", text)
    if survives("eval", run) == 0:
        assert text.startswith(("train", "fabric"))  # what evaluation does not ask for
    assert survives("train", "--out", run, "--resume") == 2


@pytest.mark.parametrize("seed", sampled(range(80), 14))
def test_mutated_recipe(tmp_path, survives, seed):
    survives("train", "--recipe", write(tmp_path / "x.yaml", mutant(seed)), "--out", tmp_path / "run")


@pytest.fixture(scope="module")
def packed(run_dir, tmp_path_factory):
    file = tmp_path_factory.mktemp("packed") / "net.safetensors"
    assert main(["export", str(run_dir), "--to", str(file)]) == 0
    return file.read_bytes()


def with_header(content, edit):
    length = int.from_bytes(content[:8], "little")
    outer = json.loads(content[8 : 8 + length])
    header = json.loads(outer["__metadata__"]["sj_online"])
    edit(header)
    outer["__metadata__"] = {"sj_online": json.dumps(header)}
    text = json.dumps(outer).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


@pytest.mark.parametrize("edit", sampled(HEADERS, 7))
def test_packed_file(tmp_path, survives, packed, edit):
    file = write(tmp_path / "x.safetensors", with_header(packed, edit))
    accepted = survives("eval", file) == 0
    header = {"metadata": {}, "kwargs": {}}
    try:
        edit(header)
    except KeyError:
        header = {"metadata": {}}
    assert accepted == (header.get("metadata") == POPEN)  # what is not asked for is not read


@pytest.mark.parametrize("seed", sampled(range(40), 14))
def test_mutated_packed_file(tmp_path, survives, packed, seed):
    def edit(header):
        draw = random.Random(seed)
        for _ in range(draw.randint(1, 3)):
            inner = [header[key] for key in ("kwargs", "metadata") if isinstance(header[key], dict) and header[key]]
            exchange(draw.choice([header, *inner]), draw)

    survives("eval", write(tmp_path / "x.safetensors", with_header(packed, edit)))


def test_nothing_that_steers_a_process_is_taken_from_a_packed_file(tmp_path, packed, survives):
    """The control: the file is evaluated, whatever it says of workers, threads and devices."""
    steering = {
        "train": {"workers": 99},
        "fabric": {"threads": 999, "devices": 99},
        "recipe": {"fabric": {"devices": 99}},
    }
    file = write(tmp_path / "x.safetensors", with_header(packed, lambda header: header["metadata"].update(steering)))
    assert survives("eval", file) == 0


def test_the_watch_sees_a_process(survives):
    """The control of all of the above."""
    os.posix_spawn("/bin/true", ["true"], {})
    os.wait()
    assert [event for event, _ in WATCH[-1]] == ["os.posix_spawn"]
    WATCH[-1].clear()
    Path("work/hacked").touch()
    with pytest.raises(AssertionError):
        survives("list", "recipes")
