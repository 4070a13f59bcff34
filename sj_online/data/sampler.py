"""Which items make up a batch, on which rank: batches of indices for a DataLoader's ``batch_sampler``."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from sj_online.data.base import mix


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Training batches: lists of (epoch, index), in an order that depends on (seed, epoch) alone.

    Each rank takes its part of each global batch, so that all ranks together see the batches of one process.

    Args:
        length: the number of items.
        batch_size: of the global batch, over all ranks.
        seed: of the run.
        epoch: which one the next iteration gives; see `begin`.
        start_batch: batches that the next iteration leaves out, to go on within an epoch.
        rank: this process, from 0.
        world: the number of processes.
        shuffle: draw an order for each epoch; False: by index.
        drop_last: leave out a last batch that is not full. Kept over several ranks, it may have unequal parts.

    Raises:
        ValueError: a batch of more than all items or, with ``drop_last``, one that does not divide over the ranks.

    Example:
        >>> [list(EpochSampler(5, 4, seed=0, shuffle=False, rank=rank, world=2)) for rank in (0, 1)]
        [[[(0, 0), (0, 2)]], [[(0, 1), (0, 3)]]]
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int,
        epoch: int = 0,
        start_batch: int = 0,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
        drop_last: bool = True,
    ) -> None:
        if not 1 <= batch_size <= length:
            raise ValueError(f"batch_size={batch_size} must be from 1 to the {length} training items")
        if batch_size % world and drop_last:
            near = batch_size // world * world
            raise ValueError(f"batch_size={batch_size} does not divide over {world} ranks; take {near or world}")
        self.length, self.batch_size = length, batch_size
        self.seed, self.shuffle, self.drop_last = seed, shuffle, drop_last
        self.rank, self.world = rank, world
        self.begin(epoch, start_batch)

    def begin(self, epoch: int, start_batch: int = 0) -> None:
        """Set what the next iteration gives; a DataLoader with persistent workers follows, as it asks anew."""
        self.epoch, self.start_batch = epoch, start_batch

    @property
    def batches(self) -> int:
        """The global batches of a whole epoch."""
        return self.length // self.batch_size if self.drop_last else -(-self.length // self.batch_size)

    def __len__(self) -> int:
        """The batches that are left of the epoch."""
        return max(0, self.batches - self.start_batch)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """This rank's part of each batch that is left."""
        epoch, order = self.epoch, list(range(self.length))
        if self.shuffle:
            generator = torch.Generator().manual_seed(mix(self.seed, epoch) & 0xFFFFFFFF)
            order = torch.randperm(self.length, generator=generator).tolist()
        for batch in range(self.start_batch, self.batches):
            part = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(epoch, index) for index in part[self.rank :: self.world]]


class EvaluationSampler(Sampler[list[int]]):
    """Batches of plain indices for evaluation: over all ranks each index comes exactly once, none is repeated.

    The ranks may differ by one item, and so by one batch: collect over them at the end, not batch by batch.

    Args:
        length: the number of items.
        batch_size: of the global batch, over all ranks; each rank takes its part, but at least 1.
        rank: this process, from 0.
        world: the number of processes.

    Example:
        >>> [list(EvaluationSampler(5, 4, rank=rank, world=2)) for rank in (0, 1)]
        [[[0, 2], [4]], [[1, 3]]]
    """

    def __init__(self, length: int, batch_size: int, *, rank: int = 0, world: int = 1) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        self.indices = range(rank, length, world)
        self.part = max(1, batch_size // world)

    def __len__(self) -> int:
        """The number of batches of this rank."""
        return -(-len(self.indices) // self.part)

    def __iter__(self) -> Iterator[list[int]]:
        """This rank's batches."""
        for start in range(0, len(self.indices), self.part):
            yield list(self.indices[start : start + self.part])
