"""Neurons of few passes against those they are made of."""

import copy
import pickle

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from torch import nn

from sj_online.deploy.steps import Quick, quicken
from sj_online.neuron import EMPFNode, HDLIFNode, fold_membrane_norm

T, SHAPE = 4, (2, 3, 4, 5)


def folded(**options):
    node = HDLIFNode(T, membrane_norm=3, **options).eval()
    for norm in node.membrane_norm:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.running_mean)
    return fold_membrane_norm(node)


NODES = {
    "hdlif": lambda: HDLIFNode(threshold=0.3, decay=0.7),
    "hdlif of steps": lambda: HDLIFNode(T),
    "one bit": lambda: HDLIFNode(spike_bits=1),
    "eight bits": lambda: HDLIFNode(spike_bits=8),
    "parallel": lambda: HDLIFNode(T, parallel=True),
    "empf": lambda: EMPFNode(T),
    "empf parallel": lambda: EMPFNode(parallel=True),
    "folded": folded,
}


def made(name):
    torch.manual_seed(1)
    node = NODES[name]().eval()
    if hasattr(node, "raw_threshold"):
        nn.init.normal_(node.raw_threshold)
        if hasattr(node, "raw_decay"):
            nn.init.normal_(node.raw_decay)
    quick = copy.deepcopy(nn.Sequential(node))
    assert quicken(quick) == ["0"]
    return node, quick[0]


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("name", NODES)
@torch.no_grad()
def test_spikes_and_potentials_are_the_same_numbers(name, step_mode):
    node, quick = made(name)
    x = 3 * torch.randn(T, *SHAPE)
    x[0, 0, 0, 0, 0] = 1000.0
    for each in (node, quick):
        functional.set_step_mode(each, step_mode)
    for _ in range(2):  # again after a reset
        expected, given = ((n(x) if step_mode == "m" else torch.stack([n(x_t) for x_t in x])) for n in (node, quick))
        assert torch.equal(given, expected) and expected.unique().numel() > 1
        if isinstance(node.v, torch.Tensor) and node.v.any():
            assert torch.equal(quick.v, node.v)
        functional.reset_net(node), functional.reset_net(quick)


@torch.no_grad()
def test_ties_round_to_even_and_the_largest_level_is_the_last():
    node, quick = HDLIFNode(threshold=0.5, parallel=True).eval(), nn.Sequential(HDLIFNode(parallel=True)).eval()
    quicken(quick)
    x = 0.5 + torch.arange(-3, 60) / 8
    assert torch.equal(quick(x), node(x)) and quick(x).max() == 3.75


@torch.no_grad()
def test_bytes_are_the_levels_and_channels_last_stays():
    node, quick = made("hdlif")
    quick.gives_bytes = True
    x = (3 * torch.randn(SHAPE)).contiguous(memory_format=torch.channels_last)
    levels = quick(x)
    assert levels.dtype == torch.uint8 and levels.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(levels / 4, node(x))


@torch.no_grad()
def test_a_step_works_in_place():
    _, quick = made("hdlif")
    quick(torch.randn(SHAPE))
    v = quick.v
    quick(torch.randn(SHAPE))
    assert quick.v is v and len(quick.scratch) == 1
    quick(torch.randn(5, *SHAPE[1:]))  # another batch
    assert quick.v.shape[0] == 5


@torch.no_grad()
def test_past_its_last_step_it_says_so():
    _, quick = made("hdlif of steps")
    for _ in range(T):
        quick(torch.randn(SHAPE))
    with pytest.raises(ValueError, match=f"is asked to run step {T + 1}"):
        quick(torch.randn(SHAPE))


def test_with_gradients_in_training_and_in_double_it_is_the_neuron_itself():
    node, quick = made("hdlif")
    x = torch.randn(SHAPE, requires_grad=True)
    for y in (node(x), quick(x)):
        y.sum().backward()
    assert node.raw_threshold.grad == quick.raw_threshold.grad != 0
    assert not quick.scratch
    with torch.no_grad():
        functional.reset_net(quick)
        quick(x.double())
        functional.reset_net(quick)
        quick.train()(x)
    assert not quick.scratch


@torch.no_grad()
def test_new_parameters_are_seen_and_copies_share_nothing():
    node, quick = made("hdlif")
    x = torch.randn(SHAPE)
    quick(x)
    nn.init.normal_(node.raw_threshold)
    for change in (lambda: quick.load_state_dict(node.state_dict()), lambda: quick.to("cpu")):
        change()
        functional.reset_net(quick), functional.reset_net(node)
        assert torch.equal(quick(x), node(x))
    for copied in (copy.deepcopy(quick), pickle.loads(pickle.dumps(quick))):
        assert copied.scratch is not quick.scratch
        functional.reset_net(copied)
        functional.reset_net(quick)
        assert torch.equal(copied(x), quick(x))


def test_others_are_left_as_they_are():
    class Own(HDLIFNode):
        pass

    net = nn.Sequential(Own(), HDLIFNode(spike_bits=9), HDLIFNode(membrane_norm=2), neuron.LIFNode())
    assert quicken(net) == [] and not any(isinstance(module, Quick) for module in net)
