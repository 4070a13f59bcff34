"""The recipes that come with the package: a folder for each paper, a YAML file for each row of its tables."""

from pathlib import Path


def files() -> dict[str, Path]:
    """The files by name: a file's own, without its folder.

    Example:
        >>> files()["digits"].name
        'digits.yaml'
    """
    return {path.stem: path for path in sorted(Path(__file__).parent.rglob("*.yaml"))}
