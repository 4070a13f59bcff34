"""OTTT under torch.compile and under AMP: the trace is there, and the gradients are those of eager float64."""

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn

from sj_online.analysis.memory import SavedBytes
from sj_online.layer import BinaryLinear
from sj_online.testing import assert_differ, rule_gradient
from sj_online.trainer import OTTT, SLTT
from sj_online.trainer.synapse import Trace

T, N = 4, 2


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(layer.Conv2d(1, 2, 3), neuron.LIFNode(), layer.Flatten(), BinaryLinear(8, 3, bias=True))
    nn.init.normal_(net[0].weight, 0.3)
    return net


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return 2 * torch.rand(T, N, 1, 4, 4), torch.tensor([0, 2])


def gradients(rule, *xy: Tensor) -> list[Tensor]:
    return list(rule_gradient(rule, *xy).values())


def make(rule: type, net: nn.Module, **kwargs):
    return rule(net, torch.optim.SGD(net.parameters(), lr=0.1), **kwargs)


def test_a_compiled_network_is_traced():
    torch.compiler.reset()
    net, (x, y) = network().double(), batch()
    x = x.double()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    sltt, ottt = make(SLTT, compiled), make(OTTT, compiled, trace_bias=True)
    without = gradients(sltt, x, y)  # hooks that are added from here on are ignored
    expected = gradients(make(OTTT, network().double(), trace_bias=True), x, y)
    for _ in range(2):
        torch.testing.assert_close(gradients(ottt, x, y), expected, rtol=0, atol=1e-12)
    assert_differ(without[-2:], expected[-2:])
    torch.testing.assert_close(gradients(sltt, x, y), without, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_only_the_trace_differs_from_sltt(dtype):
    net, (x, y) = network(), batch()
    full = gradients(make(OTTT, net), x, y)
    with torch.autocast("cpu", dtype):
        expected = gradients(make(SLTT, net), x, y)
        untraced = gradients(make(OTTT, net, trace_decay={"3": 0.0}), x, y)
        traced = gradients(make(OTTT, net), x, y)
    assert all(torch.equal(g, e) for g, e in zip(untraced, expected, strict=True))
    assert all(g.dtype == torch.float32 for g in traced)
    of_half, of_sltt = ((g[2] - full[2]).norm() / full[2].norm() for g in (traced, expected))
    assert of_half < 0.02 < of_sltt


def test_the_trace_is_kept_in_full_precision_and_saved_in_half():
    trace, fc = Trace(), nn.Linear(4, 2)
    s = torch.rand(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            trace.begin(0.9)
            with trace, SavedBytes(exclude=fc.parameters()) as saved:
                y = fc(s)
    assert saved.peak == 2 * (s.numel() + fc.weight.numel())
    assert y.dtype == torch.bfloat16
    assert torch.equal(trace.uses[0][0], s * 0.9 + s)
