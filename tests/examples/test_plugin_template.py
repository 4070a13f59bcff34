"""The template of a third-party package: built, installed, found by its entry point, checked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TEMPLATE = Path(__file__).parents[2] / "examples" / "plugin_template"
SCRIPT = """
import torch
from spikingjelly.activation_based import neuron
from sj_online import registry
from sj_online.convert import swap_neurons
from sj_online.testing import check_node

assert "my_neuron" in registry.names("neurons")
check_node(registry.get("neurons", "my_neuron"))
net = torch.nn.Sequential(torch.nn.Linear(2, 3), neuron.LIFNode())
print(swap_neurons(net, "my_neuron")[0].new)
"""


@pytest.fixture
def installed(tmp_path):
    """The template in a folder of its own, with what pip and the build backend of this environment make of it."""
    copy = tmp_path / "source"
    copy.mkdir()
    for file in TEMPLATE.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(site), str(copy)], check=True)
    return site


def test_installed_it_is_registered_and_passes_the_public_checks(installed):
    assert len([file for file in TEMPLATE.iterdir() if file.is_file()]) == 4
    environment = os.environ | {"PYTHONPATH": str(installed)}
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "MyNode"


def test_its_recipe_trains_on_its_data_with_its_loss_and_schedule(installed, tmp_path):
    assert len((TEMPLATE / "my_data.py").read_text().splitlines()) < 40
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", "import sys; from sj_online.app.cli import main; sys.exit(main())"]
    train = [*command, "train", "--recipe", "bars", "--out", str(tmp_path / "run"), "--train.epochs=3"]
    run = subprocess.run(train, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["test_images"], summary["epochs"]) == (128, 3)
    assert summary["test_accuracy"] > 0.9
    rates = [json.loads(line)["lr"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([0.1, 0.07, 0.04])
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "name: margin" in config and "by: 0.3" in config and "base" not in config
