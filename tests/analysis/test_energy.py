import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from sj_online.analysis import energy, neuron_operations, operations
from sj_online.layer import TernaryConv2d
from sj_online.model import hdlif_resnet18

# HD-LIF, Tab. 2: SOPs, bits of a spike, the energy that is printed, in mJ.
ROWS = {
    "LIF": (273.02e6, 1, ".25"),
    "HD-LIF": (284.49e6, None, ".26"),
    "4 bits": (233.84e6, 4, ".03"),
    "half parallel": (254.08e6, None, ".23"),
    "both": (190.13e6, 4, ".02"),
}


@pytest.mark.parametrize("row", ROWS)
def test_the_rows_of_the_paper(row):
    sops, bits, printed = ROWS[row]
    assert f"{energy(sops, 1.769e6, model='hdlif', spike_bits=bits).millijoules:.2f}".lstrip("0") == printed


def test_eleven_times_is_a_row_divided_by_eight_against_one_that_is_not_and_turns_round():
    lif, both = (ROWS[name][:2] for name in ("LIF", "both"))
    ratio = {
        m: energy(lif[0], model=m, spike_bits=lif[1]).millijoules / energy(both[0], model=m, spike_bits=4).millijoules
        for m in ("hdlif", "spikformer", "bits")
    }
    assert ratio["hdlif"] == pytest.approx(11.49, abs=0.005)
    assert ratio["spikformer"] == pytest.approx(273.02 / 190.13)
    assert ratio["bits"] < 1
    assert energy(lif[0], model="bits", spike_bits=1).millijoules == pytest.approx(0.0077, abs=5e-5)


def test_the_first_synapse_is_counted_once_or_at_every_step():
    once, each = (energy(0, 1.769e6, first_steps=n).millijoules for n in (1, 4))
    assert (once, each) == (pytest.approx(0.0081, abs=5e-5), pytest.approx(0.0326, abs=6e-5))
    assert energy(0, 1.769e6, model="bits", spike_bits=4).millijoules == once


def test_it_says_what_it_assumes():
    assert str(energy(1e9, 1e6, first_steps=4)) == ("0.9184 mJ (spikformer: 0.9 pJ/SOP, first synapse 4.6 pJ/MAC x 4)")
    assert "0.9 pJ/SOP x 32/32" in str(energy(1e9, model="bits", spike_bits=None))


@pytest.mark.parametrize("options", [{"model": "spikeformer"}, {"spike_bits": 0}, {"first_steps": 0}])
def test_what_is_out_of_range_is_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        energy(1.0, **options)


@pytest.mark.parametrize(("parallel", "nops"), [("none", 6_586_368), ("half", 4_620_288), ("all", 2_195_456)])
def test_the_neuron_operations_of_the_papers_network(parallel, nops):
    with torch.device("meta"):
        net = hdlif_resnet18(100, parallel=parallel, synapse="ternary")
    assert 4 * neuron_operations(net, torch.rand(1, 3, 32, 32)) == nops


def by_hand(x, w, **how):
    """Pairs that are not zero, one by one."""
    return nn.functional.conv2d((x != 0).double(), (w != 0).double(), **how).sum().item()


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_operations_are_those_counted_one_by_one(step_mode):
    torch.manual_seed(0)
    T, N = 3, 2
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3),
        neuron.IFNode(v_threshold=0.3),
        TernaryConv2d(4, 6, 3, stride=2, padding=1, groups=2),
        layer.Flatten(),
        layer.Linear(54, 5),
    ).eval()
    functional.set_step_mode(net, step_mode)
    net[4].weight.data[:, ::3] = 0
    x, seen = torch.rand(T, N, 2, 7, 7), {}
    for index in (2, 4):
        net[index].register_forward_pre_hook(lambda m, args: seen.setdefault(m, []).append(args[0].clone()))
    found = operations(net, x)
    spikes = torch.cat([s.reshape(-1, 4, 5, 5) for s in seen[net[2]]])
    assert 0 < spikes.mean() < 1
    weight = net[2].quantize(net[2].weight)
    sops = by_hand(spikes, weight, stride=2, padding=1, groups=2)
    currents = torch.cat([c.reshape(-1, 54) for c in seen[net[4]]])
    sops += ((currents != 0).double() @ (net[4].weight.T != 0).double()).sum().item()
    assert found.sops == sops / N
    assert found.first_macs == 4 * 5 * 5 * 2 * 9
    assert found.nops == T * 3 * 4 * 5 * 5 and found.steps == T


def test_padding_counts_nothing():
    net = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), neuron.IFNode())
    assert operations(net, torch.rand(1, 1, 2, 2), num_steps=2).first_macs == 16
