"""Forwards put into modules for a while, and copies made meanwhile."""

import copy
import io
import pickle

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn

from sj_online import install
from sj_online.install import plain, replaced_forwards, restore, restore_all


class OwnForward(nn.Linear):
    """What the tests give an instance a forward of its own."""


def doubled(module: nn.Module):
    inner = module.forward
    return lambda *args: 2 * inner(*args)


def own(x: Tensor) -> Tensor:
    return x + 7


class WithDeepcopy(nn.Linear):
    """A module that copies itself its own way."""

    def __deepcopy__(self, memo):
        made = WithDeepcopy(self.in_features, self.out_features)
        memo[id(self)] = made
        made.load_state_dict(self.state_dict())
        made.copied = True
        return made


class WithState(nn.Linear):
    """A module that pickles its own way."""

    def __getstate__(self):
        return self.__dict__ | {"saved": True}

    def __setstate__(self, state):
        super().__setstate__(state)


def of_torch_save(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": of_torch_save,
}
MODULES = {
    "torch": lambda: nn.Linear(3, 3),
    "host": lambda: layer.Linear(3, 3),
    "deepcopy of its own": lambda: WithDeepcopy(3, 3),
    "state of its own": lambda: WithState(3, 3),
    "neuron": lambda: neuron.LIFNode(),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("kind", MODULES)
def test_copies_made_meanwhile_are_plain(kind, how):
    module = MODULES[kind]()
    before, x, names = copy.deepcopy(module), torch.rand(2, 3), set(vars(module))
    with replaced_forwards({module: doubled(module)}):
        made = COPIES[how](module)
        assert type(made) is type(before) and "forward" not in vars(made)
        assert torch.equal(made(x), before(x))
        if how != "copy":
            for p in made.parameters():
                p.data.add_(1.0)
            assert isinstance(module, neuron.LIFNode) or not torch.equal(made(x), before(x))
        assert "forward" in vars(module)
        assert type(COPIES[how](made)) is type(before)
    assert type(module) is type(before) and set(vars(module)) == names


@pytest.mark.parametrize("how", ["deepcopy", "copy"])
def test_a_forward_of_its_own_comes_back_and_goes_with_copies(how):
    module = OwnForward(3, 3)
    module.forward = own
    with replaced_forwards({module: doubled(module)}):
        assert module(1) == 16
        made = COPIES[how](module)
        assert made(1) == 8 and type(made) is OwnForward
    assert module(1) == 8 and module.forward is own


def test_parametrised_modules():
    module = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    cls, x = type(module), torch.rand(2, 3)
    plain_output = module(x)
    with replaced_forwards({module: doubled(module)}):
        made = copy.deepcopy(module)
        assert type(made) is cls and torch.equal(made(x), plain_output)
        assert torch.equal(module(x), 2 * plain_output)
        with pytest.raises(RuntimeError, match="parametrized"):
            pickle.dumps(module)
    assert type(module) is cls
    nn.utils.parametrize.remove_parametrizations(module, "weight")
    assert type(module) is nn.Linear


def test_a_replaced_module_still_is_what_it_was():
    module = nn.Linear(3, 3)
    with replaced_forwards({module: doubled(module)}):
        assert isinstance(module, nn.Linear) and repr(module).startswith("Linear(") and plain(module) is nn.Linear
        assert type(module).__module__ == nn.Linear.__module__
    assert plain(module) is nn.Linear


def test_an_error_inside_takes_them_out():
    module = nn.Linear(3, 3)
    with pytest.raises(KeyError), replaced_forwards({module: doubled(module)}):
        raise KeyError
    assert type(module) is nn.Linear and "forward" not in vars(module)


def test_what_was_left_is_taken_out():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    x = torch.rand(1, 3)
    expected = net(x)
    for context in (replaced_forwards({m: doubled(m) for m in net}), replaced_forwards({net[0]: doubled(net[0])})):
        context.__enter__()  # as an interrupt leaves it
        assert not torch.equal(net(x), expected)
        restore_all(net)
        assert torch.equal(net(x), expected)
    left = replaced_forwards({net[0]: doubled(net[0])})
    left.__enter__()
    with replaced_forwards({net[0]: lambda x: x - 1}):
        assert torch.equal(net[0](x), x - 1)
    assert torch.equal(net(x), expected)
    restore(net[0])
    assert install.plain(net[0]) is nn.Linear
