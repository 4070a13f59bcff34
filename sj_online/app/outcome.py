"""What becomes of a trained network: its accuracy on the test data, and its packed file."""

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from sj_online import check, deploy
from sj_online.app import batches, loop, named, plain
from sj_online.app.build import for_evaluation
from sj_online.app.networks import fits, open_run
from sj_online.app.parts import Parts
from sj_online.app.recipe import Dataset, Named, Precision, Recipe


def open_for_evaluation(
    source: str | Path,
    *,
    checkpoint: str = "last",
    root: str | None = None,
    precision: Precision | None = None,
    convert: str | None = None,
    runtime: str = "packed",
) -> Parts:
    """The trained network of a run directory or a packed file, with its data.

    Args:
        source: a run directory or a file that :func:`export` wrote.
        checkpoint: ``'last'`` or ``'best'``, of a run directory.
        root: folder of the data; None for the one of the recipe.
        precision: ``fabric.precision``; None for the one of the recipe.
        convert: a conversion of the network, such as ``'qcfs_to_lmh'``.
        runtime: of a packed file, see :func:`sj_online.deploy.load`.

    Raises:
        ValueError: one line that names what cannot be read.
    """
    if Path(source).is_dir():
        if runtime != "packed":
            raise ValueError(
                f"runtime={runtime!r} is for a packed file, and {source} is a run directory: export it first"
            )
        recipe, made = open_run(source, checkpoint)
        net = made.net
    else:
        recipe, net = _unpacked(Path(source), runtime)
    if convert:
        named.run(f"conversion {convert}", partial(named.entry("converters", convert), net))
    recipe = replace(
        recipe,
        dataset=replace(recipe.dataset, root=root or recipe.dataset.root),
        fabric=replace(recipe.fabric, precision=precision or recipe.fabric.precision),
    )
    return for_evaluation(recipe, net)


def test_accuracy(parts: Parts) -> float:
    """The part of the test data that is classified right."""
    return loop.evaluate(parts, batches.evaluation(parts, parts.data.test))["accuracy"]


def accuracy_by_step(parts: Parts, steps: int) -> list[float]:
    """The part of the test data that is classified right after 1, 2, ... steps, from one pass over as many.

    Raises:
        ValueError: the data set has fewer steps of its own, or targets at each.
    """
    data, name = parts.data, parts.recipe.dataset.name
    check.at_least("steps", steps)
    if data.per_step_targets:
        raise ValueError(f"steps={steps}: data set {name} has a target at each step, not one for all steps so far")
    if data.steps is not None and steps > data.steps:
        raise ValueError(f"steps={steps}: data set {name} has its own {data.steps} steps")
    right = torch.zeros(steps, dtype=torch.int64, device=parts.fabric.device)
    for x, y in batches.evaluation(parts, data.test):
        right += (batches.predict_running(parts, x, steps).argmax(-1) == y).sum(1)
    return (right / len(data.test)).tolist()


@dataclass(frozen=True)
class Streamed:
    """What came of :func:`stream`: the accuracy, the samples, and the median milliseconds of a step."""

    accuracy: float
    samples: int
    milliseconds: float


def stream(parts: Parts) -> Streamed:
    """Run the test data live: one sample, one step at a time, the state reset between samples.

    Raises:
        ValueError: the data set has a target for every step, so that there is no one class of a sample.
    """
    if parts.data.per_step_targets:
        raise ValueError("--stream asks for one class of a sample, and this data set has a target for each step")
    static = parts.recipe.num_steps if parts.data.steps is None else None
    right, seconds = [], []
    for x, y, *_ in batches.evaluation(parts, parts.data.test):
        x, axis = batches.prepared(parts, x), 0 if static else 1
        for n in range(len(y)):
            sample = x.narrow(axis, n, 1)
            running = deploy.stream(parts.net, [sample] * static if static else sample)
            total: Any = 0
            start = time.perf_counter()
            for output in running:
                total = total + output
                seconds.append(time.perf_counter() - start)
                start = time.perf_counter()
            right.append(bool(total.argmax() == y[n]))
    return Streamed(sum(right) / len(right), len(right), 1e3 * median(seconds))


def export(source: str | Path, to: str | Path, *, checkpoint: str = "last") -> None:
    """Write the network of a run directory to a packed file that :func:`open_for_evaluation` can read.

    Args:
        source: the run directory.
        to: the ``.safetensors`` file.
        checkpoint: ``'last'`` or ``'best'``.

    Raises:
        ValueError: no run, or no readable checkpoint.
    """
    recipe, made = open_run(source, checkpoint)
    if recipe.start and recipe.start.convert:
        raise ValueError(f"{source} began from a converted network, which no registered model builds: pack it by hand")
    dataset = {"name": recipe.dataset.name, "options": recipe.dataset.options}
    metadata = {"dataset": dataset, "num_steps": recipe.num_steps}
    deploy.export(made.net, to, model=made.model, kwargs=made.options, metadata=metadata)


def _unpacked(path: Path, runtime: str) -> tuple[Recipe, Any]:
    """The network of a packed file, and of its metadata what it takes to evaluate it: nothing that steers a process."""
    header = deploy.read_header(path)
    metadata, model = header["metadata"], header["model"]
    try:
        if model is None:
            raise ValueError("it names no model")
        if not isinstance(metadata.get("dataset"), dict):
            raise ValueError("it names no data set")
        given = {key: metadata["dataset"].get(key, default) for key, default in (("name", None), ("options", {}))}
        dataset = plain.typed(Dataset, given, "dataset")
        recipe = Recipe(num_steps=plain.typed(int | None, metadata.get("num_steps"), "num_steps"), dataset=dataset)
        asked = Named(model, plain.typed(dict, header["kwargs"], "kwargs"))
        named.check("models", asked)
        named.check("data", Named(dataset.name, dataset.options), reserved=("root", "download"))
        fits(asked)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return recipe, named.run(str(path), partial(deploy.load, path, runtime=runtime))
