"""A page that needs nothing else: its parts in their order, each also a PNG or a CSV beside it."""

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from sj_online.analysis import look
from sj_online.app import findings
from sj_online.app.tables import Table

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:68rem;margin:0 auto;padding:1rem;color:#111;background:#fff}
img{max-width:100%;height:auto;display:block}figure{margin:1rem 0}figcaption{color:#444;font-size:.9em}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.85em;margin:.5rem 0}
th,td{padding:.2rem .6rem;border-bottom:1px solid #ccc;text-align:left;white-space:nowrap}
td.n{text-align:right;font-variant-numeric:tabular-nums}h2{margin-top:2.5rem}summary{cursor:pointer}
@media print{details{display:block}}
"""
CAPTIONS = {
    "curves": "Loss of training and accuracy after each epoch.",
    "accuracy_by_steps": "Accuracy on the first test images (at most {images}) by the mean output of the first steps.",
    "rates": "Share of outputs that are not zero; neurons that fire at no step of {batch} test images, or at each.",
    "potentials": "Potentials after a step, all steps together.",
    "learnt": "What the neurons have learnt, in natural units; a bar spans the steps' own values.",
    "separability": "Where the temporal gradient of a neuron separates (Theorem 4.2), and online gradient over STBP's.",
    "similarity": "Cosine and distance of each rule's gradient to backpropagation through time, weights frozen, "
    "{batches} batches of {size}; bands are a standard deviation.",
    "cost": "A training step on random samples: saved for backward, and all that is live at once.",
}  # fmt: skip


@dataclass
class Page:
    """The parts of a page in their order, each also a file.

    Args:
        folder: where PNG and CSV go.
    """

    folder: Path
    body: list[str] = field(default_factory=list)

    def text(self, tag: str, words: str) -> None:
        """A heading or a paragraph."""
        self.body.append(f"<{tag}>{html.escape(words)}</{tag}>\n")

    def lines(self, words: Sequence[str]) -> None:
        """A list."""
        items = "".join(f"<li>{html.escape(each)}</li>\n" for each in words)
        self.body.append(f"<ul>\n{items}</ul>\n")

    def table(self, name: str, table: Table, folded: bool = False) -> None:
        """A table, and its CSV."""
        table.write_csv(self.folder / f"{name}.csv")
        text = table.html()
        self.body.append(f"<details><summary>{html.escape(name)}.csv</summary>{text}</details>\n" if folded else text)

    def figure(self, name: str, kind: str, figure: Figure | None) -> None:
        """A figure, and its PNG."""
        if figure is None:
            return
        uri = look.data_uri(figure)
        look.save_png(figure, self.folder / f"{name}.png")
        caption = CAPTIONS[kind].format(
            images=findings.ACCURACY_IMAGES,
            batch=findings.IMAGES,
            batches=findings.GRADIENT_BATCHES,
            size=findings.GRADIENT_IMAGES,
        )
        self.body.append(
            f'<figure><img alt="{html.escape(kind)}" src="{uri}"><figcaption>{html.escape(caption)}</figcaption>'
            "</figure>\n"
        )

    def html(self) -> str:
        """The page; it may load nothing, and says so to the browser."""
        policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f'<link rel="icon" href="data:,"><title>sj-online report</title><style>{STYLE}</style></head><body>\n'
            + "".join(self.body)
            + "</body></html>\n"
        )
