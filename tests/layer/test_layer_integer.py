"""The integer synapse against the float one: outputs and gradients, and that it is the one that runs."""

import copy
import pickle

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sj_online.layer import BinaryConv1d, BinaryConv2d, BinaryLinear, TernaryConv1d, TernaryConv2d, TernaryLinear
from sj_online.layer import integer as integers
from sj_online.layer.quantized import forget, set_integer
from sj_online.neuron import HDLIFNode
from sj_online.trainer import OTTT, SLTT

pytestmark = pytest.mark.skipif(integers.why_not() is not None, reason=str(integers.why_not()))


@pytest.fixture
def runs(monkeypatch):
    """The steps of the inputs that integer synapses have run on."""
    seen = []
    run = integers.run
    monkeypatch.setattr(integers, "run", lambda q, step, *rest: seen.append(step) or run(q, step, *rest))
    return seen


def spikes(*shape):
    return torch.randint(0, 2, shape).float()


def levels(*shape):
    return torch.randint(0, 16, shape).float() / 4


def pooled(*shape):
    return torch.randint(0, 61, shape).float() / 16


SYNAPSES = {
    "plain": (lambda: BinaryConv2d(5, 7, 3), (3, 5, 8, 9)),
    "padded": (lambda: TernaryConv2d(5, 7, 3, padding=1, bias=True), (3, 5, 8, 9)),
    "stride": (lambda: BinaryConv2d(5, 7, 3, stride=(2, 1), padding=(0, 1)), (3, 5, 8, 9)),
    "dilation": (lambda: BinaryConv2d(5, 7, 3, dilation=2, padding=2), (3, 5, 8, 9)),
    "groups": (lambda: TernaryConv2d(6, 8, 3, groups=2), (3, 6, 8, 9)),
    "depthwise": (lambda: BinaryConv2d(6, 6, 3, groups=6, padding=1), (3, 6, 8, 9)),
    "1x1": (lambda: BinaryConv2d(64, 3, 1), (1, 64, 2, 2)),
    "same": (lambda: BinaryConv2d(5, 7, (2, 3), padding="same"), (3, 5, 8, 9)),
    "valid": (lambda: BinaryConv2d(5, 7, 3, padding="valid"), (3, 5, 8, 9)),
    "circular": (lambda: BinaryConv2d(5, 7, 3, padding=(1, 2), padding_mode="circular"), (3, 5, 8, 9)),
    "reflect": (lambda: TernaryConv2d(5, 7, 3, padding=1, padding_mode="reflect"), (3, 5, 8, 9)),
    "sequence": (lambda: BinaryConv2d(5, 7, 3, step_mode="m"), (2, 3, 5, 8, 9)),
    "1d": (lambda: BinaryConv1d(5, 7, 3, padding=1, stride=2, bias=True), (3, 5, 9)),
    "1d ternary": (lambda: TernaryConv1d(4, 6, 3, groups=2, dilation=2), (3, 4, 9)),
    "linear": (lambda: BinaryLinear(13, 7, bias=True), (5, 13)),
    "linear in time": (lambda: TernaryLinear(13, 7), (4, 5, 13)),
    "linear vector": (lambda: BinaryLinear(13, 7), (13,)),
}


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6 * float(b.abs().max()))


def both(make, x):
    """Output and gradients with integers and without."""
    net = make()
    nn.init.normal_(net.weight)
    results = []
    for value in (True, False):
        net.integer = value
        net.zero_grad()
        leaf = x.clone().requires_grad_()
        y = net(leaf)
        factor = torch.sin(torch.arange(y.numel())).view(y.shape)  # as of a loss: not the same everywhere
        (y * factor).sum().backward()
        results.append([y.detach(), leaf.grad, *(p.grad for p in net.parameters())])
    return results


@pytest.mark.parametrize("kind", [spikes, levels, pooled])
@pytest.mark.parametrize("synapse", SYNAPSES)
def test_output_and_gradients_are_those_of_the_float_synapse(synapse, kind, runs):
    make, shape = SYNAPSES[synapse]
    ours, theirs = both(make, kind(*shape))
    assert runs == [1 / 16 if kind is pooled else 1 / 4]
    for a, b in zip(ours, theirs, strict=True):
        close(a, b)


def test_a_strided_an_expanded_and_a_channels_last_input_are_as_any(runs):
    x = levels(4, 8, 9, 5)
    for view in (x.permute(0, 3, 1, 2), x[:, :5, ::2], x[:1, :5].expand(3, -1, -1, -1)):
        ours, theirs = both(lambda: BinaryConv2d(5, 4, 3), view)
        for a, b in zip(ours, theirs, strict=True):
            close(a, b)
    assert len(runs) == 3


NOT_LEVELS = {
    "currents": lambda x: x + 0.1,
    "one value": lambda x: x.index_put((torch.tensor(2), torch.tensor(11)), torch.tensor(0.3)),
    "too large": lambda x: x * 40,
    "negative": lambda x: -x,
    "nan": lambda x: x.index_put((torch.tensor(2), torch.tensor(11)), torch.tensor(float("nan"))),
    "infinite": lambda x: x.index_put((torch.tensor(2), torch.tensor(11)), torch.tensor(float("inf"))),
    "tiny": lambda x: x + 1e-30 * (x == 0),
    "double": lambda x: x.double(),
}


@pytest.mark.parametrize("case", NOT_LEVELS)
def test_what_is_no_level_is_computed_in_float(case, runs):
    net = TernaryLinear(12, 3, integer=True)
    x = NOT_LEVELS[case](levels(300, 12))
    with torch.no_grad():
        y = net.to(x.dtype)(x)
        net.integer = False
        torch.testing.assert_close(y, net(x), rtol=0, atol=0, equal_nan=True)
    assert not runs and net.weight.dtype == x.dtype


def test_without_a_batch_and_of_no_samples_it_is_computed_in_float(runs):
    net = BinaryConv2d(2, 3, 3, integer=True)
    assert net(levels(0, 2, 5, 5)).shape == (0, 3, 3, 3)
    assert net._conv_forward(levels(2, 5, 5), net.weight, None).shape == (3, 3, 3)  # the host refuses it before
    assert not runs


def test_the_input_is_kept_for_backward_in_a_quarter_of_the_bytes():
    net, saved = BinaryConv2d(4, 4, 3, integer=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        net(levels(2, 4, 5, 5).requires_grad_())
    assert {t.dtype for t in saved if t.shape == (2, 4, 5, 5)} == {torch.uint8}


@pytest.mark.parametrize("change", ["update", "data", "load", "forget"])
def test_new_weights_are_made_ready_anew(change, runs):
    net, x = BinaryLinear(9, 4, integer=True), spikes(3, 9)
    nn.init.normal_(net.weight)
    net(x)
    if change == "update":
        with torch.no_grad():
            net.weight.neg_()
    elif change == "load":
        net.load_state_dict({"weight": -net.weight})
    else:
        net.weight.data.neg_()
        stale = net(x)
        forget(net) if change == "forget" else net.eval()
        assert not torch.equal(stale, net(x))
    y = net(x)
    assert set(runs) == {1 / 4}
    net.integer = False
    close(y, net(x))


def test_copies_and_pickles_take_the_option_along_and_nothing_that_is_kept(runs):
    net, x = BinaryConv2d(2, 3, 3, integer=True), spikes(1, 2, 4, 4)
    net(x)
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert copied.integer and copied._ready is None
        assert torch.equal(copied(x), net(x))
    assert len(runs) == 5


def test_where_calls_are_watched_or_wrapped_the_float_synapse_runs(runs):
    net, x = BinaryLinear(6, 4, integer=True), spikes(3, 6)
    with FlopCounterMode(display=False) as flops:
        net(x)
    assert flops.get_total_flops() == 2 * 3 * 6 * 4
    torch.func.vmap(net)(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert net(x).dtype == torch.bfloat16
    torch.compile(net, backend="eager")(x)
    assert not runs
    net(x)
    assert runs


@pytest.mark.parametrize(("rule", "expected"), [(SLTT, 8), (OTTT, 4)])
def test_rules_train_with_it_and_traced_synapses_without(rule, expected, runs):
    def trained(integer):
        torch.manual_seed(0)
        net = nn.Sequential(
            BinaryConv2d(2, 6, 3),
            nn.BatchNorm2d(6),
            HDLIFNode(threshold=0.25),
            BinaryConv2d(6, 6, 3),
            nn.BatchNorm2d(6),
            neuron.LIFNode(v_threshold=0.5),
            nn.Flatten(),
            nn.Linear(54, 3),
        )
        assert set_integer(net, integer) == 2
        step = rule(net, torch.optim.SGD(net.parameters(), lr=0.1), num_steps=4, update="sequence")
        step.train_step(torch.randint(0, 2, (5, 2, 7, 7)).float(), torch.tensor([0, 1, 2, 0, 1]))
        functional.reset_net(net)
        return [p.grad for p in net.parameters()]

    with_integers = trained(True)
    assert len(runs) == expected
    for a, b in zip(with_integers, trained(False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_reason_why_not_is_said_where_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(integers, "why_not", lambda: "the CPU has none of avx512_vnni")
    for ask in (lambda: BinaryLinear(2, 2, integer=True), lambda: set_integer(nn.Sequential(BinaryConv2d(2, 2, 1)))):
        with pytest.raises(ValueError, match="integer=True cannot be: the CPU has none of avx512_vnni"):
            ask()
    assert not BinaryLinear(2, 2, integer=False).integer


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("torch.cpu.get_capabilities", lambda: {"avx2": True}), "the CPU has none of avx512_vnni, avx_vnni, amx_int8"),
        (("torch.backends.mkldnn.is_available", lambda: False), "built without oneDNN"),
        (("sj_online.layer.integer.run", lambda *args: torch.tensor(0.5)), "wrong sums"),
        (("sj_online.layer.integer.prepare", lambda *args: torch.zeros(2)[3]), None),
    ],
)
def test_every_reason_has_its_words(change, reason, monkeypatch):
    monkeypatch.setattr(*change)
    if reason is None:
        monkeypatch.setattr(integers, "prepare", lambda *args: (_ for _ in ()).throw(RuntimeError("no\nprimitive")))
        reason = "does not run: no primitive"
    assert reason in integers.why_not.__wrapped__()


def test_the_answer_does_not_depend_on_where_it_is_asked():
    with torch.device("meta"):
        assert integers.why_not.__wrapped__() is None
        BinaryLinear(2, 2)


def test_scales_of_either_sign_and_one_for_all(runs):
    q = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    weight = torch.randint(-1, 2, (4, 3, 3, 3))
    geometry = integers.Geometry((1, 1), (0, 0), (1, 1), 1)
    for scale in (torch.tensor([-1.0, 0.0, 0.3, 7.0]).view(4, 1, 1, 1), torch.tensor(0.3)):
        y = integers.run(q, 0.5, integers.prepare(weight, scale, geometry), torch.ones(4))
        close(y.double(), nn.functional.conv2d(q.double() / 2, weight * scale.double(), torch.ones(4).double()))
        assert y.is_contiguous(memory_format=torch.channels_last)
