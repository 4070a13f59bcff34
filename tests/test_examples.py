"""The examples run; with fewer epochs than they have."""

import os
import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_train_digits(tmp_path, monkeypatch, capsys):
    source = (EXAMPLES / "train_digits.py").read_text()
    script = tmp_path / "train_digits.py"
    script.write_text(source.replace("EPOCHS = 12", "EPOCHS = 1"))
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script))
    trained, packed = capsys.readouterr().out.splitlines()[-2:]
    assert trained.startswith("epoch  1")
    assert trained.split("test accuracy ")[1] == packed.removeprefix("packed: test accuracy ")
    assert os.path.getsize("digits.safetensors") < 30_000
