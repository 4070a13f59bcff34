"""The recipes of the papers: each is read, checked by name and option, built without memory and tried."""

import pytest
import torch

from sj_online import recipes, registry
from sj_online.analysis import network_cost
from sj_online.app import build as building
from sj_online.app import networks, reader
from sj_online.app.build import build
from sj_online.app.rehearse import rehearse

FILES = recipes.files()
NAMES = sorted(set(FILES) - {"digits"})
RECIPES = {name: reader.build(reader.source(name)) for name in NAMES}


def firsts(key):
    """The first recipe of each kind."""
    found = {}
    for name, recipe in RECIPES.items():
        found.setdefault(str(key(recipe)), name)
    return sorted(found.values())


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
    return lambda name: build(RECIPES[name], rehearsal=True)


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
