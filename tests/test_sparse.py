"""STDS: the soft threshold and its gradient against the paper, other thresholds as controls, the schedule, the form."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from spikingjelly.activation_based import layer
from torch import nn

from sj_online import deploy, predict
from sj_online.layer import BinaryConv2d, ScaledWSConv2d, TernaryLinear
from sj_online.model import small_vgg
from sj_online.neuron import LMHNode
from sj_online.sparse import bake, prepare, sine_schedule, soft_threshold, sparsify, sparsity, synapses, zeros
from sj_online.trainer import BPTT, OTTT, SLTT, STOL

D = 0.3


def weights():
    torch.manual_seed(0)
    weight = torch.randn(7, 5, dtype=torch.float64)
    weight[0, :2] = torch.tensor([D, -D])
    weight[1] = 0.0
    return weight.requires_grad_()


@pytest.mark.parametrize("threshold", [D, torch.tensor(D, dtype=torch.float64), 0.0])
def test_the_threshold_and_its_identity_gradient(threshold):
    weight, grad = weights(), torch.randn(7, 5, dtype=torch.float64)
    out = soft_threshold(weight, threshold)
    expected = weight.sign() * (weight.abs() - threshold).clamp(min=0)
    assert torch.equal(out, expected)
    (got,) = torch.autograd.grad(out, weight, grad)
    assert torch.equal(got, grad * (weight != 0))
    if threshold:
        (true,) = torch.autograd.grad(expected, weight, grad)  # zero below d: such a weight would never come back
        hard = torch.where(weight.abs() > threshold, weight, 0)
        assert not torch.equal(got, true) and not torch.equal(out, hard)
        assert torch.equal(got[weight.abs() > threshold], true[weight.abs() > threshold])


def test_the_schedule_is_a_sine_from_zero_over_half_to_all_of_it():
    values = [sine_schedule(n, 200, D) for n in range(201)]
    assert (values[0], values[200]) == (0.0, D) and values[100] == pytest.approx(D / 2, abs=1e-15)
    assert values == sorted(values)
    assert values[50] == pytest.approx(D * (1 - 0.5**0.5) / 2) != pytest.approx(D / 4, rel=0.1), "not linear"


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        layer.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), LMHNode(), layer.Flatten(), layer.Linear(384, 4)
    )


def test_weights_go_on_as_the_same_parameters_and_the_threshold_grows():
    net = network()
    before, objects = copy.deepcopy(net.state_dict()), {id(p) for p in net.parameters()}
    schedule = sparsify(net, 0.2, total=10)
    assert schedule.names == ["0", "4"] and schedule.n == 0 and {id(p) for p in net.parameters()} == objects
    assert all(torch.equal(net[i].weight, before[f"{i}.weight"]) for i in (0, 4))
    seen = [schedule.step() for _ in range(12)]
    assert seen[:10] == [sine_schedule(n, 10, 0.2) for n in range(1, 11)] and seen[10:] == [0.2, 0.2]
    assert schedule.threshold == 0.2 and schedule.n == 10
    assert torch.equal(net[0].weight, soft_threshold(before["0.weight"], torch.tensor(0.2)))
    assert torch.equal(net[0].bias, before["0.bias"]) and net[4].weight.count_nonzero() == 0
    none, of = zeros(net)["0"]
    assert 0 < none < of == 54 and zeros(net)["4"] == (1536, 1536)
    assert sparsity(net) == (none + 1536) / (54 + 1536)
    again = sparsify(net, 0.1, total=2)
    assert sparsity(net) == 0 and again.step() == pytest.approx(0.05) and len(net[0].parametrizations.weight) == 1


@pytest.mark.parametrize("rule", [BPTT, SLTT, OTTT, STOL])
def test_weights_below_the_threshold_learn_under_any_rule(rule):
    torch.manual_seed(0)
    net = nn.Sequential(layer.Linear(8, 16), LMHNode(), layer.Linear(16, 3))
    schedule = sparsify(net, 0.05, total=1)
    schedule.step()
    taught = rule(net, torch.optim.SGD(net.parameters(), lr=0.1), num_steps=2, **TRACE.get(rule, {}))
    raw, small = net[0].parametrizations.weight.original.detach().clone(), net[0].weight == 0
    taught.train_step(torch.rand(32, 8), torch.randint(3, (32,)))
    moved = net[0].parametrizations.weight.original != raw
    assert small.any() and moved[small].any() and sparsity(net) > 0


TRACE = {OTTT: {"trace_decay": 1.0}}


def test_synapses_that_make_their_own_weight_are_left_alone():
    net = nn.Sequential(BinaryConv2d(1, 2, 3), ScaledWSConv2d(2, 2, 3), TernaryLinear(4, 4), nn.Linear(4, 4))
    assert sparsify(net, 0.1, 1).names == ["3"]
    assert sparsity(nn.Sequential(BinaryConv2d(1, 2, 3))) == 0.0
    ternary = nn.Sequential(TernaryLinear(64, 64))
    assert sparsity(ternary) == (ternary[0].quantize(ternary[0].weight) == 0).double().mean().item() > 0.2
    with pytest.raises(ValueError, match="net=Sequential: no convolution or linear layer inside it to make sparse"):
        sparsify(net[:3], 0.1, 1)


@pytest.mark.parametrize(
    ("D", "total", "message"),
    [
        (-0.1, 1, "D=-0.1 is not a finite number of at least 0"),
        (float("inf"), 1, "D=inf is not a finite"),
        (0.1, 0, "total=0 is not a whole number of at least 1"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_changed(D, total, message):
    net = network()
    with pytest.raises(ValueError, match=message):
        sparsify(net, D, total)
    assert not synapses(net)


def sparse_network(**kwargs):
    torch.manual_seed(0)
    net = small_vgg(width=4, neuron="lmh", num_steps=None, **kwargs)
    schedule = sparsify(net, 0.05, 1)
    schedule.step()
    return net.eval()


@pytest.mark.parametrize("synapse", ["float", "binary"])
def test_an_exported_network_holds_sparse_weights_and_predicts_as_the_parametrised_one(synapse, tmp_path):
    net, x = sparse_network(synapse=synapse), torch.rand(3, 1, 8, 8)
    expected, path = predict(net, x, num_steps=4), tmp_path / "net.safetensors"
    options = {"width": 4, "neuron": "lmh", "num_steps": None, "synapse": synapse}
    deploy.export(net, path, model="small_vgg", kwargs=options)
    tensors = load_file(path)
    kept = [tensor for name, tensor in tensors.items() if name.removesuffix(".weight") in zeros(net)]
    assert len(kept) == (4 if synapse == "float" else 2) and all((tensor == 0).any() for tensor in kept)
    assert not any("parametrizations" in name for name in tensors) and synapses(net)
    loaded = deploy.load(path)
    assert torch.equal(predict(loaded, x, num_steps=4), expected)
    assert sparsity(loaded) == pytest.approx(sparsity(net)) and not synapses(loaded)
    dense = small_vgg(**options).eval()
    assert not torch.equal(predict(dense, x, num_steps=4), expected)
    into = sparse_network(synapse=synapse)
    assert torch.equal(predict(deploy.load(path, into), x, num_steps=4), expected) and not synapses(into)


def test_a_file_that_does_not_fit_leaves_a_sparse_network_as_it_was(tmp_path):
    net, path = sparse_network(synapse="float"), tmp_path / "net.safetensors"
    deploy.export(nn.Sequential(nn.Linear(2, 2)), path)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(ValueError, match="tensors that only the file or only the network has"):
        deploy.load(path, net)
    after = net.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert len(synapses(net)) == 4


def test_baked_weights_are_plain_parameters():
    net = network()
    sparsify(net, 0.2, 1).step()
    x = torch.rand(2, 1, 8, 8)
    expected, share = predict(net, x, num_steps=2), sparsity(net)
    assert bake(net) == ["0", "4"] and bake(net) == []
    assert type(net[0]) is layer.Conv2d and isinstance(net[0].weight, nn.Parameter) and net[0].bias.requires_grad
    assert set(net.state_dict()) == set(network().state_dict())
    assert torch.equal(predict(net, x, num_steps=2), expected) and sparsity(net) == share
    fresh = network()
    prepare(fresh)
    assert torch.equal(fresh[0].weight, network()[0].weight)


def test_the_threshold_is_kept_in_the_state_and_follows_the_type():
    net = network().double()
    schedule = sparsify(net, 0.2, 2)
    schedule.step()
    other = network()
    prepare(other)
    other.load_state_dict(copy.deepcopy(net.state_dict()))
    assert other[0].parametrizations.weight[0].threshold == pytest.approx(0.1)
    assert net[0].weight.dtype == net[0].parametrizations.weight[0].threshold.dtype == torch.float64
    assert sparsity(other) == sparsity(net) > 0


def test_a_synapse_with_two_names_is_stored_under_both(tmp_path):
    shared = nn.Linear(4, 4)
    net, path = nn.Sequential(shared, nn.ReLU(), shared).eval(), tmp_path / "net.safetensors"
    sparsify(net, 0.2, 1).step()
    deploy.export(net, path)
    assert set(load_file(path)) == {f"{i}.{part}" for i in (0, 2) for part in ("weight", "bias")}
    x, other = torch.rand(2, 4), nn.Linear(4, 4)
    assert torch.equal(deploy.load(path, nn.Sequential(other, nn.ReLU(), other))(x), net(x))
