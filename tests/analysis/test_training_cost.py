"""Cost of training steps: memory that is known by hand, rules whose growth is known, rivals with the same gradient."""

import math
from functools import partial

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn

from sj_online.analysis import training_cost as costs
from sj_online.analysis.live import peak_live_bytes
from sj_online.analysis.rivals import Block, in_blocks, multi_step_bptt
from sj_online.analysis.timing import quartiles, rounds_of
from sj_online.analysis.training_cost import Made, training_cost
from sj_online.testing import assert_live, bptt_gradient
from sj_online.trainer import BPTT, OTTT, SLTT, STOL

LIF = {"tau": 2.0, "decay_input": False, "v_reset": None, "detach_reset": True}
RIVALS = {"host": {}, "checkpointing": {"checkpointed": True}, "memopt": {"memopt_level": 1}}


def network():
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Linear(64, 128),
        neuron.LIFNode(**LIF),
        layer.Linear(128, 128),
        neuron.LIFNode(**LIF),
        layer.Linear(128, 3),
    )
    for module in net:
        if isinstance(module, layer.Linear):
            nn.init.normal_(module.weight, 0.05, 0.1)  # so that the neurons fire
    return net


X, Y = torch.rand(16, 64), torch.randint(3, (16,))


def rule(kind, T):
    net = network()
    made = kind(net, torch.optim.SGD(net.parameters(), lr=0.01), num_steps=T)
    return Made(lambda: made.train_step(X, Y), net, X)


def rival(T, **kwargs):
    net, step = multi_step_bptt(network(), X, Y, T, **kwargs)
    return Made(step, net, X)


def test_memory_is_flat_for_one_step_and_linear_for_all():
    makers = {kind.__name__: partial(rule, kind) for kind in (SLTT, OTTT, STOL, BPTT)}
    rows = {(row.name, row.steps): row for row in training_cost(makers, (4, 8, 16), rounds=0)}
    for name in ("SLTT", "OTTT", "STOL"):
        assert len({rows[name, T].saved_bytes for T in (4, 8, 16)}) == 1
        peaks = [rows[name, T].peak_bytes for T in (4, 8, 16)]
        assert max(peaks) < 1.1 * min(peaks)
    saved = [rows["BPTT", T].saved_bytes for T in (4, 8, 16)]
    assert saved[1] / saved[0] == pytest.approx(2, rel=0.05) and saved[2] / saved[1] == pytest.approx(2, rel=0.05)
    peaks = [rows["BPTT", T].peak_bytes for T in (4, 8, 16)]  # and what does not depend on T
    assert peaks[2] - peaks[1] == pytest.approx(2 * (peaks[1] - peaks[0]), rel=0.1)
    assert math.isnan(rows["SLTT", 4].seconds)


def test_peak_live_memory_sees_what_saved_bytes_do_not():
    rows = {row.name: row for row in training_cost({n: partial(rival, **o) for n, o in RIVALS.items()}, [32], rounds=0)}
    assert rows["checkpointing"].saved_bytes < 0.8 * rows["host"].saved_bytes
    for row in rows.values():
        assert row.peak_bytes > row.saved_bytes
    hidden = {name: row.peak_bytes - row.saved_bytes for name, row in rows.items()}
    assert hidden["memopt"] > hidden["host"] and hidden["checkpointing"] > hidden["host"]


@pytest.mark.parametrize("options", RIVALS.values(), ids=RIVALS)
def test_rivals_have_the_gradient_of_backpropagation_through_time(options):
    net = network().double()
    x = torch.rand(6, 4, 64, dtype=torch.float64)
    y = torch.randint(3, (4,))
    expected = list(bptt_gradient(net, x, y).values())
    assert_live(expected)
    copied, step = multi_step_bptt(net, x, y, **options)
    for _ in range(2):  # nothing of the first call is left in the second
        copied.zero_grad()
        step()
        found = [p.grad for p in copied.parameters()]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert all(p.grad is None for p in net.parameters()) and not any(isinstance(m, Block) for m in net.modules())


def test_blocks_end_in_neurons_wherever_they_are():
    net = nn.Sequential(network(), layer.Linear(3, 3))
    assert in_blocks(net) == 2
    assert [type(m) for m in net[0]] == [Block, Block, layer.Linear]
    assert [type(m) for m in net[0][0]] == [layer.Linear, neuron.LIFNode]
    assert in_blocks(nn.Sequential(layer.Linear(2, 2))) == 0


def test_what_cannot_be_run_again_is_said():
    net = nn.Sequential(layer.Linear(64, 3))
    with pytest.raises(ValueError, match="no block to run again"):
        multi_step_bptt(net, X, Y, 2, checkpointed=True)
    with pytest.raises(ValueError, match="memopt_level=2 measures on a CUDA device"):
        multi_step_bptt(network(), X, Y, 2, memopt_level=2)


def test_peak_live_bytes_are_those_at_one_time():
    x = torch.ones(1000)

    def one_after_the_other():
        for _ in range(3):
            x + 1

    def together():
        return [x + 1 for _ in range(3)]

    few = 64  # bytes of numbers such as the 1
    assert peak_live_bytes(one_after_the_other) == pytest.approx(4000, abs=few)
    assert peak_live_bytes(together) == pytest.approx(12000, abs=few)
    held = [torch.ones(5000)]
    assert peak_live_bytes(lambda: (held.clear(), x + 1)) == pytest.approx(4000, abs=few)  # no credit for what goes


def test_ratios_are_to_the_first_round_by_round(monkeypatch):
    seconds = {"a": [2.0, 4.0, 2.0], "b": [3.0, 4.0, 8.0]}
    asked = {}
    monkeypatch.setattr(costs, "rounds_of", lambda steps, rounds, warmup: asked.update(r=rounds) or seconds)
    makers = dict.fromkeys(("a", "b"), partial(rule, SLTT))
    told = []
    first, second = training_cost(makers, [2], rounds=3, progress=told.append)
    assert asked == {"r": 3}
    assert (first.seconds, first.ratio, first.ratio_low, first.ratio_high) == (2, 1, 1, 1)
    assert (second.seconds, second.ratio) == (3, 1.5)
    assert (second.ratio_low, second.ratio_high) == quartiles([1.5, 1.0, 4.0]) == (1.25, 2.75)
    assert told == ["a, T=2: memory", "b, T=2: memory", "all, T=2: time"]


def test_rounds_are_kept_apart(monkeypatch):
    order = []
    functions = {name: partial(order.append, name) for name in "ab"}
    assert {name: len(s) for name, s in rounds_of(functions, rounds=2, warmup=1).items()} == {"a": 2, "b": 2}
    assert order == ["a", "b"] * 3
    assert quartiles([4.0]) == (4.0, 4.0)
