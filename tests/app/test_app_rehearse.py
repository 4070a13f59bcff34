"""Rehearsals, and what a data set says without its files."""

import time
from dataclasses import replace

import pytest
import torch
from tinyrecipe import parts, recipe

from sj_online import data, registry
from sj_online.app import build as building
from sj_online.app import networks, reader
from sj_online.app.build import build
from sj_online.app.recipe import Recipe
from sj_online.app.rehearse import rehearse, samples
from sj_online.data import Shape, describes


def test_a_rehearsal_touches_no_files(monkeypatch):
    def load(root=None, *, download=False, size=4):
        raise AssertionError("the data are loaded")

    shaped = describes(lambda size: Shape(classes=3, shape=(2, size, size)))(load)
    get = registry.get
    monkeypatch.setattr(registry, "get", lambda group, name: shaped if name == "absent" else get(group, name))
    made = parts(dataset={"name": "absent", "options": {"size": 8}})
    assert made.rule.predict(torch.zeros(1, 2, 8, 8)).shape == (1, 3)
    assert rehearse(made).batch_size == 64


@pytest.fixture
def sequences(monkeypatch):
    """Two data sets of 5 steps, one with a target for each."""

    def known(per_step_targets):
        def load(root=None, *, download=False):
            raise AssertionError("the data are loaded")

        shape = Shape(classes=10, shape=(1, 8, 8), steps=5, per_step_targets=per_step_targets)
        return describes(lambda: shape)(load)

    sets = {"clips": known(False), "marked": known(True)}
    get = registry.get
    monkeypatch.setattr(registry, "get", lambda group, name: sets.get(name) or get(group, name))


def test_sequences_have_their_own_steps(sequences):
    made = parts(num_steps=None, dataset="clips")
    assert made.rule.num_steps is None
    assert {m.num_steps for m in made.net.modules() if hasattr(m, "num_steps")} == {5}
    x, y = samples(made, 3)
    assert (x.shape, y.shape) == ((5, 3, 1, 8, 8), (3,))
    assert rehearse(made, 3).saved_bytes > 0
    with pytest.raises(ValueError, match="num_steps=2, but data set clips has its own 5 steps"):
        parts(dataset="clips")
    assert networks.time_steps(recipe(num_steps=5, dataset="clips"), made.data) == 5


def test_targets_of_every_step_have_a_mask(sequences):
    made = replace(parts(), data=building.without_items(Shape(classes=7, shape=(4,), steps=5, per_step_targets=True)))
    x, y, mask = samples(made, 3)
    assert (x.shape, y.shape, mask.shape, mask.all()) == ((5, 3, 4), (5, 3), (5, 3), True)
    assert y.max() < 7


def test_a_data_set_describes_itself(monkeypatch):
    get = registry.get
    monkeypatch.setattr(registry, "get", lambda group, name: data.stack if name == "silent" else get(group, name))
    with pytest.raises(ValueError, match="data set silent does not describe itself"):
        parts(dataset="silent")


def test_saved_bytes_do_not_grow_with_T_online_and_do_under_bptt():
    def saved(T, rule):
        """With one threshold and decay for all steps: a vector of T of them is itself saved."""
        model = {"options": {"num_steps": None}}
        return rehearse(parts(num_steps=T, model=model, train={"rule": rule}), 8).saved_bytes

    assert saved(2, "sltt") == saved(6, "sltt") > 0
    assert saved(6, "bptt") > 2 * saved(2, "bptt")


def test_a_rehearsal_is_at_the_batch_size_of_the_recipe_unless_told():
    made = parts(train={"batch_size": 48})
    whole, few = rehearse(made), rehearse(made, 6)
    assert (whole.batch_size, few.batch_size) == (48, 6)
    assert whole.saved_bytes > 6 * few.saved_bytes
    made.net.eval()  # in evaluation other things are saved
    assert rehearse(made, 6).saved_bytes == few.saved_bytes
    assert whole.parameters == 1714 and whole.seconds > 0 and whole.peak_memory_bytes > whole.saved_bytes


@pytest.mark.parametrize(("batch_size", "expected"), [(48, 12), (2, 1)])
def test_a_batch_is_that_of_one_of_the_devices(monkeypatch, batch_size, expected):
    made = parts(train={"batch_size": batch_size})
    monkeypatch.setattr(type(made.fabric), "world_size", 4)
    assert rehearse(made).batch_size == expected


def test_the_second_of_two_batches_is_timed():
    made = parts()
    step, seen = made.rule.train_step, []

    def slower_and_slower(x, y):
        seen.append(len(x))
        time.sleep(0.1 * (len(seen) - 1))
        return step(x, y)

    made.rule.train_step = slower_and_slower
    assert rehearse(made, 3).seconds >= 0.1
    assert seen == [3, 3]


def test_the_default_recipe_rehearses():
    made = build(reader.build(reader.source("digits")), rehearsal=True)
    assert rehearse(made, 2).parameters > 0


def test_recipes_default_is_complete():
    assert build(Recipe(num_steps=2), rehearsal=True).optimizer.param_groups[0]["lr"] == 0.001
