"""One thread per process: pytest-xdist is the parallelism, and threads beyond the cores wait for each other."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import pytest  # noqa: E402 - torch reads the variable when it is imported

from sj_online.app.cli import main  # noqa: E402

TINY = ["--num_steps=2", "--model.options.width=4", "--train.epochs=2", "--train.batch_size=64"]


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Options that make the digits train in a second or two."""
    return TINY


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory, tiny):
    """The directory of a finished run."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", "--out", str(out), *tiny]) == 0
    return out
