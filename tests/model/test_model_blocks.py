"""Each block is its equation: what is normalised, what fires, and what the shortcut carries."""

from functools import partial

import pytest
import torch
from torch import nn

from sj_online import model
from sj_online.layer import SECA
from sj_online.model import hdlif
from sj_online.model.blocks import Parts
from sj_online.model.ottt import SkipGain

SHAPES = {"same": (4, 4, 1), "transition": (4, 8, 2)}


class Fire(nn.Module):
    """Stands for a neuron, without a state, and each with a threshold of its own."""

    def __init__(self):
        super().__init__()
        self.threshold = torch.rand(())

    def forward(self, x):
        return (x - self.threshold).relu()


def parts_of(block):
    """The block in eval mode with drawn norms, its parts in the order of the equations, and an input."""
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor)
    kinds = (nn.Conv2d, nn.BatchNorm2d, Fire, SECA)
    found = ([module for module in block.modules() if isinstance(module, kind)] for kind in kinds)
    return block.eval(), *found, torch.randn(2, 4, 6, 6)


@pytest.mark.parametrize("attention", ["none", "seca1", "seca2"])
@pytest.mark.parametrize("shape", SHAPES)
def test_hdlif(shape, attention):
    def fire(channels):
        return Fire()

    build = hdlif._block(Parts(), fire, fire, hdlif.ATTENTION[attention], partial(SECA, 3))
    block, conv, norm, fires, seca, x = parts_of(build(*SHAPES[shape]))

    def branch(i, x):
        return norm[i](conv[i](fires[i](x)))

    shortcut = norm[2](conv[2](x)) if shape == "transition" else x  # of the float current
    if attention == "none":
        expected = branch(1, branch(0, x)) + shortcut
    elif attention == "seca1":
        expected = seca[1](branch(1, seca[0](branch(0, x)))) + shortcut
    else:
        o = seca[0](branch(0, x) if shape == "transition" else x + branch(0, x))
        o = seca[1](o + branch(1, o))
        expected = o + shortcut if shape == "transition" else o
    assert torch.equal(block(x), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("factory", "own_neuron"),
    [(model.stol_ms_resnet18, True), (partial(model.lmh_ms_resnet34, num_classes=10), False)],
)
def test_membrane_shortcut(factory, own_neuron, shape):
    net = factory(width=4, neuron=Fire)
    block, conv, norm, fires, _, x = parts_of(net.stages[int(shape == "transition")][0])
    shortcut = norm[2](conv[2](fires[2](x) if own_neuron else x)) if shape == "transition" else x
    expected = norm[1](conv[1](fires[1](norm[0](conv[0](fires[0](x)))))) + shortcut
    assert torch.equal(block(x), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_post_activation(shape):
    net = model.lmh_resnet18(width=4, neuron=Fire)
    block, conv, norm, fires, _, x = parts_of(net.stages[int(shape == "transition")][0])
    shortcut = norm[2](conv[2](x)) if shape == "transition" else x
    assert torch.equal(block(x), fires[1](norm[1](conv[1](fires[0](norm[0](conv[0](x))))) + shortcut))


@pytest.mark.parametrize("shape", SHAPES)
def test_pre_activation_of_sltt(shape):
    net = model.sltt_preact_resnet18(width=4, neuron=Fire)
    block, conv, norm, fires, _, x = parts_of(net.stages[int(shape == "transition")][0])
    o = fires[0](norm[0](x))
    shortcut = conv[2](o) if shape == "transition" else o
    assert torch.equal(block(x), conv[1](fires[1](norm[1](conv[0](o)))) + shortcut)


@pytest.mark.parametrize(("stage", "index", "variance"), [(0, 0, 1.0), (0, 2, 1.08), (1, 0, 1.12), (1, 1, 1.04)])
def test_normaliser_free(stage, index, variance):
    net = model.nf_resnet34(width=4, num_classes=10, neuron=Fire)
    block, conv, _, fires, _, _ = parts_of(net.stages[stage][index])
    (skip,) = (module for module in block.modules() if isinstance(module, SkipGain))
    nn.init.normal_(skip.gain)
    x = torch.randn(2, conv[0].in_channels, 6, 6)
    o = 2.74 * fires[0](x / variance**0.5)
    shortcut = conv[2](o) if (stage, index) == (1, 0) else x
    expected = conv[1](2.74 * fires[1](conv[0](o))) * skip.gain * 0.2 + shortcut
    torch.testing.assert_close(block(x), expected)
