"""SpikingJelly's own scripts become online ones by a few lines: the diffs apply to the installed host, and run."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from spikingjelly.activation_based import examples

HOST = Path(examples.__file__).parent
DIFFS = Path(__file__).parents[2] / "examples" / "upstream"
ADDED = {  # of each diff, imports included
    "lif_fc_mnist": 5,
    "conv_fashion_mnist": 4,
    "classify_dvsg": 4,
    "rsnn_sequential_fmnist": 4,
    "train_classify": 4,
}


def online(name, folder):
    """The host's script with its diff applied; it is written to the folder."""
    diff = DIFFS / f"{name}.diff"
    inside = diff.read_text().splitlines()[0].removeprefix("--- a/")
    (folder / inside).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(HOST / inside, folder / inside)
    subprocess.run(["git", "apply", "--unidiff-zero", str(diff)], cwd=folder, check=True, capture_output=True)
    return folder / inside


def images(folder, name):
    """Twelve made images in MNIST's files, four to a batch."""
    generator = np.random.default_rng(0)
    raw = folder / name / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        pixels = generator.integers(0, 256, (12, 28, 28), np.uint8)
        header = np.array([0x803, *pixels.shape], ">u4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = np.arange(12, dtype=np.uint8) % 10
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(np.array([0x801, 12], ">u4").tobytes() + labels.tobytes())


def test_every_diff_is_known():
    assert {path.stem for path in DIFFS.glob("*.diff")} == set(ADDED)


@pytest.mark.parametrize("name", ADDED)
def test_at_most_five_lines_are_added(name, tmp_path):
    script = online(name, tmp_path)
    before = (HOST / script.relative_to(tmp_path)).read_text().splitlines()
    added = [line for line in script.read_text().splitlines() if line.strip() and line not in before]
    counted = [line for line in (DIFFS / f"{name}.diff").read_text().splitlines() if line[:1] == "+"][1:]
    assert len(counted) == ADDED[name] <= 5 and set(added) <= {line[1:] for line in counted}
    compile(script.read_text(), script.name, "exec")


@pytest.mark.parametrize(
    ("name", "data", "options"),
    [
        ("lif_fc_mnist", "MNIST", ["-T", "3"]),
        pytest.param(
            "conv_fashion_mnist", "FashionMNIST", ["-T", "2", "-channels", "4", "-opt", "sgd"], marks=pytest.mark.slow
        ),
        pytest.param("rsnn_sequential_fmnist", "FashionMNIST", ["-opt", "adam", "-lr", "1e-3"], marks=pytest.mark.slow),
    ],
)
def test_it_runs(name, data, options, tmp_path):
    images(tmp_path, data)
    command = [sys.executable, str(online(name, tmp_path)), "-device", "cpu", "-b", "4", "-epochs", "1", "-j", "0"]
    done = subprocess.run(
        [*command, "-data-dir", ".", "-out-dir", "logs", *options], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and "test_acc" in done.stdout, done.stderr
