"""Every example script runs with --smoke: two batches, of made data where it needs a data set."""

import ast
import runpy
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py") if '"--smoke"' in path.read_text())
LAST = {  # the beginning of the last line, where it is not an epoch's
    "cifar10_hdlif": "cifar10_hdlif.safetensors: test_acc",
    "compare_rules": "FPTT",
    "endless_stream": "step    400",
}
OWN = {"train_digits", "feedback_alignment", "local_losses", "otpe", "stllr"}  # run by tests of their own


def test_every_script_has_a_smoke():
    scripts = {path.stem for path in EXAMPLES.glob("*.py") if not path.stem.startswith(("bench_", "accuracy_"))}
    assert scripts == set(SCRIPTS) | OWN


@pytest.mark.parametrize("name", SCRIPTS)
def test_smoke(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, "--smoke"])
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    assert capsys.readouterr().out.splitlines()[-1].startswith(LAST.get(name, "epoch 0: train_loss"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_docstring_says_how_it_is_called(name):
    docstring = ast.get_docstring(ast.parse((EXAMPLES / f"{name}.py").read_text()))
    assert f"examples/{name}.py" in docstring
