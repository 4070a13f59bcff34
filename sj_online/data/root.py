"""The folder that a user names."""

from pathlib import Path


def data_folder(name: str, root: str | None, expected: str, download: bool, *, can: bool = True) -> Path:
    """The folder of a data set.

    Args:
        name: of the data set.
        root: what the user named.
        expected: what should be in it, for the message.
        download: may be missing, as the data are going to be put there.
        can: whether the data set can be downloaded at all.

    Raises:
        ValueError: no folder is named, it does not exist, or a download is asked for that nothing can do.
    """
    if root is None:
        raise ValueError(f"{name} needs a folder (--data) with {expected}")
    if download and not can:
        raise ValueError(f"{name} cannot be downloaded by this program: put {expected} into {root} by hand")
    folder = Path(root).expanduser()
    if not folder.is_dir() and not download:
        raise ValueError(f"{name}: there is no folder {folder}; it should hold {expected}")
    return folder
