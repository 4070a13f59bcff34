"""Figures of what is measured; each function takes the rows of a measurement and gives a matplotlib figure."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from sj_online.analysis.activity import LayerActivity
from sj_online.analysis.gradients import RANDOM, TOTAL, Similarity
from sj_online.analysis.look import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    MARKERS,
    ORANGE,
    PALETTE,
    label,
    legend,
    logarithmic,
    panels,
    style,
    whole,
)
from sj_online.analysis.look import layers as named_layers
from sj_online.analysis.separability import Separability
from sj_online.analysis.training_cost import TrainingCost


def curves(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Loss and accuracy over the epochs of each run, from the lines of its ``metrics.jsonl``."""
    figure, (left, right) = panels(1, 2)
    for place, (name, rows) in enumerate(runs.items()):
        color = PALETTE[place % len(PALETTE)]
        for axes, key, line, suffix in (
            (left, "loss", "-", ""),
            (right, "train_accuracy", ":", ", training"),
            (right, "val_accuracy", "-", ", validation"),
        ):
            points = [(row["epoch"], row[key]) for row in rows if key in row]
            if points:
                scaled = [(x, 100 * y if axes is right else y) for x, y in points]
                axes.plot(*zip(*scaled, strict=True), line, color=color, marker="o", label=name + suffix)
    whole(left.xaxis)
    whole(right.xaxis)
    label(left, "epoch", "loss of training")
    label(right, "epoch", "accuracy (%)")
    return legend(figure, left, right)


def similarity(rows: Iterable[Similarity]) -> Figure:
    """Cosine and distance to backpropagation through time, layer by layer and in total (STOL, Fig. 2).

    The band is a standard deviation over the batches. The random direction, near 0, would flatten the rest: it is left
    to the table.
    """
    figure, (left, right) = panels(1, 2)
    rules: dict[str, list[Similarity]] = {}
    for row in rows:
        if row.rule != RANDOM:
            rules.setdefault(row.rule, []).append(row)
    for name, of_rule in rules.items():
        look = style(name)
        for axes, value, spread in ((left, "cosine", "cosine_spread"), (right, "distance", "distance_spread")):
            x = range(len(of_rule))
            y = [getattr(row, value) for row in of_rule]
            error = [getattr(row, spread) for row in of_rule]
            axes.plot(x, y, linestyle=look.line, color=look.color, marker=look.marker, label=name)
            low, high = [a - b for a, b in zip(y, error, strict=True)], [a + b for a, b in zip(y, error, strict=True)]
            axes.fill_between(x, low, high, color=look.color, alpha=0.15, linewidth=0)
    layers = [row.layer for row in next(iter(rules.values()), [])]
    for axes in (left, right):
        named_layers(axes, ["all" if each == TOTAL else each for each in layers])
    label(left, "synapse", "cosine to BPTT")
    label(right, "synapse", "distance / norm of BPTT")
    return legend(figure, left)


def separability(rows: Sequence[Separability]) -> Figure:
    """Shares of neurons and steps whose gradient separates, and the online gradient over STBP's."""
    figure, (axes,) = panels(1, 1)
    kinds = {
        "neurons": ("neurons (Thm 4.2)", BLUE, "^"),
        "steps": ("neurons and steps (Thm 4.2)", GREEN, "D"),
        "equal": ("online = STBP, measured", ORANGE, "o"),
        "ratio": ("mean online / STBP", BLACK, "s"),
    }
    for key, (text, color, marker) in kinds.items():
        values = [getattr(row, key) for row in rows]
        if not all(map(math.isnan, values)):
            axes.plot(range(len(rows)), values, color=color, marker=marker, label=text)
    named_layers(axes, [row.layer for row in rows])
    axes.set_ylim(-0.02, 1.05)
    label(axes, "neuron layer", "share, or ratio")
    return legend(figure, axes)


def cost(rows: Iterable[TrainingCost]) -> Figure:
    """Time, saved bytes and peak live memory of a training step over T (OTTT, Fig. 2; EM-PF, Fig. 4)."""
    figure, three = panels(1, 3)
    rules: dict[str, list[TrainingCost]] = {}
    for row in rows:
        rules.setdefault(row.name, []).append(row)
    for name, of_rule in rules.items():
        look, T = style(name), [row.steps for row in of_rule]
        values = (
            [1e3 * row.seconds for row in of_rule],
            [row.saved_bytes / 1e6 for row in of_rule],
            [row.peak_bytes / 1e6 for row in of_rule],
        )
        for axes, y in zip(three, values, strict=True):
            if not all(map(math.isnan, y)):
                axes.plot(T, y, linestyle=look.line, color=look.color, marker=look.marker, label=name)
    for axes, text in zip(three, ("time of a step (ms)", "saved for backward (MB)", "peak live (MB)"), strict=True):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter("{x:.0f}")
        logarithmic(axes.yaxis)
        label(axes, "time steps T", text)
    return legend(figure, three[1])


def rates(layers: Sequence[LayerActivity]) -> Figure:
    """Firing rate of each layer at each step, and the shares of dead and always-firing neurons."""
    figure, (left, right) = panels(1, 2)
    for place, layer in enumerate(layers):
        color = matplotlib.colormaps["viridis"](place / max(1, len(layers)))
        left.plot(
            range(1, len(layer.rate) + 1), [100 * r for r in layer.rate], color=color, marker="o", label=layer.layer
        )
    x = range(len(layers))
    right.bar([i - 0.2 for i in x], [100 * each.dead for each in layers], 0.4, color=GREY, label="never fire")
    right.bar(
        [i + 0.2 for i in x], [100 * each.always for each in layers], 0.4, color=ORANGE, hatch="//", label="always"
    )
    named_layers(right, [each.layer for each in layers])
    whole(left.xaxis)
    label(left, "time step", "firing rate (%)")
    label(right, "neuron layer", "neurons (%)")
    return legend(figure, left, right)


def potentials(layers: Sequence[LayerActivity]) -> Figure | None:
    """Histograms of the potentials that a step leaves, one panel a layer; None where no neuron keeps one."""
    shown = [each for each in layers if each.counts]
    if not shown:
        return None
    columns = min(4, len(shown))
    figure, each = panels(math.ceil(len(shown) / columns), columns)
    for axes, layer in zip(each, shown, strict=False):
        total = sum(layer.counts)
        axes.stairs([100 * count / total for count in layer.counts], layer.edges, fill=True, color=BLUE)
        axes.set_title(layer.layer, fontsize=9)
        label(axes, "potential after the step", "share (%)")
    for axes in each[len(shown) :]:
        axes.remove()
    return figure


def learnt(layers: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure | None:
    """What neurons have learnt, over the layers; the bar spans the steps' values. None where nothing is learnt."""
    kinds = list(dict.fromkeys(kind for values in layers.values() for kind in values))
    if not kinds:
        return None
    figure, (axes,) = panels(1, 1)
    for place, kind in enumerate(kinds):
        points = [(x, values[kind]) for x, values in enumerate(layers.values()) if kind in values]
        means = [sum(v) / len(v) for _, v in points]
        bars = [[m - min(v) for m, (_, v) in zip(means, points, strict=True)],
                [max(v) - m for m, (_, v) in zip(means, points, strict=True)]]  # fmt: skip
        axes.errorbar(
            [x for x, _ in points], means, bars, color=PALETTE[place], marker=MARKERS[place], capsize=2, label=kind
        )
    named_layers(axes, list(layers))
    label(axes, "neuron layer", "learnt value")
    return legend(figure, axes)


def accuracy_by_steps(runs: Mapping[str, Sequence[float]]) -> Figure:
    """Accuracy against the number of inference steps."""
    figure, (axes,) = panels(1, 1)
    for place, (name, values) in enumerate(runs.items()):
        color = PALETTE[place % len(PALETTE)]
        axes.plot(
            range(1, len(values) + 1), [100 * v for v in values], color=color, marker=MARKERS[place % 12], label=name
        )
    whole(axes.xaxis)
    label(axes, "inference steps", "accuracy (%)")
    return legend(figure, axes)


def pareto(points: Mapping[str, Iterable[Mapping[str, Any]]]) -> Figure:
    """Accuracy against memory and against time, a panel pair for each task.

    Args:
        points: by task, of rows with ``rule``, ``accuracy`` (0..1), ``spread``, ``peak_bytes`` and ``seconds``.
    """
    figure, each = panels(len(points), 2)
    for place, (task, rows) in enumerate(points.items()):
        memory, time = each[2 * place : 2 * place + 2]
        for row in rows:
            look, y = style(row["rule"]), 100 * row["accuracy"]
            for axes, x in ((memory, row["peak_bytes"] / 1e6), (time, row["seconds"])):
                axes.errorbar(
                    x, y, 100 * row["spread"], color=look.color, marker=look.marker, ls="", capsize=2, label=row["rule"]
                )
        for axes, text in ((memory, "peak live memory (MB)"), (time, "training time (s)")):
            axes.set_xscale("log")
            logarithmic(axes.xaxis)
            axes.set_title(task, fontsize=9)
            label(axes, text, "test accuracy (%)")
    return legend(figure, *each)
