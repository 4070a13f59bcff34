"""What is drawn are the numbers that were given, with labels and units, each rule in its own look."""

import base64
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib
import pytest
from matplotlib.image import imread
from package_names import own

from sj_online.analysis import figures, look
from sj_online.analysis.activity import LayerActivity
from sj_online.analysis.gradients import RANDOM, TOTAL, Similarity
from sj_online.analysis.separability import Separability
from sj_online.analysis.training_cost import TrainingCost

LAYERS = [
    LayerActivity("a", 3, [0.1, 0.2], 0.5, 0.25, [0.0, 1.0, 2.0], [1, 3]),
    LayerActivity("b", 3, [0.0, 0.3], 0.0, 0.0, [], []),
]


def lines(axes):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}


def labelled(figure):
    return all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)


def test_every_rule_has_its_own_look_whatever_its_options_and_however_it_is_spelt():
    names = [*own("trainers"), "host BPTT", "memopt", "checkpointing"]
    looks = [look.style(name) for name in names]
    assert len(set(looks)) == len(names)
    assert look.style("time_slicing") == look.style("Time slicing")
    assert look.style("STOL (horizon 4)").color == look.style("stol").color
    assert look.style("STOL (horizon 4)") != look.style("stol")
    assert look.style("somebody's rule") == look.style("somebody's rule")
    assert look.style("somebody's rule").color in look.PALETTE


def test_similarity_is_drawn_by_layer_without_the_random_direction():
    rows = [
        Similarity(rule, layer, cosine, 0.01, 1 - cosine, 0.02, 1.0)
        for rule, cosine in (("sltt", 0.8), ("stol", 0.9), (RANDOM, 0.0))
        for layer in ("x", "y", TOTAL)
    ]
    figure = figures.similarity(rows)
    left, right = figure.axes
    assert lines(left) == {"sltt": ([0, 1, 2], [0.8] * 3), "stol": ([0, 1, 2], [0.9] * 3)}
    assert lines(right)["stol"][1] == pytest.approx([0.1] * 3)
    assert [text.get_text() for text in left.get_xticklabels()] == ["x", "y", "all"]
    assert left.get_lines()[0].get_color() == look.style("sltt").color
    assert labelled(figure)
    band = left.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((0.79, 0.81))


def test_cost_is_in_milliseconds_and_megabytes_over_steps():
    rows = [TrainingCost("sltt", T, 0.5, 1, 1, 1, 2_000_000, 3_000_000) for T in (2, 8)]
    rows += [TrainingCost("bptt", T, math.nan, 1, 1, 1, T * 1_000_000, T * 2_000_000) for T in (2, 8)]
    figure = figures.cost(rows)
    time, saved, peak = figure.axes
    assert lines(time) == {"sltt": ([2, 8], [500, 500])}  # what was not timed is not drawn
    assert lines(saved) == {"sltt": ([2, 8], [2, 2]), "bptt": ([2, 8], [2, 8])}
    assert lines(peak)["bptt"][1] == [4, 16]
    assert labelled(figure) and "(MB)" in saved.get_ylabel() and "(ms)" in time.get_ylabel()


def test_curves_leave_out_what_a_run_has_not():
    runs = {"a": [{"epoch": 1, "loss": 2.0, "val_accuracy": 0.5}, {"epoch": 2, "loss": 1.0}], "b": [{"epoch": 1}]}
    figure = figures.curves(runs)
    left, right = figure.axes
    assert lines(left) == {"a": ([1, 2], [2.0, 1.0])}
    assert lines(right) == {"a, validation": ([1], [50.0])}
    assert labelled(figures.curves({}))


def test_rates_and_potentials():
    figure = figures.rates(LAYERS)
    left, right = figure.axes
    assert lines(left)["a"] == ([1, 2], pytest.approx([10, 20]))
    assert [bar.get_height() for bar in right.patches] == [50, 0, 25, 0]
    assert labelled(figure)
    histogram = figures.potentials(LAYERS)
    assert [axes.get_title() for axes in histogram.axes] == ["a"]
    (stairs,) = histogram.axes[0].patches
    assert stairs.get_data().values.tolist() == [25, 75]
    assert figures.potentials(LAYERS[1:]) is None


def test_separability_leaves_out_what_has_no_theorem():
    rows = [Separability("a", math.nan, math.nan, 0.5, 0.6), Separability("b", math.nan, math.nan, 0.4, 0.7)]
    assert set(lines(figures.separability(rows).axes[0])) == {"online = STBP, measured", "mean online / STBP"}
    rows = [Separability("a", 0.1, 0.2, 0.5, 0.6)]
    assert len(lines(figures.separability(rows).axes[0])) == 4


def test_learnt_values_span_their_steps():
    (axes,) = figures.learnt({"a": {"decay": [0.2, 0.6]}, "b": {"mu_d": [0.5]}}).axes
    decay, _ = axes.containers
    low, high = decay.lines[1]
    assert decay.lines[0].get_ydata().tolist() == [pytest.approx(0.4)]
    assert (low.get_ydata()[0], high.get_ydata()[0]) == pytest.approx((0.2, 0.6))
    assert figures.learnt({}) is None


def test_accuracy_and_pareto_are_in_percent():
    assert lines(figures.accuracy_by_steps({"run": [0.5, 0.75]}).axes[0]) == {"run": ([1, 2], [50, 75])}
    row = {"rule": "bptt", "accuracy": 0.9, "spread": 0.01, "peak_bytes": 5e6, "seconds": 7.0}
    figure = figures.pareto({"one": [row], "two": [row | {"rule": "sltt"}]})
    memory, time, *_ = figure.axes
    point = memory.containers[0].lines[0]
    assert (point.get_xdata()[0], point.get_ydata()[0]) == (5, 90)
    assert time.containers[0].lines[0].get_xdata()[0] == 7
    assert [axes.get_title() for axes in figure.axes] == ["one", "one", "two", "two"]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"bptt", "sltt"} if figure.legends else True


def test_files_are_the_same_each_time_and_nothing_outside_changes(tmp_path):
    before = dict(matplotlib.rcParams)
    figure = figures.rates(LAYERS)
    text = look.svg(figure)
    assert text == look.svg(figures.rates(LAYERS))
    assert ET.fromstring(text).tag.endswith("svg") and "http://" not in text.split("<defs>")[1].replace("xlink", "")
    kind, encoded = look.data_uri(figures.rates(LAYERS)).split(",")
    assert kind == "data:image/svg+xml;base64" and base64.b64decode(encoded).decode() == text
    look.save_png(figure, tmp_path / "figure.png")
    pixels = imread(tmp_path / "figure.png")
    assert pixels.shape[1] > 1000 and pixels.std() > 0.01
    assert dict(matplotlib.rcParams) == before


def test_a_long_legend_goes_below_once():
    rows = [Similarity(f"rule {i}", TOTAL, 0.5, 0, 0.5, 0, 1) for i in range(6)]
    figure = figures.similarity(rows)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [f"rule {i}" for i in range(6)]
    assert not figure.axes[0].get_legend()
    short = figures.similarity(rows[:3])
    assert not short.legends and short.axes[0].get_legend()


def test_no_window_and_no_matplotlib_before_figures():
    code = "import sys, sj_online.analysis; assert 'matplotlib' not in sys.modules\n"
    code += "import sj_online.analysis.figures; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_example_on_the_page_of_measurements_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Path(figures.__file__).with_name("README.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "similarity.png").exists()
    for call in re.findall(r"`(\w+)\.(\w+)\(", page):
        __import__(f"sj_online.analysis.{call[0]}", fromlist=["_"]).__dict__[call[1]]
