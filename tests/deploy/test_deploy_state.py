"""Any state_dict is exported, and loads again, or one line says what the file cannot hold; nothing is half-written."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from spikingjelly.activation_based import layer
from state_nets import binary_linear, one_line
from torch import nn
from torch.nn.utils import parametrizations

from sj_online.deploy import export, load, read_header


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
