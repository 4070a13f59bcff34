"""The benchmark on a made task of the digits, with the steps of the whole: chosen, run, stopped, resumed, tabled."""

import csv
import dataclasses
import importlib
import sys
from pathlib import Path

import pytest
import torch
from package_names import own

from sj_online import registry

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def bench(monkeypatch):
    """The script, with tasks that take a second."""
    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(EXAMPLES)
    for name in ("accuracy_tasks", "bench_accuracy"):
        sys.modules.pop(name, None)
    tasks, module = (importlib.import_module(name) for name in ("accuracy_tasks", "bench_accuracy"))
    rules = {name: tasks.ALL[name] for name in ("BPTT", "BPTT + memopt", "SLTT")} | {"nobody": ("nobodys", {})}
    images = tasks.Task(lambda folder: registry.get("data", "digits")(), tasks.convolutional, 2, rules, 1, 192, 100, 64)
    recall = dataclasses.replace(tasks.TASKS["recall_100"], data=tasks.recall(12), rules={"OTTT": tasks.ALL["OTTT"]})
    recall = dataclasses.replace(recall, epochs=1, train=64, test=50, batch=32)
    module.TASKS.clear()
    module.TASKS.update(images=images, recall_100=recall)
    yield module
    torch.set_num_threads(threads)


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_learning_rate_is_chosen_and_three_seeds_follow(bench, tmp_path, capsys):
    path = tmp_path / "found.csv"
    bench.main(["--tasks", "images", "--csv", str(path)])
    found = rows(path)
    assert "nobody is left out: no rule nobodys is registered" in capsys.readouterr().out
    for rule in ("BPTT", "BPTT + memopt", "SLTT"):
        of_rule = [row for row in found if row["rule"] == rule]
        assert [row["stage"] for row in of_rule] == ["choose"] * 3 + ["final"] * 3
        assert {float(row["lr"]) for row in of_rule[:3]} == set(bench.LEARNING_RATES)
        best = max(of_rule[:3], key=lambda row: float(row["accuracy"]))
        assert {row["lr"] for row in of_rule[3:]} == {best["lr"]}
        assert [int(row["seed"]) for row in of_rule[3:]] == list(bench.SEEDS)
        assert [row["batches"] for row in of_rule] == ["1"] * 3 + ["3"] * 3
        assert {row["samples"] for row in of_rule[3:]} == {"100"}
    saved = {row["rule"]: int(row["saved"]) for row in found}
    assert saved["SLTT"] == pytest.approx(saved["BPTT"] / 2, rel=0.05) and saved["BPTT + memopt"] < saved["BPTT"]
    assert all(int(row["live"]) > int(row["saved"]) for row in found)

    before = path.read_text()
    bench.main(["--tasks", "images", "--csv", str(path)])
    assert path.read_text() == before  # nothing was left to do
    lines = before.splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))  # stopped before the last run
    bench.main(["--tasks", "images", "--csv", str(path)])
    again = rows(path)
    assert again[:-1] == found[:-1]
    assert {**again[-1], "seconds": 0} == {**found[-1], "seconds": 0}  # the same run


def test_a_run_that_would_take_too_long_is_made_shorter_and_the_table_says_so(bench, tmp_path, capsys):
    path = tmp_path / "found.csv"
    task = bench.TASKS["recall_100"]
    bench.TASKS["recall_100"] = dataclasses.replace(task, epochs=30)
    bench.main(["--tasks", "recall_100", "--csv", str(path), "--limit", "0.001"])
    found = rows(path)
    assert [(row["batches"], row["planned"]) for row in found] == [("10", "20")] * 3 + [("10", "60")] * 3
    assert int(found[-1]["samples"]) == 50
    capsys.readouterr()
    bench.main(["--csv", str(path), "--table"])
    head, _, line, *rest = capsys.readouterr().out.splitlines()
    assert line.startswith("| recall_100 | OTTT | ") and "made shorter: 17 % of the batches" in line
    assert line.count("|") == head.count("|")
    assert "Weak points" in "".join(rest)


def test_the_table_and_the_figure_are_of_the_csv(bench, tmp_path, capsys):
    path = tmp_path / "found.csv"
    row = dict.fromkeys(bench.COLUMNS, 1) | {"task": "images", "rule": "SLTT", "stage": "final", "lr": 0.002}
    for seed, accuracy in enumerate((0.5, 0.6, 0.7)):
        bench.append(path, row | {"seed": seed, "accuracy": accuracy, "saved": 2_000_000, "live": 3_000_000})
    bench.append(path, row | {"rule": "BPTT", "accuracy": 0.9, "saved": 4e6, "live": 5e6})
    bench.append(path, row | {"stage": "choose", "accuracy": 0.1})
    bench.main(["--csv", str(path), "--table"])
    lines = capsys.readouterr().out.splitlines()[2:4]
    assert lines[0] == "| images | SLTT | 60.00 ± 10.00 | 2.00 | 3.00 | 1 | 0.002 |  |"
    assert lines[1] == "| images | BPTT | 90.00 ± 0.00 | 4.00 | 5.00 | 1 | 0.002 | 1 seeds |"
    bench.main(["--csv", str(path), "--figure", str(tmp_path / "figure.png")])
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"


def test_every_registered_rule_has_a_row():
    sys.path.insert(0, str(EXAMPLES))
    try:
        sys.modules.pop("accuracy_tasks", None)
        tasks = importlib.import_module("accuracy_tasks")
    finally:
        sys.path.remove(str(EXAMPLES))
    assert set(tasks.LONG) <= {*tasks.ALL}
    assert all(task.test >= 2000 for task in tasks.TASKS.values())
    assert set(own("trainers")) <= {name for name, _ in tasks.ALL.values()}
