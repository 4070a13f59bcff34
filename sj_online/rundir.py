"""The directory of a run: who may write to it, and files that are never seen half-written."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sj_online import recipe
from sj_online.files import replacing
from sj_online.recipe import Recipe


class RunDirectory:
    """``config.yaml``, ``metrics.jsonl``, ``summary.json``, ``last.ckpt``, ``best.ckpt`` and ``tensorboard/``.

    Args:
        path: the directory; it need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.summary = self.path / "summary.json"
        self._writer: Any = None

    def checkpoint(self, which: str) -> Path:
        """The file of the ``'last'`` or the ``'best'`` checkpoint."""
        return self.path / f"{which}.ckpt"

    def recipe(self) -> Recipe:
        """The recipe of the run.

        Raises:
            ValueError: the directory holds no readable one.
        """
        if not self.config.is_file():
            raise ValueError(f"{self.path} is not the directory of a run: it holds no config.yaml")
        return recipe.load(self.config)

    @contextmanager
    def claim(self, config: Recipe, resume: bool) -> Iterator[None]:
        """Make the directory, hold its lock for as long as the context lasts and write the configuration.

        Raises:
            ValueError: the directory is in use, or it holds a run that is not to be resumed.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(f"{self.path} is in use: another process is training there") from error
            self.check_free(resume)
            with replacing(self.config) as temporary:
                temporary.write_text(config.to_yaml())
            try:
                yield
            finally:
                if self._writer:
                    self._writer.close()

    def check_free(self, resume: bool) -> None:
        """Raise if the directory holds a run and is not to be resumed."""
        if self.config.exists() and not resume:
            raise ValueError(f"{self.path} is in use: it holds a run; give --resume to go on with it, or another --out")

    def keep_epochs(self, last: int) -> None:
        """Cut ``metrics.jsonl`` back to the epochs that the checkpoint knows."""
        lines = self.metrics.read_text().splitlines(keepends=True) if self.metrics.exists() else []
        with replacing(self.metrics) as temporary:
            temporary.write_text("".join(lines[:last]))

    def log(self, metrics: dict[str, Any]) -> None:
        """Add the metrics of an epoch to ``metrics.jsonl`` and TensorBoard."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(metrics) + "\n")
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self.path / "tensorboard", purge_step=metrics["epoch"])
        for name in metrics.keys() - {"epoch"}:
            self._writer.add_scalar(name, metrics[name], metrics["epoch"])
        self._writer.flush()

    def finish(self, summary: dict[str, Any]) -> None:
        """Write ``summary.json``."""
        with replacing(self.summary) as temporary:
            temporary.write_text(json.dumps(summary, indent=2) + "\n")
