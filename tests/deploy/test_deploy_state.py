"""Any state_dict is exported, and loads again, or one line says what the file cannot hold; nothing is half-written."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from spikingjelly.activation_based import layer
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from sj_online.deploy import export, fold_norms, load, read_header
from sj_online.layer import BinaryConv2d, BinaryLinear, TernaryConv2d, TernaryLinear


def binary_linear():
    linear = BinaryLinear(9, 9, bias=True)
    nn.init.normal_(linear.weight)
    return linear


def one_line(error):
    return "\n" not in str(error.value)


class Extra(nn.Module):
    def __init__(self, value=None):
        super().__init__()
        self.value = value

    def forward(self, x):
        return x

    def get_extra_state(self):
        return self.value

    def set_extra_state(self, value):
        self.value = value


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


EXTRAS = [None, {"version": 1, "a": [1.5, "b", True, None]}, 3, "text", torch.arange(3.0), torch.tensor(True)]


@pytest.mark.parametrize("value", EXTRAS)
def test_extra_state_comes_back(value, tmp_path):
    export(nn.Sequential(binary_linear(), Extra(value)), tmp_path / "net")
    other = 7 if isinstance(value, torch.Tensor) else torch.zeros(2)  # the module may take it in any form
    loaded = load(tmp_path / "net", nn.Sequential(binary_linear(), Extra(other)))
    assert type(loaded[1].value) is type(value)
    assert torch.equal(loaded[1].value, value) if isinstance(value, torch.Tensor) else loaded[1].value == value
    assert ("1._extra_state" in read_header(tmp_path / "net")["extra"]) != isinstance(value, torch.Tensor)


class Entry(nn.Module):
    """Something in the state_dict that is neither tensor nor extra state."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        destination[prefix + "value"] = self.value

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        self.value = state_dict[prefix + "value"]


def test_other_entries_come_back_and_must_be_of_one_kind(tmp_path):
    export(nn.Sequential(Entry({"a": 1})), tmp_path / "a")
    export(nn.Sequential(Entry(torch.ones(2))), tmp_path / "b")
    assert load(tmp_path / "a", nn.Sequential(Entry(0)))[0].value == {"a": 1}
    for file, value in (("a", torch.ones(2)), ("b", 0)):
        with pytest.raises(ValueError, match="'0.value' is a tensor in only one of file and network"):
            load(tmp_path / file, nn.Sequential(Entry(value)))
    with pytest.raises(ValueError, match="only the file or only the network has: 0.value"):
        load(tmp_path / "a", nn.Sequential(nn.Identity()))


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"mean": torch.zeros(2)}, "dict that JSON cannot hold: Object of type Tensor"),
        ((1, 2), r"tuple that JSON cannot hold: it would come back as \[1, 2\]"),
        ({1: 2}, "dict that JSON cannot hold: it would come back as {'1': 2}"),
        (float("nan"), "float that JSON cannot hold: Out of range"),
        (b"pickle", "bytes that JSON cannot hold"),
        (lambda: 0, "function that JSON cannot hold"),
    ],
)
def test_extra_state_that_would_change_is_refused_by_name(value, why, tmp_path):
    (tmp_path / "net").write_text("old")
    with pytest.raises(ValueError, match=f"'1._extra_state' in the state_dict is a {why}") as error:
        export(nn.Sequential(binary_linear(), Extra(value)), tmp_path / "net")
    assert one_line(error) and (tmp_path / "net").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_refusing_set_extra_state_leaves_the_network_as_it_was(tmp_path):
    class Refusing(Extra):
        def set_extra_state(self, value):
            raise KeyError("version\nunknown")

    def network(last):
        return nn.Sequential(parametrizations.weight_norm(binary_linear()), layer.Linear(9, 9), last)

    export(network(Extra(3)), tmp_path / "net")
    net, x = network(Refusing(3)), torch.rand(2, 9)
    kinds, members = [type(m) for m in net.modules()], [set(vars(m)) for m in net.modules()]
    before, state = net(x), copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="version") as error:
        load(tmp_path / "net", net)
    assert one_line(error) and str(tmp_path / "net") in str(error.value)
    assert [type(m) for m in net.modules()] == kinds and [set(vars(m)) for m in net.modules()] == members
    assert torch.equal(net(x), before)
    assert net.state_dict().keys() == state.keys() and net.training and net[1].weight.requires_grad
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items() if isinstance(v, torch.Tensor))


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


class Tensors(nn.Module):
    def __init__(self, **tensors):
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


COMPLEX = torch.randn(3, dtype=torch.complex64)
UNUSUAL = {
    "bool": torch.tensor([True, False]),
    "int64": torch.arange(4),
    "uint8": torch.arange(4, dtype=torch.uint8),
    "half": torch.rand(3).bfloat16(),
    "complex": COMPLEX,
    "conjugate": COMPLEX.conj(),
    "negative": COMPLEX.conj().imag,
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    "turned": torch.rand(3, 4).t(),
    "spread": torch.rand(3, 1).expand(3, 4),
    "part": torch.rand(9)[2:7:2],
    "channels last": torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_tensors_come_back(kind, tmp_path):
    tensor = UNUSUAL[kind]
    export(nn.Sequential(binary_linear(), Tensors(a=tensor)), tmp_path / "net")
    back = load(tmp_path / "net", nn.Sequential(binary_linear(), Tensors(a=torch.zeros_like(tensor))))[1].a
    assert back.dtype == tensor.dtype and back.shape == tensor.shape and torch.equal(back, tensor)


REFUSED = {
    "complex128": lambda: Tensors(a=torch.zeros(2, dtype=torch.complex128)),
    "sparse": lambda: Tensors(a=torch.eye(3).to_sparse()),
    "meta": lambda: Tensors(a=torch.zeros(2, device="meta")),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_tensors_that_the_file_cannot_hold_are_refused_by_name(kind, tmp_path):
    with pytest.raises(ValueError, match=r"tensor '1.a' \(.*cannot be stored: .") as error:
        export(nn.Sequential(binary_linear(), REFUSED[kind]()), tmp_path / "net")
    assert one_line(error) and not list(tmp_path.iterdir())


def test_a_network_that_has_never_run_is_refused_by_name_on_both_sides(tmp_path):
    with pytest.raises(ValueError, match="tensor '1.a' is not initialised; run the network once"):
        export(nn.Sequential(binary_linear(), nn.ParameterDict({"a": nn.UninitializedParameter()})), tmp_path / "net")
    export(nn.Sequential(layer.Linear(3, 3)), tmp_path / "net")
    with pytest.raises(ValueError, match="net: tensor '0.weight' is not initialised"):
        load(tmp_path / "net", nn.Sequential(nn.LazyLinear(3)))


@pytest.mark.parametrize(("old", "new"), [("bool", "uint8"), ("int64", "bool"), ("complex", "int64")])
def test_a_tensor_is_not_loaded_as_another_kind(old, new, tmp_path):
    tensors = {kind: torch.zeros(2).to(UNUSUAL[kind].dtype) for kind in (old, new)}
    export(Tensors(a=tensors[old]), tmp_path / "net")
    with pytest.raises(ValueError, match=f"'a' has the type {tensors[old].dtype}, in the network {tensors[new].dtype}"):
        load(tmp_path / "net", Tensors(a=tensors[new]))


def test_tied_weights_are_stored_for_each_name(tmp_path):
    def network():
        net = nn.Sequential(binary_linear(), binary_linear(), layer.Linear(9, 9), layer.Linear(9, 9))
        net[1].weight = net[0].weight
        net[3].weight = net[2].weight
        return net.eval()

    net, x = network(), torch.rand(2, 9)
    export(net, tmp_path / "net")
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


def test_a_key_is_a_tensor_or_not_one(tmp_path):
    from test_deploy_file import rewrite

    export(nn.Sequential(layer.Linear(2, 2), Extra(1)), tmp_path / "net")
    rewrite(tmp_path / "net", lambda header: header["extra"].update({"0.bias": 1}))
    with pytest.raises(ValueError, match="'0.bias' is a tensor and not one"):
        read_header(tmp_path / "net")


def test_deploying_imports_nothing_that_trains():
    code = "import sys, json, sj_online.deploy; print(json.dumps(list(sys.modules)))"
    modules = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
    assert "sj_online.deploy.fold" in modules
    parts = {name.split(".")[1] for name in modules if name.startswith("sj_online.")}
    assert not parts & {"trainer", "app", "session", "run", "recipe", "data", "model"}
    assert "lightning_fabric" not in modules
