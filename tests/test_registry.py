from importlib.metadata import EntryPoint

import pytest
import torch
from package_names import own
from torch.optim import lr_scheduler
from torchvision.transforms import v2

from sj_online import loss, registry

OURS = ("neurons", "layers", "trainers", "models")


@pytest.mark.parametrize("group", registry.GROUPS)
def test_every_registered_name_loads(group):
    for name in {*own(group), *registry._host(group)}:
        entry = registry.get(group, name)
        assert callable(entry)
        assert group not in OURS or entry.paper


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="'emfp' is not a registered name of neurons; known: empf"):
        registry.get("neurons", "emfp")
    with pytest.raises(ValueError, match="group='rules' is not one of neurons, layers, trainers, models, data, losses"):
        registry.names("rules")


@pytest.mark.parametrize(
    ("group", "name", "expected"),
    [
        ("optimizers", "AdamW", torch.optim.AdamW),
        ("optimizers", "sgd", torch.optim.SGD),
        ("schedules", "StepLR", lr_scheduler.StepLR),
        ("schedules", "ReduceLROnPlateau", lr_scheduler.ReduceLROnPlateau),
        ("losses", "CrossEntropyLoss", torch.nn.CrossEntropyLoss),
        ("losses", "cross_entropy", torch.nn.functional.cross_entropy),
        ("losses", "mse_loss", torch.nn.functional.mse_loss),
        ("losses", "ce_mse", loss.CrossEntropyMSE),
        ("losses", "rate_cross_entropy", loss.rate_cross_entropy),
        ("augmentations", "RandomCrop", v2.RandomCrop),
        ("augmentations", "MixUp", v2.MixUp),
    ],
)
def test_the_host_is_in_by_its_own_names(group, name, expected):
    assert name in registry.names(group)
    assert registry.get(group, name) is expected


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("optimizers", "Optimizer"),  # abstract
        ("optimizers", "lr_scheduler"),  # a module
        ("optimizers", "__builtins__"),
        ("schedules", "LRScheduler"),
        ("schedules", "LambdaLR"),  # asks for a function
        ("schedules", "_LRScheduler"),
        ("schedules", "warnings"),
        ("losses", "TripletMarginLoss"),  # no loss of outputs and targets
        ("losses", "handle_torch_function"),
        ("losses", "gaussian_nll_loss"),
        ("losses", "embedding"),  # two arguments, but others
        ("losses", "Module"),
        ("augmentations", "Lambda"),
        ("augmentations", "Transform"),
        ("augmentations", "functional"),
        ("neurons", "AdamW"),
    ],
)
def test_nothing_else_of_a_module_can_be_named(group, name):
    assert name not in registry.names(group)
    with pytest.raises(ValueError, match=f"'{name}' is not a registered name of {group}"):
        registry.get(group, name)


@pytest.fixture
def third_party(monkeypatch):
    """An installed package that registers something in every group."""

    def points(group):
        value = "json:nothing" if group.endswith("layers") else "collections:Counter"
        return [EntryPoint("theirs", value, group), EntryPoint("SGD", "collections:Counter", group)]

    monkeypatch.setattr(registry, "entry_points", points)


@pytest.mark.parametrize("group", [group for group in registry.GROUPS if group != "layers"])
def test_third_parties_register_in_every_group_and_win(third_party, group):
    assert "theirs" in registry.names(group)
    assert registry.names(group).count("SGD") == 1
    assert registry.get(group, "theirs").__name__ == registry.get(group, "SGD").__name__ == "Counter"


def test_what_cannot_be_imported_says_so(third_party):
    with pytest.raises(ValueError, match="'theirs' of layers is registered as json:nothing: .*has no attribute"):
        registry.get("layers", "theirs")
