"""The host's data sets of events, asked to read what lies in a folder: downloaded, unpacked or read before.

The host reads into ``events_np`` and marks what is unfinished by ``events_np.building``; both are its own names.
"""

import shutil
import traceback
from pathlib import Path
from typing import Any

from sj_online.data.frames import locked
from sj_online.data.root import data_folder


def raw_events(name: str, host: str, root: str | None, download: bool) -> Path:
    """Have the host read a data set into ROOT/events_np, once; returns ROOT.

    What a crash left unfinished is removed and made anew. Archives with a wrong checksum are named, not deleted (the
    host deletes them), and nothing is downloaded unless asked for.

    Args:
        name: of the data set, for messages.
        host: the host's class.
        root: the folder.
        download: let the host download what it can.

    Raises:
        ValueError: missing or damaged files.
    """
    import spikingjelly.datasets

    dataset: Any = getattr(spikingjelly.datasets, host)
    archives = " ".join(file for file, _, _ in dataset.resource_url_md5())
    expected = f"download/ with {archives}, or extract/ with what is in them"
    folder = data_folder(name, root, expected, download, can=dataset.downloadable())
    if _finished(folder):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if not _finished(folder):
            _read(dataset, name, folder, download, expected)
    return folder


def _finished(folder: Path) -> bool:
    return (folder / "events_np").is_dir() and not (folder / "events_np.building").exists()


def _read(dataset: Any, name: str, folder: Path, download: bool, expected: str) -> None:
    marker, extracted = folder / "events_np.building", folder / "extract"
    packed = _packed(dataset, folder / "download")
    if marker.exists():  # whoever made it is dead: the lock is ours
        shutil.rmtree(folder / "events_np", ignore_errors=True)
        if packed:
            shutil.rmtree(extracted, ignore_errors=True)  # perhaps half unpacked
        marker.unlink()
    if extracted.is_dir() and not packed:  # unpacked by hand: the host is to look for no archives
        (folder / "download").mkdir(exist_ok=True)
        dataset = type(dataset.__name__, (dataset,), {"resource_url_md5": classmethod(lambda cls: [])})
    elif not packed and not download:
        raise ValueError(f"{name}: {folder} should hold {expected}")
    given = {} if name == "cifar10_dvs" else {"train": True}
    try:
        dataset(str(folder), **given)
    except Exception as error:  # of an archive, a parser or the disk
        text = " ".join(str(error).split())
        raise ValueError(f"{name}: {_culprit(folder, error)} is damaged or incomplete: {text}") from error


def _packed(dataset: Any, downloads: Path) -> bool:
    """Whether all archives are there, with the right checksums."""
    from torchvision.datasets.utils import check_integrity

    files = [(downloads / name, md5) for name, _, md5 in dataset.resource_url_md5()]
    if not all(path.is_file() for path, _ in files):
        return False
    for path, md5 in files:
        if not check_integrity(path, md5):
            raise ValueError(f"{path} is damaged: its MD5 is not {md5}")
    return True


def _culprit(folder: Path, error: Exception) -> Path:
    """The file that was being read: the host's parsers run in threads and name none, but their frames hold its path."""
    if isinstance(error, OSError) and error.filename:
        return Path(error.filename)
    found = folder / "extract"
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for value in frame.f_locals.values():
            if isinstance(value, Path) and value.is_file() and value.is_relative_to(folder):
                found = value
    return found
