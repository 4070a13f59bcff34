"""What a run depends on: typed and checked dataclasses. Nothing heavy is imported, so the command line answers at once.

:mod:`sj_online.app.reader` reads recipes from files; here plain values become a :class:`Recipe` and a recipe plain
values.
"""

from dataclasses import asdict, dataclass, field
from typing import Literal

from sj_online.app import plain, yamltext

Precision = Literal["32-true", "bf16-mixed", "16-mixed", "64-true"]


@dataclass
class Named:
    """Something registered and its options: the one shape for models, rules, losses, optimizers and all the others.

    Args:
        name: a registered name, see `sj-online list`.
        options: its keyword arguments, plain values: numbers, strings, truth values, lists and tables of those.
    """

    name: str
    options: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the options."""
        plain.check(self.options, f"options of {self.name}")


@dataclass
class Dataset:
    """The data.

    Args:
        name: a registered data set.
        root: the folder it lies in; --data sets it. None for one that comes with a package.
        options: keyword arguments of the data set.
        augment: transforms of a training sample, in this order.
        batch: transforms of a training batch, such as mixup.
    """

    name: str = "digits"
    root: str | None = None
    options: dict = field(default_factory=dict)
    augment: list[Named] = field(default_factory=list)
    batch: list[Named] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check the options."""
        plain.check(self.options, f"options of {self.name}")


@dataclass
class Train:
    """How the network is trained.

    Args:
        rule: the training rule.
        loss: the loss of a step, or of a window of steps.
        optimizer: the optimizer; its weight decay spares the neurons' parameters.
        schedule: of the learning rate; None keeps it.
        callbacks: called at the start, after each batch, after each epoch and at the end, besides the usual ones.
        epochs: passes over the training data.
        batch_size: samples in a batch, over all devices.
        workers: processes that load data, for each device.
        clip: the largest norm of the gradient; None does not clip.
        checkpoint_minutes: a checkpoint after so many minutes inside an epoch, too.
    """

    rule: Named = field(default_factory=lambda: Named("sltt"))
    loss: Named = field(default_factory=lambda: Named("cross_entropy"))
    optimizer: Named = field(default_factory=lambda: Named("sgd"))
    schedule: Named | None = field(default_factory=lambda: Named("cosine"))
    callbacks: list[Named] = field(default_factory=list)
    epochs: int = 10
    batch_size: int = 64
    workers: int = 0
    clip: float | None = None
    checkpoint_minutes: float = 10.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        within("train.epochs", self.epochs, 1, 100_000)
        within("train.batch_size", self.batch_size, 1, 1_000_000)
        within("train.workers", self.workers, 0, 256)
        within("train.clip", self.clip, 1e-9, 1e9)
        within("train.checkpoint_minutes", self.checkpoint_minutes, 0, 10_000)


@dataclass
class Device:
    """Where and in which precision it runs, in Lightning Fabric's words.

    Args:
        accelerator: auto takes a GPU where there is one.
        devices: how many for each node; more than one trains data-parallel. None: torchrun's, or 1.
        nodes: machines.
        precision: of the forward and backward pass.
        threads: CPU threads of PyTorch; None leaves the choice to it.
        compile: compile the network with torch.compile.
        channels_last: keep images and weights with the channels innermost.
    """

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int | None = None
    nodes: int = 1
    precision: Precision = "32-true"
    threads: int | None = None
    compile: bool = False
    channels_last: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        within("fabric.devices", self.devices, 1, 1024)
        within("fabric.nodes", self.nodes, 1, 10_000)
        within("fabric.threads", self.threads, 1, 1024)


@dataclass
class Start:
    """Another run that this one begins from.

    Args:
        run: the directory of that run.
        checkpoint: last or best.
        convert: what its network is changed by, such as qcfs_to_lmh.
    """

    run: str
    checkpoint: Literal["last", "best"] = "last"
    convert: Named | None = None


@dataclass
class Paper:
    """The row of a paper's table that a recipe is to reproduce.

    Args:
        table: the paper and its table.
        row: the row.
        accuracy: the accuracy there, in percent.
    """

    table: str
    row: str
    accuracy: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        within("paper.accuracy", self.accuracy, 0, 100)


@dataclass
class Recipe:
    """All that a run depends on.

    Args:
        seed: of the initial weights, the order of the data, augmentation and the rule's draws.
        num_steps: T, the time steps of the network and of the rule; None where the data set has its own.
        model: the network; num_classes, in_channels and num_steps are filled in from the data set and T.
        dataset: the data.
        train: how it is trained.
        fabric: where it runs.
        start: another run to begin from.
        paper: the row of a table that it belongs to.
    """

    seed: int = 0
    num_steps: int | None = None
    model: Named = field(default_factory=lambda: Named("small_vgg"))
    dataset: Dataset = field(default_factory=Dataset)
    train: Train = field(default_factory=Train)
    fabric: Device = field(default_factory=Device)
    start: Start | None = None
    paper: Paper | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        within("seed", self.seed, 0, 2**63 - 1)
        within("num_steps", self.num_steps, 1, 10_000)

    def to_yaml(self) -> str:
        """The recipe as it is written to ``config.yaml``.

        Example:
            >>> Recipe(seed=3).to_yaml().splitlines()[0]
            'seed: 3'
        """
        return yamltext.dump(asdict(self))


def within(name: str, value: float | None, low: float, high: float) -> None:
    """Raise unless ``value`` is None or between the bounds."""
    if value is not None and not low <= value <= high:
        raise ValueError(f"{name}={value} must be from {low:g} to {high:g}")
