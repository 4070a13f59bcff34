import json
import struct
from importlib.metadata import EntryPoint

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from sj_online import model, registry
from sj_online.deploy import export, load, read_header
from sj_online.layer import BinaryConv2d, BinaryLinear, TernaryConv2d
from sj_online.layer.quantized import Quantized
from sj_online.layer.replace import quantize_synapses


def small_net(width=6, classes=5):
    """Binary and ternary synapses at sizes that no byte divides, BN, spikes, a full-precision readout."""
    return nn.Sequential(
        TernaryConv2d(2, width, 3, padding=1),
        layer.BatchNorm2d(width),
        neuron.LIFNode(v_threshold=0.2, detach_reset=True),
        BinaryConv2d(width, 7, 3, padding=1, bias=True),
        layer.BatchNorm2d(7),
        neuron.LIFNode(v_threshold=0.2, detach_reset=True),
        layer.Flatten(),
        BinaryLinear(7 * 25, 11),
        layer.Linear(11, classes),
    )


@pytest.fixture
def net(monkeypatch):
    point = EntryPoint("small_net", f"{__name__}:small_net", "sj_online.models")
    monkeypatch.setattr(registry, "_entry_points", lambda group: {point.name: point})
    net = small_net(classes=4)
    for module in net.modules():
        if isinstance(module, Quantized):
            nn.init.normal_(module.weight)
    net(torch.randn(8, 2, 5, 5))  # running statistics of BN
    functional.reset_net(net)
    return net.eval()


def steps(net, x):
    with torch.no_grad():
        return torch.stack([net(step) for step in x])


def test_the_loaded_network_has_the_bits_and_the_same_logits(net, tmp_path):
    path = tmp_path / "net.safetensors"
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    export(net, path, model="small_net", kwargs={"classes": 4}, metadata={"accuracy": 0.5})
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]
    header = read_header(path)
    assert (header["model"], header["kwargs"], header["metadata"]) == ("small_net", {"classes": 4}, {"accuracy": 0.5})

    loaded = load(path)
    assert not loaded.training and loaded[3].packed.dtype == torch.uint8
    assert not {"0.weight", "3.weight", "7.weight"} & set(loaded.state_dict())
    x = torch.randn(4, 3, 2, 5, 5)
    expected = steps(net, x)
    assert torch.equal(steps(loaded, x), expected)
    given = small_net(classes=4)
    assert load(path, given) is given
    assert torch.equal(steps(given, x), expected)
    loaded[7].packed ^= 1  # negative control
    functional.reset_net(loaded)
    assert not torch.equal(steps(loaded, x), expected)


def test_multi_step_and_double_precision_survive(net, tmp_path):
    functional.set_step_mode(net.double(), "m")
    export(net, tmp_path / "net")
    loaded = load(tmp_path / "net", small_net(classes=4))
    functional.set_step_mode(loaded, "m")
    x = torch.randn(4, 3, 2, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(loaded(x), net(x))


@pytest.mark.parametrize(
    ("factory", "times_smaller"), [(lambda: model.hdlif_resnet18(100), 26), (lambda: model.small_vgg(), 5)]
)
def test_the_file_is_within_the_bound(factory, times_smaller, tmp_path):
    net = factory()
    export(net, tmp_path / "net")
    binary = {f"{name}.weight": m.weight for name, m in net.named_modules() if isinstance(m, BinaryConv2d)}
    state = net.state_dict()
    bound = 4096 + 128 * (len(state) + len(binary))
    bound += sum(weight.numel() / 8 + 4 * len(weight) for weight in binary.values())
    bound += sum(tensor.nbytes for name, tensor in state.items() if name not in binary)
    size = (tmp_path / "net").stat().st_size
    assert size <= bound
    assert sum(tensor.nbytes for tensor in state.values()) / size >= times_smaller


def rewrite(path, change):
    """Change the JSON header of the file at ``path`` in place."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    outer = json.loads(content[8 : 8 + length])
    header = json.loads(outer["__metadata__"]["sj_online"])
    change(header)
    outer["__metadata__"] = {"sj_online": json.dumps(header)}  # without a checksum, as earlier versions wrote it
    text = json.dumps(outer).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(format=2), "format=2"),
        (lambda h: h.update(kwargs=3), "kwargs=3"),
        (lambda h: h.pop("packed"), "fields"),
        (lambda h: h["packed"]["3"].update(bits=3), "'3'"),
        (lambda h: h["packed"]["3"].update(shape=[7, 6, 3, 2]), "3.packed"),
        (lambda h: h["packed"]["3"].update(shape=[2**40, 2**40]), "3.packed"),
        (lambda h: h["packed"]["3"].update(shape=[-7, -54]), "'3'"),
        (lambda h: h["packed"].update({"9": h["packed"]["3"]}), "9.packed"),
        (lambda h: h["packed"].pop("3"), "3.packed"),
        (lambda h: h["packed"]["0"].update(bits=1), "0.packed"),
        (lambda h: h.update(model="other"), "other"),
        (lambda h: h.update(model=None), "names no model"),
        (lambda h: h["kwargs"].update(depth=3), "depth"),
        (lambda h: h["kwargs"].update(classes=9), "tensor '8"),
        (lambda h: h["kwargs"].update(width=8), "synapse '0'"),
    ],
)
def test_a_header_that_does_not_match_is_one_clear_line(net, tmp_path, change, message):
    path = tmp_path / "net"
    export(net, path, model="small_net", kwargs={"classes": 4})
    rewrite(path, change)
    with pytest.raises(ValueError, match=message) as error:
        load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_code_that_is_not_ternary_is_refused(net, tmp_path):
    export(net, tmp_path / "net")
    with safe_open(tmp_path / "net", "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    del metadata["sj_online_sha256"]
    tensors["0.packed"][3] |= 0b1100
    save_file(tensors, tmp_path / "net", metadata)
    with pytest.raises(ValueError, match="'0.packed' holds a code that is not ternary"):
        load(tmp_path / "net", small_net(classes=4))


def test_truncated_foreign_and_missing_files_are_one_clear_line(net, tmp_path):
    export(net, tmp_path / "net")
    content = (tmp_path / "net").read_bytes()
    for size in (0, 4, 100, len(content) - 1):
        (tmp_path / "cut").write_bytes(content[:size])
        with pytest.raises(ValueError, match="not a readable packed file"):
            load(tmp_path / "cut")
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign")
    with pytest.raises(ValueError, match="not one of sj_online"):
        read_header(tmp_path / "foreign")
    with pytest.raises(ValueError, match="missing"):
        load(tmp_path / "missing")


def test_a_network_that_does_not_fit_is_left_as_it_was(net, tmp_path):
    export(net, tmp_path / "net")
    other = small_net(classes=6)
    with pytest.raises(ValueError, match="tensor '8"):
        load(tmp_path / "net", other)
    assert isinstance(other[3], BinaryConv2d) and "3.weight" in other.state_dict()


def test_a_float_network_takes_the_bits_of_its_quantised_self(tmp_path):
    """Of torch's own layers too, in any step mode."""

    def float_net():
        return nn.Sequential(layer.Conv1d(3, 4, 3), layer.Conv1d(4, 4, 3), nn.Conv1d(4, 5, 3), nn.Conv1d(5, 5, 1))

    net, loaded = float_net(), float_net()
    assert quantize_synapses(net, "binary") == ["1", "2"]
    export(net, tmp_path / "net")
    assert load(tmp_path / "net", loaded) is loaded
    x = torch.randn(2, 3, 9)
    functional.set_step_mode(loaded[2], "m")  # T and N are merged before it
    assert torch.equal(loaded(x), net(x))


def test_what_is_no_synapse_is_refused_before_anything_changes(tmp_path):
    export(nn.Sequential(BinaryLinear(4, 4), BinaryLinear(4, 4)), tmp_path / "net")
    other = nn.Sequential(layer.Linear(4, 4, bias=False), nn.Embedding(4, 4))
    with pytest.raises(ValueError, match="cannot pack a Embedding at bits=1; packed are Conv1d, Conv2d and Linear"):
        load(tmp_path / "net", other)
    assert type(other[0]) is layer.Linear


def test_export_refuses_what_could_not_be_loaded_and_writes_nothing(net, tmp_path):
    with pytest.raises(ValueError, match="'nobody' is not registered; known: small_net"):
        export(net, tmp_path / "net", model="nobody")
    with pytest.raises(ValueError, match="JSON"):
        export(net, tmp_path / "net", model="small_net", kwargs={"neuron": object()})
    assert not list(tmp_path.iterdir())


def test_an_interrupted_export_keeps_the_old_file(net, tmp_path, monkeypatch):
    export(net, tmp_path / "net", metadata={"run": 1})
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        export(net, tmp_path / "net", metadata={"run": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["net"] and read_header(tmp_path / "net")["metadata"] == {"run": 1}


def test_tensors_of_another_type_are_refused_and_the_network_stays(net, tmp_path):
    path = tmp_path / "net.safetensors"
    export(net, path)
    tensors, metadata = load_file(path), safe_open(path, "pt").metadata()
    del metadata["sj_online_sha256"]
    name = next(name for name in tensors if name.endswith("running_mean"))
    save_file(tensors | {name: tensors[name].long()}, path, metadata)
    classes = [type(module) for module in net.modules()]
    with pytest.raises(ValueError, match=f"{name}' has the type torch.int64, in the network torch.float32"):
        load(path, net)
    assert [type(module) for module in net.modules()] == classes


def test_a_synapse_with_two_names_is_refused(tmp_path):
    synapse = BinaryLinear(4, 4)
    with pytest.raises(ValueError, match="synapse '1' is '0' again"):
        export(nn.Sequential(synapse, synapse), tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())
