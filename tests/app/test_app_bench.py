"""The commands of measurement: what they print, leave out and refuse."""

import csv
import math

import pytest
import tinyrecipe
import torch
from package_names import own

from sj_online import registry
from sj_online.app import bench, rules, studies
from sj_online.app.cli import main
from sj_online.app.recipe import Named
from sj_online.app.tables import Table
from sj_online.trainer import BPTT

TINY = "num_steps: 2\nmodel: {name: small_vgg, options: {width: 4}}\nfabric: {accelerator: cpu}\n"


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return ["--recipe", str(path), "--batch", "2"]


def rows(path):
    with path.open() as file:
        return list(csv.reader(file))


def test_all_registered_rules_are_compared_and_what_is_not_there_is_said(monkeypatch):
    found, left_out = rules.compared()
    assert set(own("trainers")) <= {rule.name for rule in found.values()}
    assert list(found)[:2] == ["SLTT", "BPTT"]
    names = [name for name in own("trainers") if name != "stol"] + ["somebodys"]
    monkeypatch.setattr(registry, "names", lambda group: names)
    found, left_out = rules.compared()
    assert "STOL is left out: no rule stol is registered" in left_out
    assert "STOL" not in found and found["somebodys"] == Named("somebodys")
    assert rules.compared(["stol", "time_slicing"]) == (
        {"time slicing": Named("time_slicing", {"k": 2})},
        ["STOL is left out: no rule stol is registered"],
    )
    with pytest.raises(ValueError, match="rule 'nobodys' is not registered; known: .*sltt"):
        rules.compared(["nobodys"])


def test_memory_is_flat_for_sltt_and_grows_for_bptt(recipe, tmp_path, capsys):
    out = tmp_path / "memory.csv"
    options = ["--rules", "sltt,bptt", "--steps", "2,4,8", "--csv", str(out)]
    assert main(["bench", "memory", *recipe, *options]) == 0
    titles, *lines = rows(out)
    assert titles == ["rule", "saved, T=2", "live, T=2", "saved, T=4", "live, T=4", "saved, T=8", "live, T=8"]
    table = {line[0]: [float(value) for value in line[1:]] for line in lines}
    assert list(table) == ["SLTT", "BPTT", "host BPTT", "memopt", "checkpointing"]
    assert table["SLTT"][0] == table["SLTT"][2] == table["SLTT"][4]
    assert table["BPTT"][4] - table["BPTT"][2] == pytest.approx(2 * (table["BPTT"][2] - table["BPTT"][0]), rel=0.05)
    assert all(line[i + 1] > line[i] for line in table.values() for i in (0, 2, 4))  # live beside saved
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0].split("  ")[0].strip() == "rule" and "MB, batch 2" in captured.out
    assert "SLTT, T=8: memory" in captured.err  # the progress


def test_rules_are_timed_beside_the_first_itself(recipe, tmp_path):
    out = tmp_path / "rules.csv"
    assert main(["bench", "rules", *recipe, "--rules", "sltt,eprop_of_nobody", "--rounds", "2"]) == 2
    assert main(["bench", "rules", *recipe, "--rules", "ottt", "--rounds", "2", "--csv", str(out)]) == 0
    _, *lines = rows(out)
    names = [line[0] for line in lines]
    assert names == ["OTTT", "OTTT (again)", "host BPTT", "memopt", "checkpointing"]
    assert lines[0][3:6] == ["1.0"] * 3 and all(float(line[2]) > 0 for line in lines)
    assert all(line[1] == "2" for line in lines)


def test_gradients_of_a_trained_network(run_dir, tmp_path, capsys):
    out = tmp_path / "gradients.csv"
    options = ["--run", str(run_dir), "--rules", "bptt,stol,sltt", "--batch", "32", "--csv", str(out)]
    assert main(["bench", "gradients", *options]) == 0
    _, *lines = rows(out)
    cosines = {line[0]: float(line[1]) for line in lines}
    assert cosines["BPTT"] == pytest.approx(1) and cosines["STOL"] == pytest.approx(1)  # T=2: two steps are all
    assert 0.3 < cosines["SLTT"] < 1 - 1e-6 and abs(cosines["random direction"]) < 0.3
    assert f"the last checkpoint of {run_dir}" in capsys.readouterr().out


def test_gradients_of_a_recipe_are_those_of_its_loss(recipe):
    parts = tinyrecipe.parts(train={"loss": {"name": "mse_loss"}})
    x = torch.rand(4, 1, 8, 8)
    parts.net.eval()
    found, _ = studies.gradients_of_rules(parts, [(x, torch.rand(4, 10))], ["bptt"], say=lambda _: None)
    (total,) = (row for row in found if (row.rule, row.layer) == ("BPTT", "total"))
    assert total.cosine == pytest.approx(1)
    assert not parts.net.training
    assert main(["bench", "gradients", *recipe, "--rules", "bptt", "--steps", "3"]) == 0


def test_a_rule_that_cannot_train_the_network_is_left_out(monkeypatch, recipe, capsys):
    class Refusing(BPTT):
        def __init__(self, *args, **options):
            raise ValueError("not this one")

    real = registry.get
    monkeypatch.setattr(registry, "get", lambda g, n: Refusing if n == "ottt" else real(g, n))
    assert main(["bench", "gradients", *recipe, "--rules", "ottt,sltt"]) == 0
    assert main(["bench", "memory", *recipe, "--rules", "sltt,ottt", "--steps", "2"]) == 0
    assert capsys.readouterr().out.count("OTTT is left out: ") == 2


def test_data_with_steps_of_their_own_are_measured_at_those(tmp_path):
    path = tmp_path / "recall.yaml"
    path.write_text(
        "model: {name: small_vgg}\ndataset: {name: delayed_recall, options: {steps: 6, cue: 1, recall: 1}}\n"
    )
    recipe = tinyrecipe.reader.build(tinyrecipe.reader.read(path))
    with pytest.raises(ValueError, match="small_vgg cannot take the samples"):
        studies.of_steps(recipe, 6)
    assert bench._steps(type("Args", (), {"steps": None})(), recipe) == [6]


def test_inference_is_step_by_step_and_in_one_pass(recipe, tmp_path):
    out = tmp_path / "inference.csv"
    assert main(["bench", "inference", *recipe, "--rounds", "2", "--csv", str(out)]) == 0
    _, *lines = rows(out)
    assert [line[:3] for line in lines] == [[way, "2", n] for n in "12" for way in ("step by step", "one pass")]
    assert len({line[8] for line in lines}) == 1  # operations of an image
    neurons = 4 * 64 + 8 * 16 + 16 * 4
    assert int(lines[0][8]) == 3 * 2 * neurons
    for line in lines:
        assert float(line[6]) == pytest.approx(1e3 * int(line[2]) / float(line[3]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--steps", "2,x"], "--steps=2,x must be whole numbers above 0"),
        (["--steps", "0"], "--steps=0 must be whole numbers above 0"),
        (["--batch", "0"], "--batch=0 must be at least 1"),
        (["--rounds", "0"], "--rounds=0 must be at least 1"),
        (["--rules", "nobodys"], "rule 'nobodys' is not registered"),
        (["--recipe", "nothing"], "recipe 'nothing' is neither a file nor"),
    ],
)
def test_errors_are_one_line(options, said, capsys):
    assert main(["bench", "memory", *options]) == 2
    assert said in capsys.readouterr().err


def test_tables_are_aligned_and_escaped_and_keep_their_digits(tmp_path):
    table = Table(["name", "x"], [["<a>", 1 / 3], ["b", math.nan], ["c", None], ["d", 12345]], "note & note")
    assert table.text().splitlines() == [
        "name       x",
        "<a>   0.3333",
        "b          -",
        "c          -",
        "d     12,345",
        "note & note",
    ]
    page = table.html()
    assert "<td>&lt;a&gt;</td>" in page and '<td class="n">0.3333</td>' in page and "note &amp; note" in page
    table.write_csv(tmp_path / "t.csv")
    assert rows(tmp_path / "t.csv") == [["name", "x"], ["<a>", str(1 / 3)], ["b", ""], ["c", ""], ["d", "12345"]]
