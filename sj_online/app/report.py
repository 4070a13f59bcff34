"""One page about some runs: curves, tables and figures, in a file that needs nothing else; and PNG and CSV of them."""

import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import sj_online
from sj_online.analysis import figures
from sj_online.app import findings, studies, tables
from sj_online.app.findings import Findings
from sj_online.app.networks import describe, time_steps
from sj_online.app.page import Page
from sj_online.app.tables import Table
from sj_online.files import replacing

PARTS = ("activity", "gradients", "cost")
COST_BATCH = 8


def write(
    runs: Sequence[str | Path],
    to: str | Path,
    *,
    parts: Sequence[str] = ("activity", "gradients"),
    checkpoint: str = "last",
    root: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Findings]:
    """Write a report of some runs; PNG and CSV go into a folder beside it, of the same name without the ending.

    Args:
        runs: directories of runs, whole or interrupted.
        to: the page.
        parts: what is measured besides what the runs have left, of :data:`PARTS`.
        checkpoint: ``'last'`` or ``'best'``, of the networks.
        root: folder of the data; None for the recipes'.
        say: told what is being measured.

    Raises:
        ValueError: a directory without a run, or a name that the folder cannot have.
    """
    to = Path(to)
    folder = to.with_suffix("")
    if folder == to:
        raise ValueError(f"{to} has no ending such as .html, which its folder of figures goes without")
    found = [findings.read(run) for run in runs]
    for name in {each.name for each in found}:
        twins = [each for each in found if each.name == name]
        for number, each in enumerate(twins if len(twins) > 1 else [], 1):
            each.name = f"{name} ({number})"
    for each in found:
        findings.measure(each, [p for p in parts if p != "cost"], checkpoint=checkpoint, root=root, say=say)
    folder.mkdir(parents=True, exist_ok=True)
    page = Page(folder)
    _together(page, found)
    for each in found:
        _alone(page, each, parts, say)
    unasked = [part for part in PARTS if part not in parts]
    if unasked:
        page.text("p", f"Not asked for: {', '.join(unasked)} (--parts).")
    with replacing(to) as temporary:
        temporary.write_text(page.html())
    return found


def _together(page: Page, found: Sequence[Findings]) -> None:
    page.text("h1", ", ".join(each.name for each in found))
    page.text("p", f"sj-online {sj_online.__version__}, torch {torch.__version__}, {platform.machine()}.")
    rows = [_row(each) for each in found]
    page.table("runs", Table([title for title, _ in rows[0]], [[value for _, value in row] for row in rows]))
    if missing := findings.missing(found):
        page.text("h2", "What is missing")
        page.lines(missing)
    page.text("h2", "Curves")
    curves = {each.name: each.metrics for each in found if each.metrics}
    if curves:
        page.figure("curves", "curves", figures.curves(curves))
        titles = list(dict.fromkeys(key for rows in curves.values() for row in rows for key in row))
        lines = [[name, *(row.get(key) for key in titles)] for name, rows in curves.items() for row in rows]
        page.table("metrics", Table(["run", *titles], lines), folded=True)
    else:
        page.text("p", "No epoch has ended.")
    by_steps = {each.name: each.by_steps for each in found if each.by_steps}
    if by_steps:
        page.text("h2", "Accuracy against inference steps")
        page.figure("accuracy_by_steps", "accuracy_by_steps", figures.accuracy_by_steps(by_steps))
        lines = [[name, t, value] for name, values in by_steps.items() for t, value in enumerate(values, 1)]
        page.table("accuracy_by_steps", Table(["run", "steps", "accuracy"], lines), folded=True)


def _row(found: Findings) -> list[tuple[str, Any]]:
    recipe, summary = found.recipe, found.summary
    last = found.metrics[-1] if found.metrics else {}
    known: list[tuple[str, Any]] = [("run", found.name)]
    known += [
        ("model", recipe.model.name if recipe else None),
        ("data", recipe.dataset.name if recipe else None),
        ("rule", recipe.train.rule.name if recipe else None),
        ("steps", recipe.num_steps if recipe else None),
        ("epochs", summary.get("epochs", last.get("epoch"))),
        ("validation accuracy", last.get("val_accuracy")),
        ("test accuracy", summary.get("test_accuracy")),
        ("test images", summary.get("test_images")),
        ("training, s", summary.get("train_seconds")),
        ("peak memory, MB", _mega(summary.get("peak_memory_bytes", last.get("peak_memory_bytes")))),
        ("saved, MB", _mega(summary.get("saved_bytes"))),
        ("parameters", summary.get("parameters")),
    ]
    return known


def _mega(value: Any) -> float | None:
    return value / 1e6 if isinstance(value, int | float) else None


def _alone(page: Page, found: Findings, parts: Sequence[str], say: Callable[[str], None]) -> None:
    """The measurements of one run, where there are any."""
    name = found.name
    page.text("h2", name)
    if not (found.activity or found.learnt or found.similarity or "cost" in parts):
        page.text("p", "Nothing is measured.")
    if found.activity:
        page.text("h3", "Activity")
        page.figure(f"{name}_rates", "rates", figures.rates(found.activity))
        page.table(f"{name}_activity", tables.of_activity(found.activity))
        page.figure(f"{name}_potentials", "potentials", figures.potentials(found.activity))
    if found.learnt:
        page.figure(f"{name}_learnt", "learnt", figures.learnt(found.learnt))
        page.table(f"{name}_learnt", tables.of_learnt(found.learnt), folded=True)
    if found.separability:
        page.text("h3", "Separability")
        page.figure(f"{name}_separability", "separability", figures.separability(found.separability))
        page.table(f"{name}_separability", tables.of_rows(found.separability))
    if found.similarity:
        page.text("h3", "Gradients beside BPTT's")
        page.figure(f"{name}_similarity", "similarity", figures.similarity(found.similarity))
        page.table(f"{name}_similarity", tables.of_similarity(found.similarity))
        page.table(f"{name}_similarity_layers", tables.of_rows(found.similarity), folded=True)
    if "cost" in parts and found.recipe:
        page.text("h3", "Cost of training")
        say(f"{name}: cost")
        T = time_steps(found.recipe, describe(found.recipe))
        steps = [T, 2 * T, 4 * T] if found.recipe.num_steps else [T]
        rows, left_out = studies.cost_of_rules(found.recipe, (), steps, batch=COST_BATCH, rounds=0, say=say)
        page.figure(f"{name}_cost", "cost", figures.cost(rows))
        page.table(f"{name}_cost", tables.of_cost(rows))
        page.lines(left_out)
