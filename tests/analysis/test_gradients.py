"""Similarity against the oracle of the tests, with rules that are exact, that are not, and a random direction."""

import math
from functools import partial

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn

from sj_online.analysis.gradients import RANDOM, TOTAL, frozen_gradient, similarity
from sj_online.testing import assert_live, bptt_gradient
from sj_online.trainer import BPTT, FPTT, OTTT, SLTT, STOL, RandomBP, TimeSlicing

T, N = 6, 4
LIF = {"tau": 2.0, "decay_input": False, "v_reset": None, "detach_reset": True}


def network():
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Linear(8, 16), neuron.LIFNode(**LIF), layer.Linear(16, 16), neuron.LIFNode(**LIF), layer.Linear(16, 3)
    )
    for module in net:
        if isinstance(module, layer.Linear):
            nn.init.normal_(module.weight, 0.3, 0.5)
    return net.double()


def batches(count=1, steps=T):
    torch.manual_seed(1)
    return [(torch.rand(steps, N, 8).double(), torch.randint(3, (N,))) for _ in range(count)]


def rows(rules, net=None, **kwargs):
    data = kwargs.pop("data", None) or batches()
    found = similarity(net or network(), data, rules, **kwargs)
    return {(row.rule, row.layer): row for row in found}


def sgd(net):
    return torch.optim.SGD(net.parameters(), lr=0.1)


@pytest.mark.parametrize(
    "rule",
    [
        partial(BPTT, step_scale="mean"),
        partial(BPTT, step_scale="sum"),
        partial(STOL, horizon=T, update="sequence"),
        partial(TimeSlicing, k=T),
    ],
)
def test_an_exact_rule_has_the_gradient_of_the_summed_loss(rule):
    net, ((x, y),) = network(), batches()
    expected = bptt_gradient(net, x, y, step_scale="sum")
    assert_live(expected)
    torch.testing.assert_close(frozen_gradient(rule(net, sgd(net)), x, y), expected, rtol=0, atol=1e-12)
    for row in rows({"exact": rule}).values():
        if row.rule == "exact":
            assert (row.cosine, row.distance, row.norm) == pytest.approx((1, 0, 1), abs=1e-12)


def test_slices_are_brought_to_the_sum_of_the_losses_too():
    net, ((x, y),) = network(), batches(steps=5)
    found = frozen_gradient(TimeSlicing(net, sgd(net), k=1), x, y)  # means of slices of one step, and SLTT's sum
    summed = frozen_gradient(SLTT(net, sgd(net), step_scale="sum"), x, y)
    torch.testing.assert_close(found, summed, rtol=0, atol=1e-12)
    uneven = frozen_gradient(TimeSlicing(net, sgd(net), k=2), x, y)["4.bias"]
    torch.testing.assert_close(uneven, summed["4.bias"], rtol=0, atol=1e-12)  # the readout's needs no past


def test_a_shorter_horizon_is_further_away_and_a_random_direction_is_nowhere_near():
    found = rows({"SLTT": SLTT, "STOL": STOL, "STOL 4": partial(STOL, horizon=4)}, data=batches(5))
    for name in ("0", "2", TOTAL):
        cosines = [found[rule, name].cosine for rule in (RANDOM, "SLTT", "STOL", "STOL 4")]
        assert cosines == sorted(cosines) and cosines[3] < 1 - 1e-6
        distances = [found[rule, name].distance for rule in ("SLTT", "STOL", "STOL 4")]
        assert distances == sorted(distances, reverse=True)
    assert abs(found[RANDOM, "2"].cosine) < 0.2
    assert found[RANDOM, "2"].norm == pytest.approx(1, abs=0.1)
    assert found[RANDOM, "2"].distance == pytest.approx(math.sqrt(2), abs=0.3)
    assert found["SLTT", "4"].cosine == pytest.approx(1)  # nothing behind the readout keeps a past


def test_numbers_are_those_of_the_definition():
    net, data = network(), batches(3)
    cosines, distances, norms = [], [], []
    for x, y in data:
        exact = bptt_gradient(net, x, y, step_scale="sum")["2.weight"].flatten()
        bias = bptt_gradient(net, x, y, step_scale="sum")["2.bias"]
        exact = torch.cat([exact, bias])
        ours = frozen_gradient(OTTT(net, sgd(net)), x, y)
        ours = torch.cat([ours["2.weight"].flatten(), ours["2.bias"]])
        cosines.append(torch.cosine_similarity(ours, exact, dim=0))
        distances.append((ours - exact).norm() / exact.norm())
        norms.append(ours.norm() / exact.norm())
    row = rows({"OTTT": OTTT}, net, data=data)["OTTT", "2"]
    for value, per_batch in ((row.cosine, cosines), (row.distance, distances), (row.norm, norms)):
        assert value == pytest.approx(torch.stack(per_batch).mean().item())
    assert row.cosine_spread == pytest.approx(torch.stack(cosines).std().item())
    assert row.distance_spread == pytest.approx(torch.stack(distances).std().item())
    assert row.cosine_spread != row.distance_spread > 0
    assert rows({"OTTT": OTTT}, net)["OTTT", "2"].cosine_spread == 0


def test_weights_statistics_and_random_numbers_stay():
    net = nn.Sequential(layer.Linear(8, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), neuron.LIFNode(), layer.Linear(6, 3))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x, y = torch.rand(N, 8), torch.randint(3, (N,))
    state = torch.get_rng_state()
    first = rows({"SLTT": SLTT, "FPTT": FPTT}, net, data=[(x, y)], num_steps=3)
    assert torch.get_rng_state().equal(state)
    assert first == rows({"SLTT": SLTT, "FPTT": FPTT}, net, data=[(x, y)], num_steps=3)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert all(p.grad is None for p in net.parameters())
    other = rows({"SLTT": SLTT}, net, data=[(x, y)], num_steps=3, seed=5)
    assert other["SLTT", TOTAL] != first["SLTT", TOTAL]


def test_every_rule_sees_the_same_dropout():
    net = nn.Sequential(nn.Dropout(0.5), layer.Linear(8, 3)).double()
    row = rows({"SLTT": SLTT}, net, data=batches(2))["SLTT", TOTAL]
    assert row.cosine == pytest.approx(1) and row.distance == pytest.approx(0, abs=1e-12)


def test_masks_are_passed_on_and_frozen_layers_left_out():
    net, ((x, y),) = network(), batches()
    net[0].requires_grad_(False)
    mask = torch.zeros(T, N)
    mask[-1] = 1
    found = rows({"BPTT": BPTT, "one step": partial(RandomBP, k=1)}, net, data=[(x, y, mask)])
    assert {name for _, name in found} == {"2", "4", TOTAL}
    assert found["BPTT", TOTAL].cosine == pytest.approx(1)
    nothing = (x, y, torch.zeros(T, N))
    silent = rows({"SLTT": SLTT}, net, data=[nothing, nothing])["SLTT", TOTAL]
    assert all(map(math.isnan, (silent.cosine, silent.cosine_spread, silent.distance, silent.norm)))
    some = rows({"SLTT": SLTT}, net, data=[(x, y), nothing])["SLTT", TOTAL]
    assert some == rows({"SLTT": SLTT}, net, data=[(x, y)])["SLTT", TOTAL]


def test_the_reference_may_be_another_rule():
    found = rows({"SLTT": SLTT}, reference=SLTT)
    assert found["SLTT", TOTAL].cosine == pytest.approx(1)
    assert rows({"SLTT": SLTT})["SLTT", TOTAL].cosine < 1 - 1e-6
