"""From a recipe to its parts, and the rehearsal over them."""

import logging
import math

import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import seed_everything
from tinyrecipe import parts, recipe
from torchvision.transforms import v2

from sj_online import data
from sj_online.app import build as building
from sj_online.app import networks
from sj_online.app.build import build
from sj_online.app.recipe import Device, Named
from sj_online.app.rehearse import rehearse, samples
from sj_online.trainer import OTTT


def test_every_part_is_what_the_recipe_says():
    optimizer = {"name": "sgd", "options": {"lr": 0.3, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01}}
    rule = {"name": "ottt", "options": {"update": "step"}}
    made = parts(train={"optimizer": optimizer, "rule": rule, "loss": {"options": {"label_smoothing": 0.2}}})
    decaying, neurons = made.optimizer.param_groups
    assert (decaying["weight_decay"], neurons["weight_decay"]) == (0.01, 0.0)
    assert {id(p) for p in neurons["params"]} == {id(p) for n, p in made.net.named_parameters() if "raw_" in n}
    assert [decaying[name] for name in ("lr", "momentum", "nesterov")] == [0.3, 0.8, True]
    assert isinstance(made.rule, OTTT)
    assert (made.rule.num_steps, made.rule.update) == (2, "step")
    assert made.rule.net is made.net and made.rule.optimizer is made.optimizer and made.rule.loss_fn is made.loss
    output, y = torch.randn(3, 10), torch.tensor([1, 2, 3])
    assert made.loss(output, y) == F.cross_entropy(output, y, label_smoothing=0.2)
    assert (made.data.classes, made.data.shape, len(made.data.train)) == (10, (1, 8, 8), 0)


def test_the_default_weight_decay_spares_the_neurons_too():
    made = parts(train={"optimizer": {"name": "adamw", "options": {"lr": 0.1}}})
    assert [group["weight_decay"] for group in made.optimizer.param_groups] == [0.01, 0.0]


def test_an_optimizer_without_weight_decay_gets_parameters():
    made = parts(train={"optimizer": "Rprop"})
    assert len(made.optimizer.param_groups) == 1


@pytest.mark.parametrize("seed", [0, 3])
def test_weights_follow_from_the_seed_alone(seed):
    torch.manual_seed(seed + 5)
    first = parts(seed=seed).net.state_dict()
    again, other = parts(seed=seed).net.state_dict(), parts(seed=seed + 1).net.state_dict()
    assert all(again[name].equal(value) for name, value in first.items())
    assert not all(other[name].equal(value) for name, value in first.items())


def test_a_seed_is_set_without_a_word(monkeypatch):
    said = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", said.append)
    logger = logging.getLogger("lightning_fabric")
    logger.addHandler(handler)
    try:
        parts(seed=3)
        assert said == []
        seed_everything(3)
        assert len(said) == 1
    finally:
        logger.removeHandler(handler)


def rates(made, epochs):
    seen = []
    for _ in range(epochs):
        seen.append(made.optimizer.param_groups[0]["lr"])
        made.optimizer.step()
        made.schedule.step()
    return seen


def test_the_cosine_spans_the_epochs():
    made = parts(train={"epochs": 4, "optimizer": {"options": {"lr": 0.2}}})
    assert rates(made, 4) == pytest.approx([0.1 * (1 + math.cos(math.pi * e / 4)) for e in range(4)])


@pytest.mark.parametrize(
    ("warmup", "final", "expected"),
    [(2, 0.5, [0.5, 1.0, 1.0, 0.75, 0.5]), (1, 0.0, [1.0, 1.0, 0.75, 0.25, 0.0]), (3, 1.0, [1 / 3, 2 / 3, 1, 1, 1])],
)
def test_warm_up_and_a_final_part(warmup, final, expected):
    schedule = {"name": "cosine", "options": {"warmup": warmup, "final": final}}
    made = parts(train={"epochs": 4, "schedule": schedule, "optimizer": {"options": {"lr": 1.0}}})
    assert rates(made, 5) == pytest.approx(expected)


def test_schedules_of_torch_and_none():
    schedule = {"name": "MultiStepLR", "options": {"milestones": [1], "gamma": 0.1}}
    made = parts(train={"epochs": 4, "schedule": schedule, "optimizer": {"options": {"lr": 1.0}}})
    assert rates(made, 3) == pytest.approx([1.0, 0.1, 0.1])
    assert parts(train={"schedule": None}).schedule is None


@pytest.mark.parametrize(("clip", "largest"), [(0.01, 0.01), (None, math.inf)])
def test_clipping(clip, largest):
    made = parts(train={"clip": clip, "optimizer": {"options": {"lr": 1.0}}, "rule": "bptt"})
    before = [p.detach().clone() for p in made.net.parameters()]
    made.net.train()
    x, y = samples(made, 8)
    made.rule.train_step(x, y)
    moved = math.sqrt(sum(float(((p - b) ** 2).sum()) for p, b in zip(made.net.parameters(), before, strict=True)))
    assert 0 < moved <= largest * 1.001
    assert clip or moved > 0.02


def test_double_precision_and_channels_last():
    made = parts(fabric={"precision": "64-true", "channels_last": True})
    weight = made.net.features[3].conv.weight
    assert weight.dtype == torch.float64
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert samples(made, 2)[0].dtype == torch.float64
    assert rehearse(made, 2).parameters == 1714


def test_compiling_keeps_the_names_of_the_weights(monkeypatch):
    called = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: called.append(self))
    made = parts(fabric={"compile": True})
    assert called == [made.net]
    assert parts().net.state_dict().keys() == made.net.state_dict().keys()
    assert len(called) == 1


def test_augmentation_of_samples_and_batches():
    made = build(recipe(dataset={"augment": [{"name": "RandomCrop", "options": {"size": 8, "padding": 1}}],
                                 "batch": ["MixUp", "CutMix"]}))  # fmt: skip
    assert isinstance(made.data.train, data.Augmented) and made.data.train.seed == made.recipe.seed
    first, second = (made.data.train[epoch, 0][0] for epoch in (1, 2))
    assert not first.equal(second) and first.equal(made.data.train[1, 0][0])
    assert [type(transform) for transform in made.batch] == [v2.MixUp, v2.CutMix]
    assert made.batch[0].num_classes == 10
    plain = build(recipe())
    assert plain.data.train[1, 0][0].equal(plain.data.train[2, 0][0])
    assert plain.batch == []


@pytest.mark.parametrize("rule", ["random_bp", "bptt"])
def test_mixed_precision(rule):
    made = parts(train={"rule": rule, "optimizer": {"options": {"lr": 0.1}}}, fabric={"precision": "bf16-mixed"})
    before = made.net.features[3].conv.weight.clone()
    rehearse(made, 8)
    assert made.net.features[3].conv.weight.dtype == torch.float32
    assert not torch.equal(made.net.features[3].conv.weight, before)


def test_names_and_options_are_checked_before_anything_is_built(monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("built")

    for name in ("make_fabric", "network", "load_data"):
        monkeypatch.setattr(building, name, never)
    for change, message in (
        ({"model": {"options": {"nope": 1}}}, "model small_vgg: nope is not an option"),
        ({"dataset": {"options": {"download": True}}}, "data set digits: download cannot be set here"),
        ({"dataset": {"augment": ["nope"]}}, "'nope' is not a registered name of augmentations"),
        ({"dataset": {"batch": ["nope"]}}, "'nope' is not a registered name of augmentations"),
        ({"dataset": {"batch": [{"name": "mixup", "options": {"steps": 1}}]}}, "steps cannot be set here"),
        ({"train": {"rule": {"options": {"optimizer": 1}}}}, "training rule sltt: optimizer is not an option"),
        ({"train": {"rule": {"options": {"per_step_targets": True}}}}, "per_step_targets cannot be set here"),
        ({"train": {"loss": {"options": {"target": 1}}}}, "loss cross_entropy: target is not an option"),
        ({"train": {"loss": {"name": "HuberLoss", "options": {"input": 1}}}}, "it has reduction, delta"),
        ({"train": {"optimizer": {"options": {"params": 1}}}}, "optimizer sgd: params is not an option"),
        ({"train": {"schedule": {"options": {"optimizer": 1}}}}, "schedule cosine: optimizer is not an option"),
        ({"train": {"callbacks": ["nope"]}}, "'nope' is not a registered name of callbacks"),
        ({"start": {"run": "x", "convert": "nope"}}, "'nope' is not one of the conversions"),
    ):
        with pytest.raises(ValueError, match=message):
            parts(**change)


def test_a_model_that_would_not_fit_into_memory():
    with pytest.raises(ValueError, match=r"model small_vgg needs \d+\.\d GB for its weights; there are"):
        parts(model={"options": {"width": 500_000, "neuron": "empf"}})
    networks.fits(Named("small_vgg"))


@pytest.mark.parametrize(
    ("given", "devices", "expected"), [("2", None, (2, 2)), ("2", 1, (1, 1)), (None, None, (1, 1)), (None, 2, (2, 1))]
)
def test_devices_are_torchruns_unless_the_recipe_says(monkeypatch, given, devices, expected):
    asked = []

    class Fabric:
        def __init__(self, **kwargs):
            asked.append((kwargs["devices"], kwargs["num_nodes"]))

        def launch(self):
            pass

    monkeypatch.setattr(building, "Fabric", Fabric)
    monkeypatch.setattr(building.os, "cpu_count", lambda: 2)
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("LOCAL_WORLD_SIZE", given), ("WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value) if given else monkeypatch.delenv(name, raising=False)
    building.make_fabric(recipe(fabric={"devices": devices}))
    assert asked == [expected]


def test_threads_are_those_of_the_recipe():
    before = torch.get_num_threads()
    try:
        parts(fabric={"threads": before + 2})
        assert torch.get_num_threads() == before + 2
        parts(fabric={"threads": None})
        assert torch.get_num_threads() == before + 2
    finally:
        torch.set_num_threads(before)


def test_more_devices_than_there_are(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(building.os, "cpu_count", lambda: 2)
    with pytest.raises(ValueError, match="fabric.devices=3, but there are 2 CPUs"):
        parts(fabric={"devices": 3})


def test_evaluation_takes_no_more_than_it_needs():
    fabric = {
        "threads": 1,
        "precision": "bf16-mixed",
        "devices": 99,
        "nodes": 9,
        "accelerator": "cuda",
        "compile": True,
    }
    asked = recipe(fabric=fabric, train={"workers": 9, "callbacks": ["nope"]}, dataset={"augment": ["nope"]})
    made = building.for_evaluation(asked, parts().net)
    assert made.recipe.fabric == Device(precision="bf16-mixed", threads=1)
    assert (made.recipe.train.workers, made.recipe.train.callbacks) == (0, [])
    assert made.fabric.strategy.precision.precision == "bf16-mixed"
    assert len(made.data.test) == 450
    assert made.optimizer is None


def test_large_seeds():
    parts(seed=2**40 + 7)
