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


@pytest.fixture
def on_meta(monkeypatch):
    """Build and try a recipe on the meta device."""
    monkeypatch.setattr(building, "prepared", lambda recipe, fabric, net: net)
    monkeypatch.setattr(building, "try_one", lambda parts: None)

    def make(recipe):
        with torch.device("meta"):
            return build(recipe, rehearsal=True)

    return make


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_builds(name, on_meta):
    recipe = reader.build(reader.source(name))
    parts = on_meta(recipe)
    shape = parts.data.shape
    x = torch.zeros((2, *shape) if parts.data.steps is None else (parts.data.steps, 2, *shape), device="meta")
    assert parts.rule.predict(x).shape == (2, parts.data.classes)
