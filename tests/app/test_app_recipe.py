"""Plain values to recipes: types, ranges, names of keys; base, merging and sources."""

from dataclasses import asdict
from functools import partial
from importlib.metadata import EntryPoint

import pytest

from sj_online import recipes, registry
from sj_online.app import plain, reader, yamltext
from sj_online.app.recipe import Dataset, Device, Named, Paper, Recipe, Start, Train

LR = {"name": "sgd", "options": {"lr": 0.1, "momentum": 0.9}}


@pytest.mark.parametrize("name", reader.names())
def test_every_recipe_is_read_and_written_as_itself(name):
    recipe = reader.build(reader.source(name))
    assert reader.build(yamltext.parse(recipe.to_yaml())) == recipe
    assert "base" not in yamltext.parse(recipe.to_yaml())


def test_names_of_recipes_are_unique():
    paths = list(recipes.Path(recipes.__file__).parent.rglob("*.yaml"))
    assert len(paths) == len(recipes.files())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": -1}, "seed=-1 must be from 0"),
        ({"seed": True}, "seed=True is not a whole number"),
        ({"seed": 1.0}, "seed=1.0 is not a whole number"),
        ({"seed": "1"}, "seed='1' is not a whole number"),
        ({"seed": 10**5000}, "seed=<int> is not a finite number of a usual size"),
        ({"num_steps": 0}, "num_steps=0 must be from 1 to 10000"),
        ({"num_steps": 10_001}, "num_steps=10001 must be from 1 to 10000"),
        ({"sed": 1}, "sed is not a key; it has seed, num_steps, model, dataset, train, fabric, start, paper"),
        ({"train": {"lr": 1}}, "train.lr is not a key; train has rule, loss, optimizer"),
        ({"train": None}, "train=None is not a table of keys and values"),
        ({"train": [1]}, r"train=\[1\] is not a table"),
        ({"train": {"epochs": 10**9}}, "train.epochs=1000000000 must be from 1 to 100000"),
        ({"train": {"epochs": 0}}, "train.epochs=0 must be from 1"),
        ({"train": {"epochs": None}}, "train.epochs=None is not a whole number"),
        ({"train": {"batch_size": 0}}, "train.batch_size=0 must be from 1 to 1e"),
        ({"train": {"workers": -1}}, "train.workers=-1 must be from 0 to 256"),
        ({"train": {"workers": 10**12}}, "train.workers=1000000000000 must be from 0 to 256"),
        ({"train": {"clip": float("nan")}}, "train.clip=nan is not a finite number"),
        ({"train": {"clip": 0}}, "train.clip=0.0 must be from 1e-09"),
        ({"train": {"clip": "1"}}, "train.clip='1' is not a number"),
        ({"train": {"checkpoint_minutes": float("inf")}}, "train.checkpoint_minutes=inf is not a finite number"),
        ({"train": {"checkpoint_minutes": -1}}, "train.checkpoint_minutes=-1.0 must be from 0 to 10000"),
        ({"train": {"rule": 3}}, "train.rule=3 is not a table"),
        ({"train": {"rule": {"options": {}}, "callbacks": [{"options": {}}]}}, r"train.callbacks\[0\] lacks name"),
        (
            {"train": {"rule": {"name": "a", "option": {}}}},
            "train.rule.option is not a key; train.rule has name",
        ),
        ({"train": {"callbacks": "x"}}, "train.callbacks='x' is not a list"),
        ({"fabric": {"devices": 10**32}}, "fabric.devices=1000.* is not a finite number of a usual size"),
        ({"fabric": {"devices": 0}}, "fabric.devices=0 must be from 1 to 1024"),
        ({"fabric": {"nodes": 0}}, "fabric.nodes=0 must be from 1"),
        ({"fabric": {"threads": 1025}}, "fabric.threads=1025 must be from 1 to 1024"),
        ({"fabric": {"accelerator": "tpu"}}, "fabric.accelerator='tpu' is not one of auto, cpu, cuda"),
        ({"fabric": {"compile": 1}}, "fabric.compile=1 is not true or false"),
        ({"start": {"checkpoint": "last"}}, "start lacks run"),
        ({"start": {"run": "a", "checkpoint": "first"}}, "start.checkpoint='first' is not one of last, best"),
        ({"paper": {"table": "1", "row": "2", "accuracy": 101}}, "paper.accuracy=101.0 must be from 0 to 100"),
        ({"model": {"options": {"a": float("inf")}}}, "a=inf is not a finite number"),
        ({"model": {"options": {"a": [1, {"b": 10**400}]}}}, "is not a finite number"),
        ({"model": {"options": {1: 2}}}, "key 1 is not a string"),
        ({"model": {"options": {"a": object()}}}, "is a object: only numbers, strings, lists, tables"),
        ({"dataset": {"root": 5}}, "dataset.root=5 is not a string"),
    ],
)
def test_what_is_refused(values, message):
    with pytest.raises(ValueError, match=message) as raised:
        reader.build(values)
    assert len(str(raised.value)) < 500 and "\n" not in str(raised.value)


def test_tables_without_end_are_refused():
    endless = {}
    endless["a"] = endless
    with pytest.raises(ValueError, match=f"nested more than {plain.DEPTH} deep"):
        reader.build({"model": {"name": "x", "options": endless}})


@pytest.mark.parametrize(
    ("key", "low", "high", "step"),
    [
        ("seed", 0, 2**63 - 1, 1),
        ("num_steps", 1, 10_000, 1),
        ("train.epochs", 1, 100_000, 1),
        ("train.batch_size", 1, 1_000_000, 1),
        ("train.workers", 0, 256, 1),
        ("train.clip", 1e-9, 1e9, 1e-10),
        ("train.checkpoint_minutes", 0.0, 10_000.0, 0.1),
        ("fabric.devices", 1, 1024, 1),
        ("fabric.nodes", 1, 10_000, 1),
        ("fabric.threads", 1, 1024, 1),
        ("paper.accuracy", 0.0, 100.0, 0.1),
    ],
)
def test_the_ends_of_ranges_are_in_and_what_is_beyond_is_not(key, low, high, step):
    *outer, name = key.split(".")
    kinds = {"train": Train, "fabric": Device, "paper": partial(Paper, "table", "row")}
    kind = kinds[outer[0]] if outer else Recipe
    assert [getattr(kind(**{name: value}), name) for value in (low, high)] == [low, high]
    for value in (low - step, high + max(step, 1e-6 * high) if isinstance(high, float) else high + step):
        with pytest.raises(ValueError, match=f"{key}=.* must be from {low:g} to "):
            kind(**{name: value})


@pytest.mark.parametrize("kind", [Named, Dataset])
def test_options_are_plain_values_in_a_recipe_made_by_hand_too(kind):
    with pytest.raises(ValueError, match="options of x: a is a object: only numbers, strings, lists, tables"):
        kind("x", options={"a": object()})


def test_what_may_be_left_out_may_be_none():
    recipe = reader.build({"fabric": {"devices": None, "threads": None}, "train": {"clip": None}, "num_steps": None})
    assert (recipe.fabric.devices, recipe.fabric.threads, recipe.train.clip, recipe.num_steps) == (None,) * 4


def test_a_name_stands_for_itself_without_options():
    recipe = reader.build({"model": "a", "train": {"rule": {"name": "b"}, "callbacks": ["c"], "schedule": None}})
    assert recipe.model == Named("a")
    assert (recipe.train.rule, recipe.train.callbacks, recipe.train.schedule) == (Named("b"), [Named("c")], None)
    assert reader.build({"dataset": "x"}).dataset.name == "x"
    assert reader.build({"start": {"run": "r", "convert": "q"}}).start == Start("r", "last", Named("q"))


def test_what_a_recipe_leaves_out_means_the_same_in_every_version():
    written = """
        num_steps: null
        seed: 0
        model: small_vgg
        dataset: {name: digits, root: null, augment: [], batch: []}
        train: {rule: sltt, loss: cross_entropy, optimizer: sgd, schedule: cosine, callbacks: [], epochs: 10,
                batch_size: 64, workers: 0, clip: null, checkpoint_minutes: 10}
        fabric: {accelerator: auto, devices: null, nodes: 1, precision: 32-true, threads: null, compile: false,
                 channels_last: false}
    """
    assert reader.build(yamltext.parse(written)) == Recipe()


def test_a_recipe_without_base_inherits_no_options():
    assert reader.build({"train": {"optimizer": "sgd"}}).train.optimizer.options == {}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("adam", Named("adam")),
        ({"name": "adam"}, Named("adam")),
        ({"name": "adam", "options": {"lr": 1}}, Named("adam", {"lr": 1})),
        ("sgd", Named("sgd", LR["options"])),
        ({"options": {"lr": 1}}, Named("sgd", {"lr": 1, "momentum": 0.9})),
        ({"options": {"x": {"y": 1}}}, Named("sgd", {"lr": 0.1, "momentum": 0.9, "x": {"y": 1}})),
        ({"options": {}}, Named("sgd", LR["options"])),
    ],
)
def test_another_name_drops_the_options_and_the_same_keeps_them(change, expected):
    values = {"train": {"optimizer": LR, "epochs": 3}}
    recipe = reader.build(values, [{"train": {"optimizer": change}}])
    assert recipe.train.optimizer == expected
    assert recipe.train.epochs == 3
    assert values == {"train": {"optimizer": LR, "epochs": 3}}
    assert LR["options"] == {"lr": 0.1, "momentum": 0.9}


def test_options_merge_deeply_and_lists_as_a_whole():
    values = {"model": {"name": "m", "options": {"a": {"b": 1, "c": [1, 2]}}}, "dataset": {"augment": ["x", "y"]}}
    change = {"model": {"options": {"a": {"c": [3]}}}, "dataset": {"augment": ["z"]}}
    recipe = reader.build(values, [change])
    assert recipe.model.options == {"a": {"b": 1, "c": [3]}}
    assert recipe.dataset.augment == [Named("z")]


def test_changes_come_one_after_the_other():
    changes = [{"train": {"rule": "a"}}, {"train": {"rule": {"options": {"k": 1}}}}, {"seed": 1}, {"seed": 2}]
    recipe = reader.build({}, changes)
    assert (recipe.train.rule, recipe.seed) == (Named("a", {"k": 1}), 2)


def test_null_sets_none_and_a_table_may_follow():
    recipe = reader.build({"train": {"schedule": None}}, [{"train": {"schedule": {"name": "s"}}, "num_steps": None}])
    assert recipe.train.schedule == Named("s")


@pytest.fixture
def third_party(monkeypatch):
    """Recipes of an installed package."""
    tables = {
        "below": {"seed": 7, "model": LR | {"name": "m"}, "paper": {"table": "T", "row": "R", "accuracy": 90}},
        "row": {"base": "below", "seed": 8, "paper": {"row": "S"}},
        "no_row": {"base": "below"},
        "two": {"base": "row"},
        "list": [1],
    }
    monkeypatch.setattr(registry, "_host", lambda group: tables if group == "recipes" else {})
    return tables


def test_base_is_below_and_the_row_is_not_inherited(third_party):
    row = reader.build(reader.source("row"))
    assert (row.seed, row.model.options, row.paper) == (8, LR["options"], Paper("T", "S", 90.0))
    assert reader.build(reader.source("no_row")).paper is None
    assert reader.build(reader.source("below")).paper == Paper("T", "R", 90.0)
    assert third_party["row"]["base"] == "below"  # what is registered is not changed


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base": "two"}, "base=two has a base itself; one level is read"),
        ({"base": "nope"}, "base='nope' is not one of the known recipes: see sj-online list"),
        ({"base": "/dev/stdin"}, "base='/dev/stdin' is not one"),
        ({"base": ["row"]}, r"base=\['row'\]|base=.* is not one of"),
        ({"base": None}, "base='None' is not one"),
    ],
)
def test_what_is_no_base(third_party, values, message):
    with pytest.raises(ValueError, match=message):
        reader.build(values)


def test_a_registered_recipe_is_a_table(third_party):
    with pytest.raises(ValueError, match="recipe list is registered as something other than a table"):
        reader.source("list")


def test_a_recipe_by_entry_point(monkeypatch):
    monkeypatch.setattr(
        registry,
        "entry_points",
        lambda group: [EntryPoint("mine", "a_plugin:RECIPE", group)] * group.endswith("recipes"),
    )
    assert "mine" in reader.names()
    with pytest.raises(ValueError, match="'mine' of recipes is registered as a_plugin:RECIPE: No module"):
        reader.source("mine")


@pytest.mark.parametrize("name", ["a[0-9].yaml", "*.yaml", "~", "file:x.yaml", "a b.yaml", "$HOME"])
def test_paths_are_literal(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for other in ("a0.yaml", "x.yaml"):
        (tmp_path / other).write_text("seed: 1")
    with pytest.raises(ValueError, match="is neither a file nor one of the known recipes"):
        reader.source(name)
    (tmp_path / name).write_text("seed: 2")
    assert reader.source(name) == {"seed": 2}


@pytest.mark.parametrize("path", [".", "/dev/zero", "/dev/stdin"])
def test_what_is_not_a_file_is_not_read(path):
    with pytest.raises(ValueError, match=f"recipe {path}: there is no such file"):
        reader.source(path)


def test_size_is_bounded(tmp_path):
    (tmp_path / "x.yaml").write_text("seed: 1\n#" + yamltext.SIZE * "x")
    with pytest.raises(ValueError, match="x.yaml: it has more than 65536 bytes"):
        reader.source(str(tmp_path / "x.yaml"))


def test_what_is_wrong_with_a_file_names_it_and_options_do_not(tmp_path):
    (tmp_path / "x.yaml").write_text("sed: 1")
    with pytest.raises(ValueError, match=r"^recipe .*x\.yaml: sed is not a key"):
        reader.load(tmp_path / "x.yaml")
    with pytest.raises(ValueError, match="^here: sed is not a key"):
        reader.build({"sed": 1}, origin="here")
    with pytest.raises(ValueError, match="^seed=-1 must be"):
        reader.build({}, [{"seed": -1}], origin="here")


def test_leaves_name_every_key():
    keys = {path for path, _, _ in plain.leaves(Recipe)}
    assert {"seed", "model", "model.options", "train.rule.name", "fabric.devices", "start.convert"} <= keys
    assert not keys & {"train", "fabric", "start", "paper"}


def test_equal_recipes_are_equal():
    assert asdict(Recipe()) == asdict(reader.build({}))
