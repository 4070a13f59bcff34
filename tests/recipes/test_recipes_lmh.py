"""LM-H's rows: where they begin, what tells configuration A from B, and the two stages of a hybrid row."""

import pytest
import torch
from spikingjelly.activation_based import layer

from sj_online import recipes
from sj_online.app import reader
from sj_online.app.build import build
from sj_online.app.rehearse import rehearse, samples
from sj_online.loss import OverWindow
from sj_online.neuron import QCFS, LMHNode

NAMES = [name for name in sorted(recipes.files()) if name.startswith("lmh_")]


def parts(name, **model):
    changes = {"model": {"options": {"width": 4, **model}}, "fabric": {"accelerator": "cpu"}, "start": None}
    return build(reader.build(reader.source(name), [changes]), rehearsal=True)


@pytest.mark.parametrize(("name", "norms"), [("lmh_cifar10_resnet18", 4), ("lmh_cifar10_resnet18_b", 1)])
def test_both_configurations_begin_as_if_neurons_and_differ_in_norm_and_loss(name, norms):
    made = parts(name)
    nodes = [module for module in made.net.modules() if isinstance(module, LMHNode)]
    assert len(nodes) == 17 and not any(p.any() for node in nodes for p in node.parameters())
    td = [m for m in made.net.modules() if isinstance(m, layer.ThresholdDependentBatchNorm2d)]
    assert (len(td) == 20) == isinstance(made.loss, OverWindow) == (norms == 1)
    x, y = samples(made, 2)
    made.net.train()
    made.rule.train_step(x, y)
    assert made.net.stem.norm.num_batches_tracked == norms, "once a step, or once for all of them"
    assert any(p.any() for node in nodes for p in node.parameters()), "they learn from there"


def test_td_bn_of_single_steps_is_refused():
    with pytest.raises(ValueError, match="norm='td' normalises over all steps together.*step_mode='s'"):
        parts("lmh_cifar10_resnet18_b", step_mode="s")
    assert parts("lmh_cifar10_resnet18_b").rule.predict(torch.rand(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("_hybrid")])
def test_a_hybrid_row_goes_on_from_the_ann_of_its_first_stage(name):
    tuned, ann = (reader.build(reader.source(each)) for each in (name, name.replace("_hybrid", "_qcfs")))
    assert tuned.start.run == "runs/" + name.replace("_hybrid", "_qcfs")
    assert tuned.start.convert.name == "qcfs_to_lmh" and tuned.start.convert.options == {"num_steps": None}
    assert (ann.num_steps, tuned.num_steps) == (1, ann.model.options["neuron_options"]["levels"])
    assert tuned.model == ann.model and tuned.dataset == ann.dataset and tuned.train.epochs < ann.train.epochs


def test_the_first_stage_is_an_ann():
    made = parts("lmh_digits_qcfs")
    assert sum(isinstance(module, QCFS) for module in made.net.modules()) == 3
    assert rehearse(made, 4).parameters == sum(p.numel() for p in made.net.parameters())
