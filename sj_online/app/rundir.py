"""The directory of a run: who may write to it, and files that are never seen half-written."""

import fcntl
import json
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from sj_online.files import append_line, is_temporary, replacing, sync_folder, whole_lines

PACKAGE = Path(__file__).parents[1]
_HELD: set[IO[str]] = set()


def _let_go() -> None:
    """The lock lives as long as a process has its file open: a worker must not outlive the run with it."""
    for lock in _HELD:
        lock.close()
    _HELD.clear()


os.register_at_fork(after_in_child=_let_go)


class RunDirectory:
    """``config.yaml``, ``metrics.jsonl``, ``summary.json``, ``last.ckpt``, ``best.ckpt`` and ``tensorboard/``.

    Args:
        path: the directory; it need not exist. It is taken literally, and stays the same if the process changes its
            working directory.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.summary = self.path / "summary.json"
        self.errors = self.path / "error.log"
        self._writer: Any = None

    def checkpoint(self, which: str) -> Path:
        """The file of the ``'last'`` or the ``'best'`` checkpoint."""
        return self.path / f"{which}.ckpt"

    @contextmanager
    def claim(self, config: str, resume: bool) -> Iterator[None]:
        """Make the directory, hold its lock for as long as the context lasts and write the configuration.

        Args:
            config: the text of config.yaml.
            resume: go on with the run in the directory, if there is one.

        Raises:
            ValueError: the directory is in use, or it holds a run that is not to be, or cannot be, resumed.
        """
        if not self.path.is_dir():
            self.path.mkdir(parents=True, exist_ok=True)
            sync_folder(self.path.parent)
        with self._locked():
            self.check_free(resume)
            for left in filter(is_temporary, list(self.path.iterdir())):
                left.unlink()
            with replacing(self.config) as temporary:
                temporary.write_text(config)
            try:
                yield
            finally:
                if self._writer:
                    self._writer.close()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock; processes that are forked meanwhile, such as loader workers, let go of it at once."""
        with (self.path / ".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(f"{self.path} is in use: another process is training there") from error
            _HELD.add(lock)
            try:
                yield
            finally:
                _HELD.discard(lock)

    def check_free(self, resume: bool) -> None:
        """Raise if the directory holds a run that is not to be resumed, or one that cannot be."""
        last, best = self.checkpoint("last"), self.checkpoint("best")
        begun = [path for path in (last, best, self.metrics, self.summary) if path.exists()]
        if not self.config.exists():
            if begun:
                raise ValueError(
                    f"{self.path} holds {begun[0].name} but no config.yaml: bring it back, or give another --out"
                )
        elif not resume:
            raise ValueError(f"{self.path} is in use: it holds a run; give --resume to go on with it, or another --out")
        elif begun and not last.exists():
            raise ValueError(f"{self.path} holds {begun[0].name} but no last.ckpt to resume from; give another --out")

    def begin(self, epoch: int, epochs: int) -> None:
        """Keep of a run what a checkpoint after ``epoch`` knows: those lines of metrics, and no summary before the end.

        A line that is torn, or no line of metrics at all, goes too.
        """
        if self.metrics.exists():
            kept = [line for line in whole_lines(self.metrics) if _epoch(line) <= epoch]
            with replacing(self.metrics) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in kept))
        if epoch < epochs:
            self.summary.unlink(missing_ok=True)

    def log(self, metrics: dict[str, Any]) -> None:
        """Add the metrics of an epoch to ``metrics.jsonl`` and its numbers to TensorBoard."""
        append_line(self.metrics, json.dumps(metrics))
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


@contextmanager
def kept_errors(directory: RunDirectory, rank: int = 0) -> Iterator[None]:
    """Make one line of an error that is not ours, and keep its traceback in ``error.log``.

    Raises:
        ValueError: in the place of any other error.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or _is_ours(error):
            raise
        log = directory.errors.with_name(f"error.{rank}.log") if rank else directory.errors
        log.write_text("".join(traceback.format_exception(error)))
        *_, line = ["", *str(error).splitlines()] if "Traceback" in str(error) else [" ".join(str(error).split())]
        raise ValueError(f"{type(error).__name__}: {line[:300]} (the traceback is in {log})") from error


def _is_ours(error: Exception) -> bool:
    """Whether this package has raised it, to say in one line what is wrong."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return isinstance(error, ValueError) and Path(frame.filename).is_relative_to(PACKAGE)


def _epoch(line: str) -> float:
    """The epoch that a line of metrics is about; infinite where it is none."""
    try:
        return float(json.loads(line)["epoch"])
    except (ValueError, TypeError, KeyError):
        return float("inf")
