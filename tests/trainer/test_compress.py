"""Gradients with spikes kept as bytes are the same bits, with fewer bytes."""

import gc

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, memopt, neuron
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

from sj_online.analysis import SavedBytes
from sj_online.neuron import EMPFNode, HDLIFNode, LMHNode
from sj_online.trainer import BPTT, OTTT, SLTT, STOL
from sj_online.trainer.compress import compressed

T, N, CLASSES = 3, 4, 3
NODES = {
    "lif": lambda: neuron.LIFNode(tau=2.0, decay_input=False, v_reset=None),
    "empf": EMPFNode,
    "hdlif": HDLIFNode,
    "lmh": LMHNode,
}


def network(name, dtype=torch.float32, step_mode="s"):
    torch.manual_seed(0)
    layers = []
    for before, after in [(2, 16), (16, 16)]:
        layers += [layer.Conv2d(before, after, 3, padding=1), layer.BatchNorm2d(after), NODES[name]()]
    layers += [layer.AvgPool2d(2), layer.Conv2d(16, 8, 3), layer.Flatten(), layer.Linear(32, CLASSES)]
    net = nn.Sequential(*layers).to(dtype)
    for module in net:
        module.step_mode = step_mode
    return net


def batch(dtype=torch.float32, steps=T):
    torch.manual_seed(1)
    return (torch.rand(steps, N, 2, 8, 8) * 4).to(dtype), torch.randint(CLASSES, (N,))


def gradients(rule, net, x, y, context=None):
    """The gradients of a sequence, and the peak of the bytes saved."""
    trained = rule(net, torch.optim.SGD(net.parameters(), lr=0.1))
    with SavedBytes(exclude=[*net.parameters(), x]) as saved, context or compressed(exclude=[x]):
        for _ in trained.gradients(x, y):
            pass
    return [p.grad for p in net.parameters()], saved.peak


def same_bits(first, second):
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return all(
        (a is None and b is None) or torch.equal(a.view(kinds[a.itemsize]), b.view(kinds[b.itemsize]))
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("rule", [SLTT, BPTT])
def test_gradients_are_the_same_bits_and_bytes_fewer(rule, name, dtype):
    x, y = batch(dtype)
    ours, peak = gradients(rule, network(name, dtype), x, y)
    oracle, _ = gradients(rule, network(name, dtype), x, y, context := SavedBytes(exclude=[x]))
    assert same_bits(ours, oracle) and any(g is not None and g.any() for g in oracle[:2])
    # EM-PF's spikes are float; where the others' spikes weigh little, BN's and the membrane's tensors remain.
    assert peak <= context.peak if name == "empf" else peak < 0.95 * context.peak


@pytest.mark.parametrize("rule", [OTTT, STOL])
def test_other_rules_get_the_same_bits(rule):
    x, y = batch()
    ours, peak = gradients(rule, network("lif"), x, y)
    oracle, _ = gradients(rule, network("lif"), x, y, context := SavedBytes(exclude=[x]))
    assert same_bits(ours, oracle) and peak < context.peak


def test_memory_stays_flat_in_T():
    peaks = [gradients(SLTT, network("lif"), *batch(steps=steps))[1] for steps in (2, 8)]
    assert peaks[0] == peaks[1]


def test_whole_sequences_get_the_same_bits_and_a_second_derivative():
    x, y = batch()
    results = []
    for context in (compressed(), SavedBytes()):
        net = network("lif", step_mode="m")
        with context:
            loss = F.cross_entropy(net(x).mean(0), y)
            first = torch.autograd.grad(loss, [net[3].weight], create_graph=True)
            (second,) = torch.autograd.grad(first[0].square().sum(), [net[6 + 1].weight])
        results.append([*first, second])
    assert same_bits(*results) and results[0][1].any()


def packed(tensor, **options):
    """The bytes saved of a tensor, and what comes back of it."""
    factor = torch.ones_like(tensor, requires_grad=True)
    with SavedBytes(exclude=[factor]) as saved, compressed(**options):
        output = factor * tensor
    return saved.peak, output.grad_fn._saved_other


SPIKES = (torch.arange(4096) % 7).reshape(4, 16, 8, 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "values", [SPIKES.clamp(max=1), SPIKES / 4, torch.arange(4096) % 256, torch.arange(4096) % 256 / 4], ids=range(4)
)
def test_bytes_come_back_as_the_tensor(values, dtype):
    peak, back = packed(values.to(dtype))
    assert peak == 4096 and back.dtype == dtype and same_bits([back], [values.to(dtype)])


@pytest.mark.parametrize(
    "tensor",
    [
        SPIKES.float().to(memory_format=torch.channels_last),
        SPIKES.float().permute(3, 1, 0, 2),
        SPIKES[:1].float().transpose(0, 1),
    ],
)
def test_strides_come_back(tensor):
    peak, back = packed(tensor)
    assert peak == tensor.numel() and back.stride() == tensor.stride() and torch.equal(back, tensor)


def with_one(value):
    tensor = SPIKES.float()
    tensor[1, 2, 3, 5] = value
    return tensor


@pytest.mark.parametrize("value", [-0.0, 0.5 + 1 / 8, -1.0, 256.0, 64.25, float("nan"), float("inf"), 1e-30])
def test_one_value_that_is_no_byte_keeps_the_tensor_as_it_is(value):
    tensor = with_one(value)
    peak, back = packed(tensor)
    assert peak == 4 * 4096 and same_bits([back], [tensor])


@pytest.mark.parametrize(
    "tensor",
    [SPIKES.float()[0], SPIKES.float().expand(2, -1, -1, -1, -1), SPIKES.float()[..., ::2], torch.ones(64), SPIKES],
    ids=["part", "expanded", "strided", "small", "integers"],
)
def test_what_does_not_own_its_storage_or_is_small_stays(tensor):
    factor = torch.ones(tensor.shape, requires_grad=True)
    with SavedBytes(exclude=[factor, tensor]) as saved, compressed():
        output = factor * tensor
    assert saved.peak == 0 and output.grad_fn._saved_other.data_ptr() == tensor.data_ptr()


def test_parameters_and_the_input_stay():
    fc, x = nn.Linear(64, 64, bias=False), torch.ones(16, 64, requires_grad=True)
    nn.init.ones_(fc.weight)
    frozen, seen = nn.Linear(64, 64, bias=False).requires_grad_(False), torch.ones(16, 64)
    nn.init.ones_(frozen.weight)
    with SavedBytes(exclude=[x, seen, fc.weight, frozen.weight]) as saved, compressed(exclude=[seen]):
        outputs = fc(x), frozen(x), fc(seen)
    assert saved.peak == 0 and len(outputs) == 3


def test_a_tensor_saved_by_several_operations_is_held_once():
    spikes, other = SPIKES.float(), SPIKES.float() * 2
    weight = torch.ones(4, 16, 8, 8, requires_grad=True)
    with SavedBytes(exclude=[weight]) as saved, compressed():
        held = [weight * spikes, weight.flatten() * spikes.flatten(), weight * other]
        assert saved.now == 2 * 4096
        spikes += 1  # the bytes are of before
        held.append(weight * spikes)
        assert saved.now == 3 * 4096
    torch.autograd.backward(held, [torch.ones_like(each) for each in held])
    assert torch.equal(weight.grad, SPIKES * 5.0 + 1)
    del held
    gc.collect()
    assert saved.now == 0


def test_an_address_that_is_used_again_does_not_give_old_bytes():
    weight = torch.ones(4096, requires_grad=True)
    with compressed():
        # Each is freed before the next is made, and its bytes live on.
        held = [weight * torch.full((4096,), float(i)) for i in range(8)]
    assert [each.grad_fn._saved_other[5].item() for each in held] == list(range(8))


def test_what_is_kept_as_it_is_must_not_be_changed():
    weight, x = torch.ones(4096, requires_grad=True), torch.rand(4096)
    with compressed():
        output = weight * x
    x += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("made_before", [False, True])
def test_hooks_around_it_get_the_bytes_and_hooks_inside_the_tensors(made_before):
    seen = []

    def hooks():
        return saved_tensors_hooks(lambda t: (seen.append(t.dtype), t.detach() if t.is_floating_point() else t ^ 7)[1],
                                   lambda t: t if t.is_floating_point() else t ^ 7)  # fmt: skip

    weight, spikes = torch.ones(4, 16, 8, 8, requires_grad=True), SPIKES.float()
    context = compressed() if made_before else None
    with hooks(), context or compressed():
        outer = weight * spikes
    assert torch.uint8 in seen and torch.equal(outer.grad_fn._saved_other, spikes)
    seen.clear()
    with compressed(), hooks():
        inner = weight * spikes
    assert seen and set(seen) == {torch.float32} and torch.equal(inner.grad_fn._saved_other, spikes)
    with save_on_cpu(), compressed(), compressed():
        twice = weight * spikes
    assert torch.equal(twice.grad_fn._saved_other, spikes)


class Block(nn.Sequential):
    """What the host is told to checkpoint."""


def checkpointed(x):
    net = network("lif", torch.float64)
    net = nn.Sequential(Block(*net[:3]), Block(*net[3:6]), *net[6:])
    memopt.optimize_memory(net, Block, example_forward=lambda net: net(x[0]), level=1)
    assert sum("Checkpoint" in type(module).__name__ for module in net) == 2
    functional.reset_net(net)
    return net


@pytest.mark.parametrize("rule", [SLTT, OTTT, BPTT])
def test_networks_of_the_hosts_memopt_get_the_same_gradients(rule):
    x, y = batch(torch.float64)
    before = SavedBytes(exclude=[x])
    oracle, _ = gradients(rule, network("lif", torch.float64), x, y, before)
    for context in (SavedBytes(exclude=[x]), compressed()):
        ours, peak = gradients(rule, checkpointed(x), x, y, context)
        assert all(torch.allclose(a, b, rtol=0, atol=1e-14) for a, b in zip(ours, oracle, strict=True))
        assert getattr(context, "peak", peak) < before.peak


def test_networks_of_the_hosts_memopt_stay_flat_in_T():
    peaks = []
    for steps in (2, 8):
        x, y = batch(torch.float64, steps)
        peaks.append(gradients(SLTT, checkpointed(x), x, y)[1])
    assert peaks[0] == peaks[1]
