"""Files that are never seen half-written, and lines that are never lost from the middle."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a temporary path to write to; it takes the target's name when it is complete and on disk.

    It lies beside its target, under the name that :func:`is_temporary` knows.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(Path(folder, "a.txt")) as temporary:
        ...         _ = temporary.write_text("all of it")
        ...     Path(folder, "a.txt").read_text(), len(os.listdir(folder))
        ('all of it', 1)
    """
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(target.parent)


def is_temporary(path: Path) -> bool:
    """Whether this is what a process that died in :func:`replacing` has left.

    Example:
        >>> is_temporary(Path("run/.last.ckpt.tmp")), is_temporary(Path("run/last.ckpt"))
        (True, False)
    """
    return path.name.startswith(".") and path.name.endswith(".tmp")


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def append_line(path: Path, line: str) -> None:
    """Add a line to a file; it is on disk when this returns.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     append_line(Path(folder, "a.txt"), "one")
        ...     append_line(Path(folder, "a.txt"), "two")
        ...     Path(folder, "a.txt").read_text().split()
        ['one', 'two']
    """
    new = not path.exists()
    with path.open("ab") as file:
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if new:
        sync_folder(path.parent)


def whole_lines(path: Path) -> list[str]:
    """The lines of a file; one at the end that was not written to its end is left out."""
    *lines, _ = path.read_bytes().split(b"\n")
    return [line.decode(errors="replace") for line in lines]
