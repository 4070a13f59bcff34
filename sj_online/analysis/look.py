"""How figures look: one colour, marker and line for each rule everywhere; and how they are written.

The colours are Okabe and Ito's, which colour-blind readers can tell apart; markers and lines say the same again in
black and white. Nothing of a user's matplotlib is changed, and no window is opened.
"""

import base64
import io
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE, GREY = (
    *("#000000", "#E69F00", "#56B4E9", "#009E73", "#B8A800", "#0072B2", "#D55E00", "#CC79A7", "#7F7F7F"),
)
PALETTE = (ORANGE, SKY, GREEN, BLUE, RED, PURPLE, YELLOW, GREY, BLACK)
MARKERS, LINES = "osD^vPX<>*hp", ("-", "--", "-.", ":")


class Style(NamedTuple):
    """How a rule is drawn."""

    color: str
    marker: str
    line: str


_RULES = {
    "bptt": Style(BLACK, "s", "-"),
    "host bptt": Style(BLACK, "D", "--"),
    "memopt": Style(GREY, "X", "--"),
    "checkpointing": Style(GREY, "P", ":"),
    "sltt": Style(ORANGE, "o", "-"),
    "ottt": Style(BLUE, "^", "-"),
    "ndot": Style(SKY, "v", "-."),
    "stol": Style(GREEN, "D", "-"),
    "time slicing": Style(RED, "P", "-"),
    "random bp": Style(PURPLE, "X", "--"),
    "fptt": Style(YELLOW, "*", "-."),
    "rate bp": Style(SKY, "h", "--"),
    "eprop": Style(PURPLE, "<", "-"),
    "decolle": Style(RED, ">", ":"),
    "random direction": Style(GREY, ".", ":"),
}
_STYLE: Any = {
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.markersize": 5,
    "svg.hashsalt": "sj_online",
}


def style(name: str) -> Style:
    """The style of a rule by its name; what is in brackets, such as options, changes marker and line alone.

    Example:
        >>> style("stol").color == style("STOL (horizon 4)").color, style("stol").color == style("sltt").color
        (True, False)
    """
    base, bracket, _ = name.lower().replace("_", " ").replace("-", "").partition(" (")
    number = zlib.crc32(name.lower().encode())
    known = _RULES.get(base)
    if known and not bracket:
        return known
    color = known.color if known else PALETTE[zlib.crc32(base.encode()) % len(PALETTE)]
    return Style(color, MARKERS[number % len(MARKERS)], LINES[number // 16 % len(LINES)])


def svg(figure: Figure) -> str:
    """The figure as the text of an SVG."""
    return _written(figure, "svg").decode()


def data_uri(figure: Figure) -> str:
    """The figure as a ``data:`` address, for a page that holds all that it shows."""
    return "data:image/svg+xml;base64," + base64.b64encode(_written(figure, "svg")).decode()


def save_png(figure: Figure, path: str | Path) -> None:
    """Write the figure as a PNG, sharp enough for print."""
    Path(path).write_bytes(_written(figure, "png"))


def _written(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        metadata = {"Date": None} if kind == "svg" else {}  # the same numbers are the same file
        figure.savefig(buffer, format=kind, dpi=200, metadata=metadata)
    return buffer.getvalue()


def panels(rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, row by row."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(3.6 * columns + 0.6 * (columns == 1), 3.3 * rows), layout="constrained")
        FigureCanvasAgg(figure)
        return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def label(axes: Axes, x: str, y: str) -> None:
    """What the axes show, with units."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def whole(axis: Axis) -> None:
    """Ticks at whole numbers only: epochs, steps."""
    axis.set_major_locator(MaxNLocator(integer=True))


def logarithmic(*axes: Axis) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5."""
    for axis in axes:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=9))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())


def layers(axes: Axes, names: list[str]) -> None:
    """Names of layers below an axis that counts them."""
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")


def legend(figure: Figure, *of: Axes) -> Figure:
    """With a legend in each axes, or if one has many names, with one below for all."""
    named = [axes for axes in of if axes.get_legend_handles_labels()[1]]
    if max((len(axes.get_legend_handles_labels()[1]) for axes in named), default=0) <= 4:
        for axes in named:
            axes.legend(fontsize=8, frameon=False)
        return figure
    pairs = [pair for axes in named for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    unique = {text: handle for handle, text in reversed(pairs)}
    texts = list(dict.fromkeys(text for _, text in pairs))
    columns = min(4, len(texts))
    figure.legend(
        [unique[t] for t in texts], texts, loc="outside lower center", ncols=columns, fontsize=8, frameon=False
    )
    return figure
