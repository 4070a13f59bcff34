"""The runtimes of a loaded network, against each other and the network that was exported."""

import copy
import logging

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from sj_online import deploy, model
from sj_online.deploy import choose, export, load, report
from sj_online.deploy.runtime import Packed
from sj_online.layer import BinaryConv1d, BinaryConv2d, BinaryLinear, TernaryConv2d, TernaryLinear, integer
from sj_online.layer.quantized import Quantized
from sj_online.neuron import HDLIFNode

needs_integers = pytest.mark.skipif(integer.why_not() is not None, reason=str(integer.why_not()))
T = 4


def shaken(net, x):
    """With weights and running statistics as after some training."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, Quantized):
            nn.init.normal_(module.weight)
    with torch.no_grad():
        for _ in range(3):
            functional.reset_net(net)
            run(net, x)
    functional.reset_net(net)
    return net.eval()


@torch.no_grad()
def run(net, x):
    functional.reset_net(net)
    return torch.stack([net(x_t) for x_t in x])


RESNETS = {
    "binary": {},
    "ternary": {"synapse": "ternary"},
    "parallel": {"parallel": "half"},
    "all parallel": {"parallel": "all"},
    "membrane norm": {"membrane_norm": True},
    "attention": {"attention": "seca2"},
    "float spikes": {"neuron": "empf"},
}


def exported(name, tmp_path):
    options = {"width": 8, "depths": (1, 1), "multiples": (1, 2), "num_steps": T, **RESNETS[name]}
    x = torch.rand(T, 4, 3, 16, 16)
    net = shaken(model.hdlif_resnet18(**options), x)
    export(net, tmp_path / "net", model="hdlif_resnet18", kwargs={**options, "depths": [1, 1], "multiples": [1, 2]})
    return net, x, tmp_path / "net"


@pytest.mark.parametrize("name", RESNETS)
def test_packed_and_unpacked_are_the_network_that_was_exported(name, tmp_path):
    net, x, path = exported(name, tmp_path)
    expected = run(net, x)
    for runtime in ("packed", "unpacked"):
        loaded = load(path, runtime=runtime)
        assert torch.equal(run(loaded, x), expected)
        synapse = next(module for module in loaded.modules() if isinstance(module, Packed))
        assert (synapse.weight is synapse.weight) == (runtime == "unpacked")
        synapse.packed ^= 1  # what is kept is of these bits
        assert not torch.equal(run(loaded, x), expected)


@needs_integers
@pytest.mark.parametrize("name", RESNETS)
def test_every_synapse_alone_gives_what_the_float_one_gives(name, tmp_path):
    _, x, path = exported(name, tmp_path)
    net = load(path, runtime="int8")
    found = report(net)
    synapses = {n: m for n, m in net.named_modules() if isinstance(m, Packed)}
    assert {n for n, m in synapses.items() if m.runtime == "int8"} == set(found.integer)
    assert set(found.integer) | set(found.floating) == set(synapses)
    # The shortcuts see currents, float spikes are no levels; all else computes with integers.
    expected = 0 if name == "float spikes" else 4
    assert len(found.integer) == expected and found.folded >= 5 - 2 * (name == "attention")
    assert len(found.bytes) == (0 if name == "float spikes" else 4)
    errors = []

    def compare(module, args, output):
        q = args[0]
        given = q.double() * module.step if q.dtype == torch.uint8 else q.double()
        levels = deploy.pack.unpack(module.packed, module.shape, module.bits, torch.float64)
        weight = levels * module.scale.double()
        bias = None if module.bias is None else module.bias.double()
        right = nn.functional.conv2d(given, weight, bias, module.stride, module.padding)
        errors.append(float((output - right).abs().max() / right.abs().max()))

    for synapse in synapses.values():
        synapse.register_forward_hook(compare)
    run(net, x)
    assert len(errors) == len(synapses) * T and max(errors) < 1e-6


def exact_net():
    """Where all numbers are small multiples of powers of two, nothing is rounded."""
    net = nn.Sequential(
        BinaryConv2d(2, 4, 3, padding=1),
        layer.BatchNorm2d(4, eps=0.125),
        HDLIFNode(),
        TernaryConv2d(4, 4, 3, stride=2, groups=2),
        layer.BatchNorm2d(4, eps=0.125),
        neuron.IFNode(v_threshold=1.0, v_reset=None),
        layer.AvgPool2d(2),
        BinaryConv2d(4, 6, 1),
        neuron.LIFNode(decay_input=False, v_threshold=0.25, v_reset=0.0),
        layer.Flatten(),
        BinaryLinear(6, 5, bias=True),
    ).eval()
    for module in net.modules():
        if isinstance(module, Quantized):
            sign = torch.where(torch.rand(module.weight.shape) < 0.5, 0.5, -0.5)
            module.weight.data = sign * (torch.rand_like(sign) < 0.7) if module.bits == 2 else sign
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = torch.tensor([1.0, -1.0, 2.0, 0.5])
            module.bias.data = torch.randint(-4, 5, (4,)) / 8
            module.running_mean.copy_(torch.randint(-4, 5, (4,)) / 8)
            module.running_var.copy_(torch.tensor([1.0, 4.0, 0.25, 1.0]) - 0.125)
        if isinstance(module, BinaryLinear):
            module.bias.data.fill_(0.25)
    return net


@needs_integers
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_without_rounding_all_logits_are_equal(step_mode, tmp_path):
    torch.manual_seed(3)
    net = exact_net()
    x = torch.randint(0, 3, (T, 5, 2, 6, 6)).float()
    export(net, tmp_path / "net")
    given = copy.deepcopy(net)
    for each in (net, given):
        functional.set_step_mode(each, step_mode)
    loaded = load(tmp_path / "net", given, runtime="int8", example_input=x[0] if step_mode == "s" else x)
    found = report(loaded)
    assert found.integer == ["0", "3", "7", "10"] and found.bytes == (["2"] if step_mode == "s" else [])

    def outputs(net):
        functional.reset_net(net)
        with torch.no_grad():
            return net(x) if step_mode == "m" else torch.stack([net(x_t) for x_t in x])

    expected = outputs(net)
    assert expected.unique().numel() >= 5
    torch.testing.assert_close(outputs(loaded), expected, rtol=0, atol=1e-5)


@needs_integers
def test_a_user_network_in_one_dimension_and_a_byte_that_has_two_takers(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.node = layer.Conv1d(3, 4, 3), HDLIFNode(threshold=0.2)
            self.one, self.two = BinaryConv1d(4, 4, 3, padding=1), BinaryConv1d(4, 4, 1)
            self.last, self.out = HDLIFNode(threshold=0.2), TernaryLinear(4, 2)

        def forward(self, x):
            s = self.node(self.enter(x))
            return self.out(self.last(self.one(s) + self.two(s)).transpose(1, 2))

    x = torch.randn(T, 2, 3, 9)
    net = shaken(Net(), x)
    export(net, tmp_path / "net")
    loaded = load(tmp_path / "net", copy.deepcopy(net), runtime="int8")
    assert report(loaded).integer == ["one", "two", "out"] and report(loaded).bytes == []
    torch.testing.assert_close(run(loaded, x), run(net, x), rtol=1e-5, atol=1e-5)


@needs_integers
def test_without_an_input_that_fits_every_synapse_looks_at_what_it_gets(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = BinaryLinear(6, 3)

        def forward(self, x):
            return self.linear(x["levels"])

    net = Net().eval()
    nn.init.normal_(net.linear.weight)
    export(net, tmp_path / "net")
    loaded = load(tmp_path / "net", copy.deepcopy(net), runtime="int8")
    assert "no example of an input" in str(report(loaded))
    for x in (torch.ones(2, 6), torch.randn(2, 6)):
        torch.testing.assert_close(loaded({"levels": x}), net({"levels": x}), rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(loaded({"levels": torch.full((1, 6), 0.3)}), net({"levels": torch.full((1, 6), 0.3)}))


@needs_integers
def test_auto_takes_what_is_faster(tmp_path, monkeypatch):
    _, x, path = exported("binary", tmp_path)
    seconds = iter([*[1.0] * 3, *[2.0] * 3, *[2.0] * 3, *[1.0] * 3, *[1.0] * 3, *[2.0] * 3, *[1.0] * 3, *[2.0] * 3])
    monkeypatch.setattr(choose, "_seconds", lambda call: next(seconds))
    net = load(path, runtime="auto")
    found = report(net)
    assert len(found.integer) == len(found.bytes) == 3
    assert list(found.floating.values()).count("faster so") == 1
    torch.testing.assert_close(run(net, x)[0], run(load(path, runtime="int8"), x)[0], rtol=1e-4, atol=1e-4)


def test_where_it_cannot_be_the_reason_is_said_and_it_runs_unpacked(tmp_path, monkeypatch):
    net, x, path = exported("binary", tmp_path)
    monkeypatch.setattr(integer, "why_not", lambda: "the CPU has none of avx512_vnni")
    with pytest.warns(UserWarning, match="runtime='int8' is 'unpacked' here: the CPU has none of avx512_vnni"):
        loaded = load(path, runtime="int8")
    assert report(loaded).runtime == "unpacked" and torch.equal(run(loaded, x), run(net, x))


@needs_integers
def test_the_load_says_how_many(tmp_path, caplog):
    _, _, path = exported("binary", tmp_path)
    with caplog.at_level(logging.INFO, "sj_online.deploy"):
        load(path, runtime="int8")
    assert "4 of 5 quantised synapses compute with integers, 4 neurons give bytes, 6 norms folded" in caplog.text
    with pytest.raises(ValueError, match="runtime='fast' is not one of 'packed', 'unpacked', 'int8', 'auto'"):
        load(path, runtime="fast")
    with pytest.raises(ValueError, match="this Linear was not loaded by"):
        report(nn.Linear(1, 1))


@needs_integers
def test_a_loaded_network_is_copied_and_exported_again(tmp_path):
    net, x, path = exported("binary", tmp_path)
    loaded = load(path, runtime="int8")
    assert torch.equal(run(copy.deepcopy(loaded), x), run(loaded, x))
    unpacked = load(path, runtime="unpacked")
    export(unpacked, tmp_path / "again", model=None)
    assert (tmp_path / "again").stat().st_size < path.stat().st_size + 200


def test_a_compiler_that_fails_is_a_warning_and_the_network_runs(tmp_path, monkeypatch):
    net, x, path = exported("binary", tmp_path)

    def fail(self, *args, **kwargs):
        self._compiled_call_impl = lambda *args: (_ for _ in ()).throw(RuntimeError("no\ncompiler"))

    monkeypatch.setattr(nn.Module, "compile", fail)
    with pytest.warns(UserWarning, match="compile=True: .* fails here: RuntimeError: no compiler"):
        loaded = load(path, compile=True)
    assert torch.equal(run(loaded, x), run(net, x))
    monkeypatch.setattr(nn.Module, "compile", lambda self: None)
    assert report(load(path, compile=True)).remarks == ["compiled"]
