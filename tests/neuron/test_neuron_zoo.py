"""One training step of every neuron in networks of the host's zoo."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer, model, neuron, surrogate
from spikingjelly.activation_based.model import (
    ms_resnet,
    parametric_lif_net,
    sew_resnet,
    spikformer,
    spiking_resnet,
    spiking_vgg,
)
from torch import nn

from sj_online.convert import swap_neurons
from sj_online.neuron import EMPFNode, HDLIFNode, LMHNode, OnlineNode

T = 2
LIF = {"spiking_neuron": neuron.LIFNode}
STEPWISE = {
    "spiking_resnet18": (lambda: spiking_resnet.spiking_resnet18(num_classes=3, **LIF), (3, 32, 32)),
    "sew_resnet18": (lambda: sew_resnet.sew_resnet18(num_classes=3, cnf="ADD", **LIF), (3, 32, 32)),
    "spiking_vgg11_bn": (lambda: narrow(spiking_vgg.spiking_vgg11_bn(num_classes=3, **LIF)), (3, 32, 32)),
    "DVSGestureNet": (lambda: parametric_lif_net.DVSGestureNet(4, **LIF), (2, 128, 128)),
    "CIFAR10DVSNet": (lambda: parametric_lif_net.CIFAR10DVSNet(2, **LIF), (2, 128, 128)),
}
MULTI_STEP_ONLY = {
    "ms_resnet18": (lambda: ms_resnet.ms_resnet18(T=T, num_classes=3), (3, 32, 32)),
    "spikformer": (
        lambda: spikformer.Spikformer(T, 3, 32, 32, patch_size=16, num_classes=3, embed_dims=32, num_heads=2, depths=1),
        (3, 32, 32),
    ),
}
CASES = [(name, mode) for name in STEPWISE for mode in "sm"] + [(name, "m") for name in MULTI_STEP_ONLY]
_built: dict[str, nn.Module] = {}


def narrow(net):
    """Without the 120 million weights of VGG's classifier."""
    net.classifier[0], net.classifier[3], net.classifier[6] = (
        layer.Linear(i, o) for i, o in ((512 * 7 * 7, 64), (64, 64), (64, 3))
    )
    return net


def network(name):
    """Built once for each worker; with linear layers that make the neurons behind them fire."""
    build, shape = (STEPWISE | MULTI_STEP_ONLY)[name]
    if name not in _built:
        _built.clear()
        _built[name] = build()
        for module in _built[name].modules():
            if isinstance(module, nn.Linear):
                module.weight.data.mul_(8)
    return _built[name], shape


def train_one_step(net, shape, step_mode):
    net.train()
    functional.set_step_mode(net, step_mode)
    functional.reset_net(net)
    x = torch.rand(T, 2, *shape)
    out = net(x) if step_mode == "m" else torch.stack([net(x_t) for x_t in x])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    optimizer.zero_grad()
    (out - 1).square().sum().backward()
    before = {n: p.detach().clone() for n, p in net.named_parameters() if "raw_" in n}
    assert nn.utils.clip_grad_norm_(net.parameters(), 1.0, error_if_nonfinite=True) > 0
    optimizer.step()
    functional.reset_net(net)
    return before


@pytest.mark.parametrize("node", ["empf", "hdlif", "lmh"])
@pytest.mark.parametrize(("name", "step_mode"), CASES)
def test_one_training_step(name, step_mode, node):
    torch.manual_seed(0)
    net, shape = network(name)
    rows = swap_neurons(net, node, num_steps=T)
    assert len(rows) == sum(isinstance(m, neuron.BaseNode) for m in net.modules())
    before = train_one_step(net, shape, step_mode)
    for n, p in net.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), n
    assert any((p != before[n]).any() for n, p in net.named_parameters() if "raw_" in n), "no neuron has learnt"


@pytest.mark.parametrize(
    "options", [{"membrane_norm": "channels"}, {"parallel": True}, {"temporal_grad": False}], ids=str
)
def test_one_training_step_with(options):
    torch.manual_seed(0)
    net, shape = network("CIFAR10DVSNet")
    functional.set_step_mode(net, "m")
    swap_neurons(net, "hdlif", num_steps=T, example_input=torch.rand(T, 2, *shape), **options)
    train_one_step(net, shape, "s")
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert any("raw_decay" in n for n, _ in net.named_parameters()) is not options.get("parallel", False)


@pytest.mark.parametrize("node", [EMPFNode, HDLIFNode, LMHNode])
def test_by_constructor(node):
    net = model.spiking_resnet.spiking_resnet18(num_classes=3, spiking_neuron=node, num_steps=T)
    nodes = [m for m in net.modules() if isinstance(m, OnlineNode)]
    assert len(nodes) == 17 and all(type(m) is node and m.num_steps == T for m in nodes)
    train_one_step(net, (3, 32, 32), "m")
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_a_surrogate_of_the_host_by_constructor():
    net = nn.Sequential(layer.Linear(4, 3), LMHNode(surrogate_function=surrogate.ATan(), step_mode="m"))
    net(torch.randn(3, 2, 4)).sum().backward()
    assert net[0].weight.grad.any()
