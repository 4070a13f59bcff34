"""Replaced forwards: seen while they are there, unknown to copies and pickles, gone afterwards."""

import copy
import pickle

import pytest
import torch
from torch import nn

from sj_online.install import plain, replaced_forwards, restore


class Built(nn.Linear):
    """A layer with a ``__new__`` of its own."""

    def __new__(cls, *args, **kwargs):
        made = super().__new__(cls)
        made.built = True
        return made


@pytest.mark.parametrize("layer", [nn.Linear(2, 3), Built(2, 3)], ids=["plain", "with __new__"])
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_a_plain_layer(layer, protocol):
    x, expected = torch.rand(1, 2), dict(vars(layer))
    with replaced_forwards({layer: lambda x: -x}):
        assert torch.equal(layer(x), -x)
        content = pickle.dumps(layer, protocol)
    assert b"sj_online" not in content, "a pickle must load without this package"
    twin = pickle.loads(content)
    assert type(twin) is type(layer) and vars(twin).keys() == expected.keys()
    assert torch.equal(twin(x), layer(x)) and layer(x).shape == (1, 3)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_is_a_plain_layer(copied):
    layer = nn.Linear(2, 3)
    with replaced_forwards({layer: lambda x: -x}):
        twin = copied(layer)
    assert type(twin) is nn.Linear and "forward" not in vars(twin)


def test_a_forward_that_the_instance_had_is_put_back():
    layer = nn.Identity()
    layer.forward = lambda x: x + 1
    with replaced_forwards({layer: lambda x: -x}):
        assert layer(3) == -3 and plain(layer) is nn.Identity
    assert layer(3) == 4 and type(layer) is nn.Identity


def test_what_an_interrupt_leaves_is_undone():
    layer = nn.Identity()
    left = replaced_forwards({layer: lambda x: -x})
    left.__enter__()
    assert layer(3) == -3
    restore(layer)
    assert layer(3) == 3 and type(layer) is nn.Identity
