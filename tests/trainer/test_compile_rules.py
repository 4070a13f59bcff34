"""A compiled network trains under every rule as it does eagerly."""

import copy

import pytest
import torch
from package_names import own
from spikingjelly.activation_based import layer, neuron
from torch import nn

from sj_online import registry
from sj_online.trainer import SLTT

T, N, CLASSES = 3, 3, 3
LIF = {"tau": 2.0, "decay_input": False, "v_reset": None, "detach_reset": True}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        layer.Linear(4, 5), layer.BatchNorm1d(5), neuron.LIFNode(**LIF), layer.Linear(5, CLASSES)
    ).double()


def batch():
    torch.manual_seed(1)
    return torch.rand(T, N, 4, dtype=torch.float64) * 2, torch.randint(CLASSES, (N,))


def trained(make, net, compiled):
    x, y = batch()
    sgd = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.9)
    rule = make(compiled, sgd)
    compiled(x[0])  # compiled before anything is installed
    torch.manual_seed(2)
    rule.train_step(x, y)
    return [*net.state_dict().values(), *(sgd.state[p]["momentum_buffer"] for p in net.parameters())]


def compare(make, backend):
    """The largest difference between what training leaves behind, eagerly and compiled."""
    net = network()
    twin = copy.deepcopy(net)
    compiled = torch.compile(twin, backend=backend, fullgraph=True)
    pairs = zip(trained(make, net, net), trained(make, twin, compiled), strict=True)
    return max((eager - ours).abs().max().item() for eager, ours in pairs)


@pytest.mark.parametrize("name", own("trainers"))
def test_training_equals_the_eager_one(name):
    assert compare(registry.get("trainers", name), "aot_eager" if name == "stol" else "eager") < 1e-12


class Hooked(SLTT):
    """Halves the neurons' outputs by hooks, as a rule must not: code that is compiled does not see them."""

    def forward(self, x, steps):
        nodes = [module for module in self.net.modules() if isinstance(module, neuron.BaseNode)]
        hooks = [node.register_forward_hook(lambda node, x, s: s / 2) for node in nodes]
        try:
            return super().forward(x, steps)
        finally:
            for hook in hooks:
                hook.remove()


def test_hooks_that_come_later_are_ignored_by_compiled_code():
    assert compare(Hooked, "eager") > 1e-3
