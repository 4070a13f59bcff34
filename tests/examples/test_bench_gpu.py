"""The dry run of what is measured on a GPU."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def script():
    return runpy.run_path(str(EXAMPLES / "bench_gpu.py"))


def test_the_dry_run_names_every_part_and_measures_on_the_cpu(script, monkeypatch, capsys):
    monkeypatch.setattr(script["subprocess"], "run", lambda *_, **__: pytest.fail("a dry run starts nothing"))
    assert script["main"](["--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "not measured" in out and "failed: nothing" in out
    for part in ("pytest -q -m gpu tests", "bench_kernels.py", "bench_inference.py", "memopt, levels 1 to 4"):
        assert part in out
    lines = [line.split(" | ") for line in out.splitlines() if line.startswith("| ") and "width" not in line]
    saved = {(name.strip("| "), int(T)): float(mb) for name, T, _, _, mb, _ in lines}
    assert {name for name, _ in saved} == {
        *("SLTT", "SLTT again", "OTTT", "STOL", "BPTT", "host BPTT", "memopt 1", "checkpointing")
    }
    assert saved["SLTT", 2] == saved["SLTT", 4] and saved["BPTT", 4] > 1.5 * saved["BPTT", 2]


def test_the_files_that_it_runs_exist(script):
    files = [word for command in script["COMMANDS"].values() for word in command if word.endswith(".py")]
    assert len(files) == 2 and all((EXAMPLES.parent / file).exists() for file in files)


def test_a_part_that_fails_is_named(script, monkeypatch, capsys):
    import types

    names = script["main"].__globals__
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setitem(names, "memory", lambda *_: ["| a table |"])
    ran = []

    def run(command, cwd):
        ran.append(command)
        return types.SimpleNamespace(returncode=int("examples/bench_kernels.py" in command))

    monkeypatch.setattr(script["subprocess"], "run", run)
    assert script["main"]([]) == 1
    out = capsys.readouterr().out
    assert out.startswith("a card, torch") and out.endswith("failed: kernels\n")
    assert len(ran) == 3 and all(command[0] == sys.executable for command in ran)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(script):
    with pytest.raises(SystemExit, match="no CUDA device: --dry-run"):
        script["main"]([])
