import copy
from collections import OrderedDict

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.model import maxformer, qkformer, spikformer, spiking_resnet
from torch import nn

from sj_online import convert, deploy
from sj_online.layer import BinaryConv2d, BinaryLinear, ScaledWSConv2d, TernaryConv2d
from sj_online.layer.quantized import Quantized
from sj_online.layer.replace import quantize_synapses, quantized

# Their attention and MLPs are 1-D convolutions, torch's own in some.
TRANSFORMERS = {
    "spikformer": lambda: spikformer.Spikformer(
        2, 3, 32, 32, patch_size=16, num_classes=3, embed_dims=32, num_heads=2, depths=1
    ),
    "qkformer": lambda: qkformer.QKFormer(2, num_classes=3, embed_dims=32, num_heads=(1, 2, 2), depths=(1, 1, 1)),
    "maxformer": lambda: maxformer.MaxFormer(2, num_classes=3, embed_dims=32, depths=(1, 1, 1), cifar=True),
}


@pytest.mark.parametrize("kind", ["binary", "ternary"])
@pytest.mark.parametrize(
    "synapse",
    [
        layer.Conv1d(4, 6, 3, padding=1, step_mode="m"),
        layer.Conv2d(4, 6, (3, 1), 2, 1, groups=2, step_mode="m"),
        torch.nn.Linear(4, 6),
    ],
)
def test_the_quantised_twin_takes_over_everything(synapse, kind):
    twin = quantized(synapse.eval(), kind)
    assert twin.weight is synapse.weight and twin.bias is synapse.bias and not twin.training
    x = torch.randn(3, 4) if isinstance(synapse, nn.Linear) else torch.randn(3, 2, 4, *synapse.weight.shape[2:])
    expected = copy.deepcopy(synapse)
    expected.weight.data = twin.quantize(synapse.weight.data)
    assert torch.equal(twin(x), expected(x))


def test_an_unknown_kind_or_layer_is_named():
    with pytest.raises(ValueError, match="kind='octal' is not one of 'binary', 'ternary'"):
        quantized(torch.nn.Linear(2, 2), "octal")
    for other in (nn.Conv3d(2, 2, 1), ScaledWSConv2d(2, 2, 1)):
        with pytest.raises(ValueError, match=f"synapse={type(other).__name__} is none of Conv1d, Conv2d, Linear"):
            quantized(other, "binary")


def test_all_but_the_first_and_the_last_synapse_of_a_network_are_replaced():
    net = spiking_resnet.spiking_resnet18(spiking_neuron=neuron.LIFNode, num_classes=10)
    functional.set_step_mode(net, "m")
    names = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    state, parameters = net.state_dict(), set(net.parameters())
    assert quantize_synapses(net, "binary") == names[1:-1]
    assert type(net.conv1) is layer.Conv2d and type(net.fc) is layer.Linear
    assert type(net.layer1[0].conv1) is BinaryConv2d and net.layer1[0].conv1.step_mode == "m"
    assert set(net.parameters()) == parameters
    assert {name: id(tensor) for name, tensor in state.items()}.keys() == net.state_dict().keys()
    functional.reset_net(net)
    net(torch.rand(2, 1, 3, 64, 64)).sum().backward()
    assert net.layer4[1].conv2.weight.grad.isfinite().all()


def test_keep_takes_names_and_shared_and_standardised_synapses_stay_what_they_are():
    shared = layer.Conv2d(3, 3, 3)
    net = nn.ModuleDict({"a": shared, "b": shared, "ws": ScaledWSConv2d(3, 3, 3), "c": nn.Linear(4, 4)})
    assert quantize_synapses(net, "ternary", keep=["c"]) == ["a"]
    assert type(net["a"]) is TernaryConv2d and net["a"] is net["b"]
    assert type(net["ws"]) is ScaledWSConv2d and type(net["c"]) is nn.Linear
    assert quantize_synapses(net, "binary", keep=()) == ["c"] and type(net["c"]) is BinaryLinear
    with pytest.raises(ValueError, match="keep names 'd', but the synapses are a"):
        quantize_synapses(nn.ModuleDict({"a": nn.Linear(2, 2)}), "binary", keep=["d", "first"])


def test_first_and_last_are_places_whatever_the_modules_are_called():
    net = nn.Sequential(OrderedDict((name, nn.Linear(2, 2)) for name in ("stem", "last", "first", "fc")))
    assert quantize_synapses(net, "binary") == ["last", "first"]


def test_a_network_in_which_nothing_is_left_to_replace_is_refused():
    for net in (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Sequential(ScaledWSConv2d(2, 2, 1), nn.ReLU())):
        with pytest.raises(ValueError, match="net=Sequential: nothing inside it to replace"):
            quantize_synapses(net, "binary")


def test_it_is_found_among_the_conversions():
    assert convert.quantize_synapses is quantize_synapses


def test_keep_may_be_one_name_and_a_synapse_alone_is_refused():
    def net() -> nn.Sequential:
        return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))

    assert quantize_synapses(net(), "binary", keep="first") == ["1"]
    assert quantize_synapses(net(), "binary", keep="1") == ["0"]
    with pytest.raises(ValueError, match="net=Linear: nothing inside it to replace"):
        quantize_synapses(nn.Linear(2, 2), "binary", keep=())


@pytest.mark.parametrize("kind", ["binary", "ternary"])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_of_the_host_are_quantised_whole_train_and_deploy(name, kind, tmp_path):
    torch.manual_seed(0)
    net, twin = TRANSFORMERS[name](), TRANSFORMERS[name]()
    for each in (net, twin):
        synapses = [n for n, m in each.named_modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Linear)]
        assert quantize_synapses(each, kind) == synapses[1:-1]
        functional.set_step_mode(each, "m")  # torch's own convolutions, between which T and N are merged, have no mode
    net(torch.rand(2, 2, 3, 32, 32)).square().sum().backward()
    assert all(m.weight.grad.isfinite().all() for m in net.modules() if isinstance(m, Quantized))

    functional.reset_net(net.eval())
    deploy.export(net, tmp_path / "net")
    x = torch.rand(2, 2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(deploy.load(tmp_path / "net", twin)(x), net(x))
