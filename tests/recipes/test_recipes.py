"""The recipes of the papers: each is read, checked by name and option, built without memory and tried."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sj_online import recipes
from sj_online.analysis import network_cost
from sj_online.app import build as building
from sj_online.app import networks, reader
from sj_online.app.build import build
from sj_online.app.cli import main
from sj_online.app.rehearse import rehearse

FILES = recipes.files()
NAMES = sorted(set(FILES) - {"digits"})
RECIPES = {name: reader.build(reader.source(name)) for name in NAMES}
OF_PAPERS = [name for name in NAMES if FILES[name].parent != Path(recipes.__file__).parent]  # a folder for each


def firsts(key):
    """The first recipe of each kind."""
    found = {}
    for name, recipe in RECIPES.items():
        found.setdefault(str(key(recipe)), name)
    return sorted(found.values())


def unstarted(recipe):
    """Without a run to start from, as the command line rehearses it."""
    return replace(recipe, start=None)


@pytest.fixture
def on_meta(monkeypatch):
    """Build a recipe whose network has no memory."""

    def network(recipe, shape):
        with torch.device("meta"):
            return networks.network(recipe, shape)

    monkeypatch.setattr(building, "network", network)
    monkeypatch.setattr(networks, "fits", lambda model: None)  # builds it once more
    monkeypatch.setattr(building, "prepared", lambda recipe, fabric, net: net)
    monkeypatch.setattr(building, "try_one", lambda parts: None)
    monkeypatch.setattr(building.Fabric, "setup_optimizers", lambda fabric, optimizer: optimizer)
    return lambda name: build(unstarted(RECIPES[name]), rehearsal=True)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_builds(name, on_meta):
    parts = on_meta(name)
    assert parts.optimizer.param_groups[0]["lr"] > 0 and parts.rule.net is parts.net


@pytest.mark.parametrize("name", firsts(lambda recipe: (recipe.model, recipe.dataset.name)))
def test_every_network_takes_its_data(name, on_meta):
    parts = on_meta(name)
    shape, steps = parts.data.shape, parts.data.steps
    x = torch.zeros((2, *shape) if steps is None else (steps, 2, *shape), device="meta")
    assert parts.rule.predict(x).shape == (2, parts.data.classes)


PARAMETERS = {
    "ottt_cifar10_a": 9_228_362,
    "ottt_cifar100_a": 9_274_532,
    "ottt_cifar100_vgg_f": 9_569_508,
    "ottt_dvs_a": 9_227_786,
    "ottt_imagenet_a": 21_797_688,
    "stol_cifar10": 11_173_962,
    "stol_imagenet": 21_797_672,
    "stol_dvs": 9_476_298,
    "stol_gesture": 9_501_387,
    "empf_cifar100_learnable": 11_157_504 + 53_028 + 9_600 + 128,
    "hdlif_cifar10": 11_157_504 + 6_858 + 9_600 + 128,
    "hdlif_imagenet": 21_258_240 + 522_408 + 17_024 + 256,
    "hdlif_dvs_vgg": 9_217_152 + 46_090 + 5_504 + 160,
    "empf_tiny_imagenet": 9_400_320 + 104_328 + 5_888 + 80,
    "lmh_cifar10_resnet18": 11_173_962 + 17 * 4,
    "lmh_cifar100_resnet19": 12_653_988 + 18 * 4,
    "lmh_cifar100_resnet19_wide": 14_687_204 + 17 * 4,
    "lmh_tiny_imagenet_vgg13": 35_404_296 + 12 * 4,
    "lmh_cifar100_vgg13": 28_703_140 + 12 * 4,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_papers(name, on_meta):
    """With the four factors of each LM-H neuron, which the paper does not count."""
    assert sum(p.numel() for p in on_meta(name).net.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "megabytes"), [("hdlif_cifar10", 1.42212), ("hdlif_cifar100", 1.6068), ("hdlif_imagenet", 7.404192)]
)
def test_packed_weights_are_as_small_as_said(name, megabytes, on_meta):
    assert network_cost(on_meta(name).net).packed_bytes == pytest.approx(1e6 * megabytes, abs=1)


def test_the_papers_rows_are_said():
    for name in OF_PAPERS:
        paper = RECIPES[name].paper
        assert paper and paper.table and paper.row, name
        assert paper.accuracy is None or 40 < paper.accuracy < 100, name
        assert FILES[name].parent.name == name.split("_")[0]
    rows = [(RECIPES[name].paper.table, RECIPES[name].paper.row) for name in OF_PAPERS]
    assert len(rows) == len(set(rows)) >= 45


def test_a_recipe_on_a_base_has_a_row_of_its_own():
    for name in OF_PAPERS:
        assert set(reader.read(FILES[name])["paper"]) == {"table", "row", "accuracy"}, name


def test_recipes_differ():
    """No two rows are the same run, but for those that repeat a row of another table under its name."""
    runs = {}
    for name, recipe in RECIPES.items():
        runs.setdefault(str(replace(recipe, paper=None)), []).append(name)
    again = {tuple(names) for names in runs.values() if len(names) > 1}
    assert again == {
        ("stol_dvs", "stol_table4_dvs"),
        ("stol_gesture", "stol_table4_gesture"),
    }


def test_a_run_to_start_from_is_that_of_another_recipe():
    starts = {name: Path(recipe.start.run) for name, recipe in RECIPES.items() if recipe.start}
    assert starts and all(run.parent == Path("runs") and run.name in NAMES for run in starts.values())
    for name, run in starts.items():
        assert RECIPES[name].model == RECIPES[run.name].model
        with pytest.raises(ValueError, match=f"start.run={run} is not the directory of a run"):
            build(RECIPES[name], rehearsal=True)


def test_the_table_fits_a_terminal(capsys):
    assert main(["list", "recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(reader.names()) + 1 and max(map(len, lines)) <= 120
    assert any(line.split()[0] == "stol_k2" and line.endswith(" k=2, best              91.66 %") for line in lines)


def narrow(name):
    """A recipe with fewer channels, steps and pixels."""
    recipe = RECIPES[name]
    steps = 2 if recipe.dataset.name in ("cifar10_dvs", "dvs_gesture", "n_mnist") else None
    model: dict = {"options": {"width": 8}}
    if recipe.model.name == "stol_sew_resnet34":
        model = {}
    if recipe.model.name.startswith("lmh_vgg"):
        model["options"]["hidden"] = 1
    if recipe.model.options.get("num_steps"):
        model["options"]["num_steps"] = 2
    changes = {"model": model, "num_steps": None if steps else 2}
    if steps:
        changes["dataset"] = {"options": {"frames": steps, "resize": 48}}
    elif recipe.dataset.name == "imagenet":
        changes["dataset"] = {"name": "tiny_imagenet"}
    return reader.build(reader.source(name), [changes])


def rehearsed(recipe):
    report = rehearse(build(unstarted(recipe), rehearsal=True), 2)
    assert report.batch_size == 2 and report.saved_bytes > 0 and report.seconds > 0
    return report


@pytest.mark.parametrize("name", firsts(lambda recipe: (recipe.model.name, recipe.train.rule.name)))
def test_each_model_and_rule_rehearse(name):
    rehearsed(narrow(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_rehearses(name):
    report = rehearsed(RECIPES[name])
    assert report.parameters == PARAMETERS.get(name, report.parameters)


def test_the_command_line_rehearses_without_the_run_to_start_from(capsys):
    narrow = ["--model.options.width=8", "--dataset.name=tiny_imagenet", "--train.batch_size=2", "--num_steps=2"]
    assert main(["train", "--recipe", "sltt_imagenet", "--rehearse", *narrow]) == 0
    out = capsys.readouterr().out
    assert out.startswith("parameters ") and "at 2 samples a batch" in out
