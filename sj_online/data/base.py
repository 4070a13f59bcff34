"""What a data set says about itself, and the order and the draws that a run takes from it."""

import inspect
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

Item = Sequence[Any]
Batch = tuple[Tensor, ...]
Transform = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a network has to know of a data set before any file is read.

    Args:
        classes: how many there are; targets are 0 .. classes - 1.
        shape: of one step without the batch, (C, H, W) or (C,).
        steps: T of a sequence; None: static, one image is fed at every step.
        per_step_targets: every step has its own target and says whether it counts.
    """

    classes: int
    shape: tuple[int, ...]
    steps: int | None = None
    per_step_targets: bool = False


@dataclass(frozen=True, kw_only=True)
class DataSet(Shape):
    """A data set in three parts, with everything said that a run depends on.

    Items are (x, y), with per-step targets (x, y [T]) or (x, y [T], mask [T]). x is what augmentation takes: a uint8
    image [C, H, W] or frames [T, C, H, W]; ``collate`` makes of a list of items what a network takes.

    Args:
        train: what the network learns from, not augmented.
        validation: taken from the training data, to choose the best epoch by; None where nothing is taken.
        test: used once, at the end.
        collate: items to a batch: x float [N, ...] or [T, N, ...], y [N] or [T, N], and mask [T, N] with per-step
            targets. By default `stack` for static data and `stack_sequences` for sequences.
    """

    train: Dataset[Any]
    validation: Dataset[Any] | None
    test: Dataset[Any]
    collate: Callable[[list[Item]], Batch] = cast(Any, None)

    def __post_init__(self) -> None:
        """Fill in how items become a batch."""
        if self.collate is None:
            object.__setattr__(self, "collate", stack if self.steps is None else stack_sequences)


class Load(Protocol):
    """A registered data set: call it for the data, ask ``describe`` with the same options for its shape."""

    __name__: str
    describe: Callable[..., Shape]

    def __call__(self, root: str | None = None, *, download: bool = False, **options: Any) -> DataSet:
        """Load the data from the folder ``root``."""


def describes(shape: Callable[..., Shape]) -> Callable[[Callable[..., DataSet]], Load]:
    """Give a data set its ``describe``: the options go to ``shape``, as far as it names them; no file is touched.

    Example:
        >>> @describes(lambda size: Shape(classes=10, shape=(1, size, size)))
        ... def blank(root=None, *, download=False, size=28): ...
        >>> blank.describe(size=8)
        Shape(classes=10, shape=(1, 8, 8), steps=None, per_step_targets=False)
    """

    def decorate(load: Callable[..., DataSet]) -> Load:
        def describe(root: str | None = None, **options: Any) -> Shape:
            given = inspect.signature(load).bind(root, **options)
            given.apply_defaults()
            return shape(**{name: given.arguments[name] for name in inspect.signature(shape).parameters})

        named = cast(Load, load)
        named.describe = describe
        return named

    return decorate


def stack(items: list[Item]) -> Batch:
    """Static items (x, y) to x float [N, ...] and y [N]."""
    x = torch.stack([torch.as_tensor(item[0]) for item in items])
    return x.float(), torch.stack([torch.as_tensor(item[1]) for item in items])


def stack_sequences(items: list[Item]) -> Batch:
    """Sequences (x [T, ...], y) to x float [T, N, ...] and y [N]; shorter ones are filled up with zeros.

    With per-step targets (y [T]) a mask [T, N] is the third: what the items' own masks say, and False where a sequence
    has ended.

    Example:
        >>> x, y, mask = stack_sequences([(torch.ones(3, 5), torch.ones(3)), (torch.ones(2, 5), torch.ones(2))])
        >>> x.shape, y.shape, mask.tolist()
        (torch.Size([3, 2, 5]), torch.Size([3, 2]), [[True, True], [True, True], [True, False]])
    """
    x = _pad([torch.as_tensor(item[0]) for item in items]).float()
    targets = [torch.as_tensor(item[1]) for item in items]
    if targets[0].dim() == 0:
        return x, torch.stack(targets)
    masks = [
        torch.as_tensor(item[2]) if len(item) > 2 else torch.ones(len(item[1]), dtype=torch.bool) for item in items
    ]
    return x, _pad(targets), _pad(masks)


def _pad(sequences: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(sequences)


@contextmanager
def own_draws() -> Iterator[Callable[..., None]]:
    """Draw inside without moving the generators of the process: torch's (CPU), Python's and NumPy's.

    Yields:
        a function that seeds all three from a few numbers, such as (seed, epoch, index).

    Example:
        >>> with own_draws() as seed:
        ...     seed(0, 3, 17)
        ...     first = torch.rand(2)
        ...     seed(0, 3, 17)
        ...     print(first.equal(torch.rand(2)))
        True
    """
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield _seed
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def _seed(*numbers: int) -> None:
    seed = mix(*numbers) & 0xFFFFFFFF
    torch.default_generator.manual_seed(seed)  # torch.manual_seed asks for every device, at 100 times the price
    random.seed(seed)
    np.random.seed(seed)


def mix(*numbers: int) -> int:
    """64 bits that depend on every number and on their order (SplitMix64, Steele et al. 2014, once a number)."""
    bits, state = (1 << 64) - 1, 0
    for number in numbers:
        state = (state ^ number) + 0x9E3779B97F4A7C15 & bits
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & bits
        state = (state ^ state >> 27) * 0x94D049BB133111EB & bits
        state ^= state >> 31
    return state


class Augmented(Dataset[Any]):
    """A data set with random transforms, whose draws depend on (seed, epoch, index) alone.

    Neither the worker that happens to load an item, nor the batch it is in, nor a resumed run changes what is drawn.

    Args:
        dataset: items (x, y) or (x, y, mask), by index; what it draws itself is seeded too.
        transforms: applied to x, one after the other.
        seed: of the run.

    Example:
        >>> noisy = Augmented([(torch.zeros(2), 0)], [lambda x: x + torch.rand(2)], seed=0)
        >>> noisy[1, 0][0].equal(noisy[1, 0][0]), noisy[1, 0][0].equal(noisy[2, 0][0])
        (True, False)
    """

    def __init__(self, dataset: Any, transforms: Sequence[Transform], seed: int) -> None:
        self.dataset = dataset
        self.transforms = tuple(transforms)
        self.seed = seed

    def __len__(self) -> int:
        """The number of items."""
        return len(self.dataset)

    def __getitem__(self, place: tuple[int, int]) -> tuple[Any, ...]:
        """The item of (epoch, index)."""
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[tuple[int, int]]) -> list[tuple[Any, ...]]:
        """The items of a batch; the generators are put back once, as this is the dear part."""
        items = []
        with own_draws() as seed:
            for epoch, index in places:
                seed(self.seed, epoch, index)
                x, *rest = self.dataset[index]
                for transform in self.transforms:
                    x = transform(x)
                items.append((x, *rest))
        return items
