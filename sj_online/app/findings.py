"""What a run's directory tells: what the run has left, and what is measured on its network; and what is missing."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sj_online.analysis.activity import LayerActivity, accuracy_by_steps, activity, learnt
from sj_online.analysis.gradients import Similarity
from sj_online.analysis.separability import Separability, separability
from sj_online.app import reader, studies
from sj_online.app.networks import open_run
from sj_online.app.outcome import open_for_evaluation
from sj_online.app.parts import Parts
from sj_online.app.recipe import Recipe
from sj_online.app.rundir import RunDirectory
from sj_online.files import whole_lines

IMAGES, ACCURACY_IMAGES, GRADIENT_BATCHES, GRADIENT_IMAGES = 128, 2000, 3, 32
FIRING = "the recipe has no callback firing_rates, so there is no firing rate per epoch"


@dataclass
class Findings:
    """Of one run.

    Args:
        name: the directory's name.
        path: the directory.

    Attributes:
        recipe: None if it cannot be read.
        metrics: the lines of metrics.jsonl.
        summary: of a run that has ended, else empty.
        activity: of the neurons, on test data.
        learnt: by layer.
        separability: by layer.
        similarity: of the rules' gradients.
        by_steps: the accuracy after each step.
        missing: lines about what is not there.
    """

    name: str
    path: Path
    recipe: Recipe | None = None
    metrics: list[dict[str, float]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    activity: list[LayerActivity] = field(default_factory=list)
    learnt: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    separability: list[Separability] = field(default_factory=list)
    similarity: list[Similarity] = field(default_factory=list)
    by_steps: list[float] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def read(path: str | Path) -> Findings:
    """What a run has left in its directory.

    Raises:
        ValueError: no run is there.
    """
    directory = RunDirectory(path)
    found = Findings(directory.path.name, directory.path)
    if not (directory.config.is_file() or directory.metrics.is_file() or directory.summary.is_file()):
        raise ValueError(f"{directory.path} is not the directory of a run: it holds no config.yaml, metrics or summary")
    try:
        found.recipe = reader.load(directory.config)
    except ValueError as error:
        found.missing.append(f"the recipe cannot be read, so nothing is measured: {error}")
    lines = whole_lines(directory.metrics) if directory.metrics.is_file() else []
    found.metrics = [row for row in map(_numbers, lines) if "epoch" in row]
    if not found.metrics:
        found.missing.append("metrics.jsonl is missing or empty: no epoch has ended, so there are no curves")
    elif len(found.metrics) == 1:
        found.missing.append("one epoch only: its curves are single points")
    if found.metrics and not any("firing_rate" in row for row in found.metrics):
        found.missing.append(FIRING)
    try:
        found.summary = _table(directory.summary.read_text())
    except (ValueError, OSError):
        found.missing.append("summary.json is missing or damaged: the run was interrupted, or goes on")
    return found


def measure(
    found: Findings, parts: Sequence[str], *, checkpoint: str, root: str | None, say: Callable[[str], None]
) -> None:
    """Add what is measured on a run's network; what cannot be is one more line of what is missing.

    Args:
        found: from :func:`read`.
        parts: of ``'activity'`` and ``'gradients'``.
        checkpoint: ``'last'`` or ``'best'``.
        root: folder of the data; None for the recipe's.
        say: told what is being measured.
    """
    if found.recipe is None or not parts:
        return
    if "activity" in parts:
        try:
            found.learnt = learnt(open_run(found.path, checkpoint)[1].net)
        except (ValueError, OSError) as error:
            found.missing.append(f"what neurons have learnt: {error}")
    try:
        opened = open_for_evaluation(found.path, checkpoint=checkpoint, root=root)
    except (ValueError, OSError) as error:
        found.missing.append(f"{' and '.join(parts)} are not measured: {error}")
        return
    if "activity" in parts:
        say(f"{found.name}: activity")
        _guarded(found, "activity of the neurons", lambda: _activity(found, opened))
    if "gradients" in parts:
        _guarded(found, "similarity of gradients", lambda: _gradients(found, opened, say))


def missing(found: Sequence[Findings]) -> list[str]:
    """What is missing of which run, each thing once."""
    lines: dict[str, list[str]] = {}
    for each in found:
        for line in each.missing:
            lines.setdefault(line, []).append(each.name)
    return [f"{', '.join(names)}: {line}" for line, names in lines.items()]


def _activity(found: Findings, parts: Parts) -> None:
    data, recipe = parts.data, parts.recipe
    static = recipe.num_steps if data.steps is None else None
    (x, *_), *_ = studies.first_batches(parts, data.test, 1, IMAGES)
    found.activity = activity(parts.net, x, static)
    found.separability = separability(parts.net, x, static)
    if data.per_step_targets:
        found.missing.append("accuracy against steps: these data have a target at every step")
        return
    count = -(-min(ACCURACY_IMAGES, len(data.test)) // IMAGES)
    some: Any = studies.first_batches(parts, data.test, count, IMAGES)
    found.by_steps = accuracy_by_steps(parts.net, some, static)


def _gradients(found: Findings, parts: Parts, say: Callable[[str], None]) -> None:
    batches = list(studies.first_batches(parts, parts.data.test, GRADIENT_BATCHES, GRADIENT_IMAGES))
    found.similarity, left_out = studies.gradients_of_rules(
        parts, batches, (), say=lambda text: say(f"{found.name}: {text}")
    )
    found.missing += left_out


def _guarded(found: Findings, what: str, act: Callable[[], None]) -> None:
    """A report of the rest is better than none, whatever a network of a third party does."""
    try:
        act()
    except Exception as error:
        found.missing.append(f"{what} cannot be measured: {type(error).__name__}: {' '.join(str(error).split())[:200]}")


def _numbers(line: str) -> dict[str, float]:
    try:
        return {key: value for key, value in _table(line).items() if isinstance(value, int | float)}
    except ValueError:
        return {}


def _table(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("no table")
    return value
