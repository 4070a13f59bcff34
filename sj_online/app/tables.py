"""Tables of what was measured: for a terminal, a CSV file and a page."""

import csv
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sj_online.analysis.activity import LayerActivity
from sj_online.analysis.gradients import TOTAL, Similarity
from sj_online.analysis.training_cost import TrainingCost


@dataclass
class Table:
    """Rows under titles.

    Args:
        titles: of the columns, with units.
        rows: numbers and words; None and nan are what is not known.
        note: a line below.

    Example:
        >>> print(Table(["rule", "MB"], [["SLTT", 1.23456], ["BPTT", None]], "batch 8").text())
        rule     MB
        SLTT  1.235
        BPTT      -
        batch 8
    """

    titles: Sequence[str]
    rows: Sequence[Sequence[Any]] = ()
    note: str = ""

    def text(self) -> str:
        """For a terminal; numbers to the right."""
        cells = [list(self.titles), *[[cell(value) for value in row] for row in self.rows]]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        words = [all(isinstance(row[i], str) for row in self.rows) for i in range(len(self.titles))]
        lines = []
        for line in cells:
            aligned = [c.ljust(w) if word else c.rjust(w) for c, w, word in zip(line, widths, words, strict=True)]
            lines.append("  ".join(aligned).rstrip())
        return "\n".join(lines + [self.note] * bool(self.note))

    def html(self) -> str:
        """For a page."""
        head = "".join(f"<th>{html.escape(title)}</th>" for title in self.titles)
        body = "".join(
            "<tr>"
            + "".join(
                f"<td>{html.escape(v)}</td>" if isinstance(v, str) else f'<td class="n">{cell(v)}</td>' for v in row
            )
            + "</tr>\n"
            for row in self.rows
        )
        note = f"<p>{html.escape(self.note)}</p>" if self.note else ""
        table = f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"
        return f'<div class="wide">{table}</div>{note}\n'

    def write_csv(self, path: str | Path) -> None:
        """All digits of every number; what is not known is empty."""
        with Path(path).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(self.titles)
            writer.writerows(["" if _unknown(value) else value for value in row] for row in self.rows)


def of_rows(rows: Sequence[Any]) -> Table:
    """Dataclasses of one kind, a column for each field."""
    names = [field.name for field in fields(rows[0])]
    return Table([name.replace("_", " ") for name in names], [[getattr(row, name) for name in names] for row in rows])


def of_activity(layers: Sequence[LayerActivity]) -> Table:
    """A line for each layer."""
    rows = [
        [each.layer, each.neurons, sum(each.rate) / len(each.rate), each.rate[0], each.rate[-1], each.dead, each.always]
        for each in layers
    ]
    return Table(["layer", "neurons", "mean rate", "first step", "last step", "never fire", "fire always"], rows)


def of_learnt(layers: Mapping[str, Mapping[str, Sequence[float]]]) -> Table:
    """A line for each layer, value and step."""
    rows = [
        [layer, name, step, value]
        for layer, values in layers.items()
        for name, numbers in values.items()
        for step, value in enumerate(numbers, 1)
    ]
    return Table(["layer", "value", "step", "number"], rows)


def of_similarity(rows: Sequence[Similarity]) -> Table:
    """In total, the most similar rule first; all layers are in the figure."""
    total = sorted((row for row in rows if row.layer == TOTAL), key=lambda row: -row.cosine)
    titles = ["rule", "cosine to BPTT", "spread", "distance / norm of BPTT", "spread", "norm / norm of BPTT"]
    cells = [[r.rule, r.cosine, r.cosine_spread, r.distance, r.distance_spread, r.norm] for r in total]
    return Table(titles, cells)


def of_cost(rows: Sequence[TrainingCost]) -> Table:
    """A line for each rule and T."""
    titles = ["rule", "T", "ms", "ratio", "quartiles", "", "saved, MB", "peak live, MB"]
    cells = [
        [
            *(r.name, r.steps, 1e3 * r.seconds, r.ratio, r.ratio_low, r.ratio_high),
            *(r.saved_bytes / 1e6, r.peak_bytes / 1e6),
        ]
        for r in rows
    ]
    return Table(titles, cells)


def of_memory(rows: Sequence[TrainingCost]) -> Table:
    """A line for each rule, two columns for each T."""
    steps = list(dict.fromkeys(row.steps for row in rows))
    cells: dict[str, list[Any]] = {}
    for row in rows:
        cells.setdefault(row.name, [row.name]).extend((row.saved_bytes / 1e6, row.peak_bytes / 1e6))
    return Table(["rule", *(f"{what}, T={T}" for T in steps for what in ("saved", "live"))], list(cells.values()))


def cell(value: Any) -> str:
    """A value for people.

    Example:
        >>> cell(1234567), cell(0.98765), cell(float("nan")), cell("a")
        ('1,234,567', '0.9877', '-', 'a')
    """
    if _unknown(value):
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _unknown(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
