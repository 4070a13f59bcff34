"""How a run begins: its parts are tried on a batch, or go on where a checkpoint left them."""

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from sj_online.analysis import SavedBytes
from sj_online.app import batches, state
from sj_online.app.parts import Parts
from sj_online.app.state import Progress
from sj_online.app.statistics import Statistics


def trial(parts: Parts) -> tuple[int, state.State]:
    """Train on the first batch and put everything back: what cannot train says so before anything is written.

    Returns:
        The bytes saved for backward, and the form of the state after an update, see
        :func:`~sj_online.app.state.forms`.

    Raises:
        ValueError: the parts do not fit each other.
    """
    stats = Statistics(parts.data.classes)
    before = copy.deepcopy(state.capture(parts, stats, Progress()))
    places = next(iter(batches.training_sampler(parts)))
    batch = parts.fabric.to_device(parts.data.collate([parts.data.train[place] for place in places]))
    parts.net.train()
    try:
        with SavedBytes([*parts.net.parameters(), batch[0]]) as saved:
            batches.train_batch(parts, batch)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        model, rule = parts.recipe.model.name, parts.recipe.train.rule.name
        raise ValueError(f"training rule {rule} cannot train model {model} by this recipe: {error}") from error
    form = state.forms(state.capture(parts, stats, Progress()))
    state.apply(before, parts, stats)
    return saved.peak, form


def resume(parts: Parts, stats: Statistics, asked: Progress, form: state.State, path: Path) -> tuple[Progress, str]:
    """Go on after a checkpoint.

    With more epochs than before, or fewer, the schedule goes on as if it had been that long from the beginning.

    Args:
        parts: what the recipe has built.
        stats: of the epoch; those of the first rank go on with what all ranks have counted.
        asked: the epochs and the batch size of this run.
        form: of its state.
        path: the checkpoint.

    Returns:
        How far the run has come, and a line about it.

    Raises:
        ValueError: the checkpoint cannot be used, or not by a run like this.
    """
    loaded = state.read(path)
    found = state.check(loaded, form, path)
    if (found.epoch, found.batch) > (asked.epochs, 0):
        raise ValueError(f"train.epochs={asked.epochs} is less than {path} has seen: it is in epoch {found.epoch + 1}")
    if found.batch and found.batch_size != asked.batch_size:
        ranks = parts.fabric.world_size
        raise ValueError(
            f"{path} lies within an epoch of batches of {found.batch_size} images, which do not divide over {ranks} "
            "ranks: resume on as many as before"
        )
    if found.batch > (of := len(parts.data.train) // asked.batch_size):
        raise ValueError(f"{path} is damaged or of other data: {found.batch} batches of an epoch that has {of}")
    note = f"resuming after epoch {found.epoch}" + f", batch {found.batch}" * bool(found.batch)
    respanned = found.epochs != asked.epochs and parts.schedule and not isinstance(parts.schedule, ReduceLROnPlateau)
    groups = _at_epoch(parts, found.epoch) if respanned else []
    if parts.schedule and respanned:
        loaded["schedule"] = parts.schedule.state_dict()
    state.apply(loaded, parts, stats)
    for group, options in zip(parts.optimizer.param_groups, groups, strict=False):
        group.update(options)
    if respanned:
        lr = parts.optimizer.param_groups[0]["lr"]
        note += f"; {asked.epochs} epochs in place of {found.epochs}: the schedule goes on at lr {lr:.4g}"
    if not parts.fabric.is_global_zero:
        stats.reset()
    return replace(found, epochs=asked.epochs, batch_size=asked.batch_size), note


def _at_epoch(parts: Parts, epoch: int) -> list[dict[str, Any]]:
    """The options that the schedule, which is new, gives the optimizer after so many epochs."""
    assert parts.schedule is not None
    with warnings.catch_warnings(action="ignore"):  # it is ahead of the optimizer, which is meant
        for _ in range(epoch):
            parts.schedule.step()
    return [
        {name: value for name, value in group.items() if name != "params"} for group in parts.optimizer.param_groups
    ]
