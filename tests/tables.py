"""The tables of the pages that the registry knows: ``python tests/tables.py`` writes them anew."""

import inspect
import re
from pathlib import Path

import torch
from package_names import own

from sj_online import recipes, registry
from sj_online.analysis import network_cost
from sj_online.app import reader

PACKAGE = Path(__file__).parents[1] / "sj_online"
PAGES = {
    "neurons": PACKAGE / "neuron/README.md",
    "layers": PACKAGE / "layer/README.md",
    "models": PACKAGE / "model/README.md",
    "trainers": PACKAGE / "trainer/README.md",
    "recipes": PACKAGE / "recipes/README.md",
}


def said(entry):
    """The first sentence of a docstring, in Markdown."""
    first = re.split(r"(?<!al\.)(?<!Eq\.)(?<!Sec\.)(?<!Alg\.)(?<=\.) |\n\n", inspect.getdoc(entry), maxsplit=1)[0]
    return re.sub(r":\w+:`[~.\w]*?(\w+)`", r"`\1`", " ".join(first.split())).replace("``", "`").rstrip(".")


def named(group, header, columns):
    entries = {name: registry.get(group, name) for name in own(group)}
    rows = [[f"`{name}`", f"`{entry.__name__}`", *columns(entry)] for name, entry in entries.items()]
    return [["name", "in Python", *header], *rows]


def model(entry):
    with torch.device("meta"):
        cost = network_cost(entry())
    return f"{cost.parameters:,}", f"{cost.packed_bytes / 1e6:.2f}", entry.paper


def rows_of_papers():
    rows = [["recipe", "table", "row", "accuracy there"]]
    for name in sorted(recipes.files()):
        paper = reader.build(reader.source(name)).paper
        accuracy = f"{paper.accuracy:.2f} %" if paper and paper.accuracy is not None else "-"
        rows.append([f"`{name}`", paper.table, paper.row, accuracy] if paper else [f"`{name}`", "-", "-", "-"])
    return rows


TABLES = {
    "neurons": lambda: named("neurons", ["what it is", "paper"], lambda e: (said(e), e.paper)),
    "layers": lambda: named("layers", ["what it is", "paper"], lambda e: (said(e), getattr(e, "paper", "-"))),
    "models": lambda: named("models", ["parameters", "MB packed", "paper"], model),
    "trainers": lambda: named(
        "trainers", ["what it does", "exact", "paper"], lambda e: (said(e), "yes" if e.exact else "no", e.paper)
    ),
    "recipes": rows_of_papers,
}


def filled(name):
    """The page with its table as it should be."""
    rows = [f"| {' | '.join(row)} |" for row in TABLES[name]()]
    rows.insert(1, "|" + "---|" * (rows[0].count("|") - 1))
    table = "\n".join([f"<!-- table: {name} -->", *rows, "<!-- end -->"])
    pattern = rf"<!-- table: {name} -->\n.*?<!-- end -->"
    page, count = re.subn(pattern, lambda match: table, PAGES[name].read_text(), flags=re.S)
    assert count == 1, f"{PAGES[name]} has no place for the table of {name}"
    return page


if __name__ == "__main__":
    for name, page in PAGES.items():
        page.write_text(filled(name))
