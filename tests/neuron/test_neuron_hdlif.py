"""HD-LIF: the quantiser, and Theorem 4.2 of its supplement, float64."""

import pytest
import torch

from sj_online.neuron import EMPFNode, HDLIFNode

T = 6
TOL = {"rtol": 0, "atol": 1e-12}


def trained(cls=HDLIFNode, num_steps=T, **kwargs):
    torch.manual_seed(0)
    node = cls(num_steps, **kwargs).double()
    with torch.no_grad():
        for p in node.parameters():
            p.normal_()
    return node


def run(node, x):
    node.reset()
    return node(x) if node.step_mode == "m" else torch.stack([node(x_t) for x_t in x])


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_spikes_are_the_rounded_overshoot_and_the_reset_is_by_the_unrounded_one(bits, step_mode):
    x = torch.randn(T, 500, dtype=torch.float64) * 3
    quantised, plain = (trained(spike_bits=b, step_mode=step_mode, store_v_seq=True) for b in (bits, None))
    s, overshoot = run(quantised, x), run(plain, x)
    assert torch.equal(s, ((4 * overshoot).round() / 4).clamp(max=(2**bits - 1) / 4))
    assert s.unique().numel() == 2**bits
    assert torch.equal(quantised.v_seq, plain.v_seq)
    fired = overshoot > 0
    assert torch.equal(quantised.v_seq[fired], quantised.threshold[:, None].expand(T, 500)[fired])


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_the_gradient_passes_straight_through_above_the_last_level_too(step_mode):
    x = (torch.randn(T, 200, dtype=torch.float64) * 20).requires_grad_()
    grads = []
    for bits in (1, None):
        node = trained(spike_bits=bits, step_mode=step_mode)
        s = run(node, x)
        grads.append(torch.autograd.grad(s, [x, *node.parameters()], torch.linspace(-1, 1, T * 200).view(T, 200)))
    assert ((s > 0.25).sum() > 100) and all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_without_bits_it_is_empf():
    x = torch.randn(T, 50, dtype=torch.float64)
    assert torch.equal(run(trained(spike_bits=None), x), run(trained(EMPFNode), x))


def test_theorem_4_2_the_ratio_of_online_to_stbp_for_any_pattern():
    """(i) for equal gradients and a firing step k >= t; (ii) the STBP gradient is 1 or the product of the leaks."""
    x = torch.randn(T, 300, dtype=torch.float64, requires_grad=True)
    node = trained(step_mode="m", spike_bits=None)
    grads = {}
    for node.temporal_grad in (True, False):
        s = run(node, x)
        grads[node.temporal_grad] = torch.autograd.grad(s.sum(), x)[0]
    chi, decay = (s > 0).double(), node.decay.detach()
    later = torch.zeros_like(chi)  # sum over i > t of chi[i, i] prod over j = t+1..i of chi[j, j-1]
    for t in reversed(range(T - 1)):
        later[t] = decay[t + 1] * (1 - chi[t]) * (chi[t + 1] + later[t + 1])
    fires_again = chi + later > 0
    ratio = chi / (chi + later)
    torch.testing.assert_close(grads[False][fires_again], (ratio * grads[True])[fires_again], **TOL)
    torch.testing.assert_close(grads[True], chi + later, **TOL)
    assert fires_again.any() and not fires_again.all()
    assert ((ratio == 0) & fires_again).any(), "online misses what silent neurons pass on: the ratio is not always 1"


@pytest.mark.parametrize("bits", [0, 17, 2.0])
def test_spike_bits_out_of_range(bits):
    with pytest.raises(ValueError, match=f"spike_bits={bits} is not None or an integer from 1 to 16"):
        HDLIFNode(spike_bits=bits)


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_without_gradients_it_computes_the_same(step_mode, parallel, bits):
    node = trained(spike_bits=bits, step_mode=step_mode, parallel=parallel)
    x = torch.randn(T, 500, dtype=torch.float64) * 3
    x[:, 0] = node.threshold.detach()  # where minimum and the choice could differ
    expected = run(node, x)
    state = node.v
    with torch.no_grad():
        assert torch.equal(run(node, x), expected) and torch.equal(node.v, state)
