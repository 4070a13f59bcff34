"""Packed again, folded, parametrised or of a user's own class: a synapse is exported right, or refused in one line."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from spikingjelly.activation_based import layer
from state_nets import binary_linear, one_line
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from sj_online.deploy import export, fold_norms, load, read_header
from sj_online.layer import BinaryConv2d, BinaryLinear, TernaryConv2d, TernaryLinear


@pytest.mark.parametrize("make", [BinaryConv2d, TernaryConv2d])
def test_a_loaded_network_is_exported_again_with_the_same_bits(make, tmp_path):
    def network():
        return nn.Sequential(make(2, 5, 3, bias=True), layer.BatchNorm2d(5), layer.Flatten(), TernaryLinear(45, 3))

    net, x = network().eval(), torch.rand(4, 2, 5, 5)
    nn.init.normal_(net[0].weight)
    export(net, tmp_path / "a")
    export(load(tmp_path / "a", network()), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    again = load(tmp_path / "b", network())
    assert again[0].packed.dtype == torch.uint8 and torch.equal(again(x), net(x))
    other = network().eval()
    nn.init.normal_(other[0].weight)
    export(other, tmp_path / "c")
    assert load(tmp_path / "c", again) is again  # a packed network takes other bits
    assert torch.equal(again(x), other(x)) and not torch.equal(other(x), net(x))


@pytest.mark.parametrize("make", [BinaryConv2d, TernaryConv2d])
def test_a_folded_packed_network_loads_into_one_without_norms(make, tmp_path):
    def network():
        return nn.Sequential(make(2, 5, 3), layer.BatchNorm2d(5)).eval()

    net, x = network(), torch.rand(4, 2, 5, 5)
    nn.init.normal_(net[1].weight)
    export(net, tmp_path / "a")
    folded = fold_norms(load(tmp_path / "a", network()))
    export(folded, tmp_path / "b")
    loaded = load(tmp_path / "b", nn.Sequential(make(2, 5, 3, bias=True), nn.Identity()))
    assert torch.equal(loaded(x), folded(x)) and loaded[0].scale.shape == (5, 1, 1, 1)
    with pytest.raises(ValueError, match="only the file or only the network has: 0.bias, 1.bias, 1.num") as error:
        load(tmp_path / "b", network())
    assert one_line(error)


def test_a_synapse_of_other_bits_or_size_or_twice_is_refused(tmp_path):
    export(nn.Sequential(BinaryLinear(9, 9), BinaryLinear(9, 9)), tmp_path / "a")
    export(nn.Sequential(TernaryLinear(9, 8)), tmp_path / "b")
    packed = load(tmp_path / "b", nn.Sequential(layer.Linear(9, 8, bias=False)))
    with pytest.raises(ValueError, match="no synapse '0' with a weight of shape"):
        load(tmp_path / "a", nn.Sequential(packed[0], BinaryLinear(9, 9)))
    shared = layer.Linear(9, 9, bias=False)
    with pytest.raises(ValueError, match="synapse '1' is '0' again"):
        load(tmp_path / "a", nn.Sequential(shared, shared))
    assert type(shared) is layer.Linear
    with pytest.raises(ValueError, match="synapse '1' is '0' again"):
        export(nn.Sequential(packed[0], packed[0]), tmp_path / "c")


class Half(nn.Module):
    def forward(self, weight):
        return weight / 2


PARAMETRISED = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "two": lambda m: parametrize.register_parametrization(parametrizations.weight_norm(m), "weight", Half()),
    "bias": lambda m: parametrize.register_parametrization(m, "bias", Half()),
}


@pytest.mark.parametrize("kind", PARAMETRISED)
@pytest.mark.parametrize("make", [binary_linear, lambda: layer.Linear(9, 9)])
def test_parametrised_synapses_are_exported_with_what_they_compute(make, kind, tmp_path):
    """Quantised ones are packed as they are now; of others all that makes the weight is kept."""
    packed = make is binary_linear
    net, x = nn.Sequential(PARAMETRISED[kind](make())).eval(), torch.rand(2, 9)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))
    export(net, tmp_path / "net")
    assert ("0.packed" in load_file(tmp_path / "net")) == packed
    assert torch.equal(load(tmp_path / "net", nn.Sequential(PARAMETRISED[kind](make())))(x), net(x))
    if packed:
        plain = load(tmp_path / "net", nn.Sequential(make()))
        assert torch.equal(plain(x), net(x)) and len(plain.state_dict()) == 3
        assert isinstance(plain[0].bias, nn.Parameter)


def test_a_spectral_norm_in_training_is_exported_as_in_eval_mode_and_not_moved(tmp_path):
    net = nn.Sequential(parametrizations.spectral_norm(binary_linear()))
    before = copy.deepcopy(net.state_dict())
    export(net, tmp_path / "net")
    assert net.training and all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    x = torch.rand(2, 9)
    assert torch.equal(load(tmp_path / "net", nn.Sequential(binary_linear()))(x), net.eval()(x))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", [nn.utils.weight_norm, lambda m: prune.l1_unstructured(m, "weight", 4)])
def test_weights_made_in_an_unknown_way_are_refused(kind, tmp_path):
    with pytest.raises(ValueError, match="synapse '0' has no weight in the state_dict but 0.bias, 0.weight_") as error:
        export(nn.Sequential(kind(binary_linear())), tmp_path / "net")
    assert one_line(error) and not list(tmp_path.iterdir())
    export(nn.Sequential(kind(layer.Linear(4, 4))), tmp_path / "net")  # negative control: kept as it is


def test_a_quantised_subclass_with_a_forward_of_its_own_is_kept_as_it_is(tmp_path):
    class Doubled(BinaryLinear):
        def forward(self, x):
            return 2 * super().forward(x)

    class Shifted(BinaryConv2d):
        def _conv_forward(self, input, weight, bias):
            return super()._conv_forward(input, weight, bias) + 1

    class Named(BinaryLinear):
        pass

    def network():
        return nn.Sequential(Shifted(1, 2, 3), layer.Flatten(), Doubled(2, 4), Named(4, 4))

    net, x = network().eval(), torch.rand(5, 1, 3, 3)
    export(net, tmp_path / "net")
    assert set(read_header(tmp_path / "net")["packed"]) == {"3"}
    assert torch.equal(load(tmp_path / "net", network())(x), net(x))


def test_weights_whose_bits_would_not_give_them_back_are_refused(tmp_path):
    class Louder(BinaryLinear):
        quantize = staticmethod(lambda weight: 2 * BinaryLinear.quantize(weight))

    class Quads(BinaryLinear):
        bits = 4

    class Scaled(BinaryLinear):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            self.register_buffer("scale", torch.ones(1))

    nan = binary_linear()
    nan.weight.data[3, 4] = float("nan")
    cases = [
        (Louder(9, 9), "weights that are not finite, or that its levels do not give back"),
        (nan, "weights that are not finite"),
        (Quads(9, 9), "cannot pack a Quads at bits=4"),
        (Scaled(9, 9), "'0.scale' has a name that the packed synapse needs"),
        (BinaryLinear(9, 0), "synapse '0' is described by"),
    ]
    for module, message in cases:
        with pytest.raises(ValueError, match=message):
            export(nn.Sequential(module), tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_a_network_that_is_a_synapse_has_names_without_a_dot(tmp_path):
    net, x = parametrizations.weight_norm(binary_linear()), torch.rand(2, 9)
    export(net, tmp_path / "net")
    assert torch.equal(load(tmp_path / "net", binary_linear())(x), net(x))
