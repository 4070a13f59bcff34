"""Typed configuration of a run, and the recipes that come with the package: one YAML file each.

Nothing heavy is imported here, so that the command line answers at once.
"""

from argparse import ArgumentError
from dataclasses import asdict, dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentParser, Namespace

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


@dataclass
class Model:
    """The network.

    Args:
        name: a registered model, see `sj-online list models`.
        options: its keyword arguments; num_classes, in_channels and num_steps are filled in from the data set and T.
    """

    name: str = "small_vgg"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Dataset:
    """The data.

    Args:
        name: the data set.
        root: the folder it lies in; --data sets it. None for a data set that comes with a package.
        options: keyword arguments of the data set.
    """

    name: Literal["digits"] = "digits"
    root: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Train:
    """How the network is trained, by SGD with a cosine schedule over the epochs.

    Args:
        rule: a registered training rule, see `sj-online list trainers`.
        options: its keyword arguments, such as update and step_scale.
        epochs: passes over the training data.
        batch_size: images in a batch, over all devices.
        lr: the learning rate of the first epoch.
        momentum: of SGD, Nesterov's.
        weight_decay: of all parameters but the neurons'.
        label_smoothing: of the cross entropy.
        workers: processes that load data.
    """

    rule: str = "sltt"
    options: dict[str, Any] = field(default_factory=dict)
    epochs: int = 10
    batch_size: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    workers: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        _at_least("train.epochs", self.epochs, 1)
        _at_least("train.batch_size", self.batch_size, 1)
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"train.label_smoothing={self.label_smoothing} must be from 0 to 1")
        _at_least("train.workers", self.workers, 0)


@dataclass
class Device:
    """Where and in which precision it runs, in Lightning Fabric's words.

    Args:
        accelerator: auto takes a GPU where there is one.
        devices: how many; more than one trains data-parallel.
        precision: of the forward and backward pass.
        threads: CPU threads of PyTorch; None leaves the choice to it.
    """

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    precision: Precision = "32-true"
    threads: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        _at_least("fabric.devices", self.devices, 1)
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise ValueError(f"fabric.threads={self.threads} must be from 1 to 1024")


@dataclass
class Recipe:
    """All that a run depends on.

    Args:
        seed: of the initial weights, the order of the data, augmentation and the rule's draws.
        num_steps: T, the time steps of the network and of the rule.
        model: the network.
        dataset: the data.
        train: how it is trained.
        fabric: where it runs.
    """

    seed: int = 0
    num_steps: int = 4
    model: Model = field(default_factory=Model)
    dataset: Dataset = field(default_factory=Dataset)
    train: Train = field(default_factory=Train)
    fabric: Device = field(default_factory=Device)

    def __post_init__(self) -> None:
        """Check the ranges."""
        _at_least("seed", self.seed, 0)
        _at_least("num_steps", self.num_steps, 1)

    def to_yaml(self) -> str:
        """The recipe as :func:`load` reads it.

        Example:
            >>> Recipe(seed=3).to_yaml().splitlines()[0]
            'seed: 3'
        """
        return yaml.safe_dump(asdict(self), sort_keys=False)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name}={value} must be at least {least}")


def names() -> list[str]:
    """The recipes that come with the package.

    Example:
        >>> "digits" in names()
        True
    """
    return sorted(path.stem for path in Path(__file__).parent.glob("*.yaml"))


def path(name_or_file: str) -> Path:
    """The file of a recipe, given by name or as a YAML file.

    Raises:
        ValueError: neither a known name nor a file.
    """
    if name_or_file in names():
        return Path(__file__).parent / f"{name_or_file}.yaml"
    if Path(name_or_file).is_file():
        return Path(name_or_file)
    raise ValueError(f"recipe {name_or_file!r} is neither a file nor one of the known recipes: {', '.join(names())}")


def parser(source: Path | None = None) -> ArgumentParser:
    """A parser whose options are the keys of a recipe and whose defaults are the recipe in ``source``."""
    files: list[str | PathLike[str]] = [source] if source else []
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, default_config_files=files)
    parser.add_class_arguments(Recipe)
    return parser


def build(parser: ArgumentParser, config: Namespace) -> Recipe:
    """The recipe in what ``parser`` has parsed."""
    made = parser.instantiate(config)
    return Recipe(**{each.name: made[each.name] for each in fields(Recipe)})


def load(source: Path) -> Recipe:
    """Read a recipe from a YAML file; what it leaves out keeps its default.

    Raises:
        ValueError: one line that names the file and what is wrong with it.

    Example:
        >>> load(path("digits")).dataset.name
        'digits'
    """
    try:
        reader = parser(source)
        return build(reader, reader.parse_args([]))
    except (ArgumentError, ValueError, OSError) as error:
        raise ValueError(f"recipe {source}: {error}") from error


def from_dict(values: Any, origin: str) -> Recipe:
    """Read a recipe from plain values, as ``dataclasses.asdict`` gives them.

    Raises:
        ValueError: one that names ``origin`` and what is wrong.

    Example:
        >>> from_dict({"seed": 3}, "a test").seed
        3
    """
    try:
        if not isinstance(values, dict):
            raise ValueError(f"{values!r} is not a table of keys and values")
        reader = parser()
        return build(reader, reader.parse_object(values))
    except (ArgumentError, ValueError, TypeError) as error:
        raise ValueError(f"recipe in {origin}: {error}") from error
