"""The trace inside a synapse, against plain autograd on the trace itself."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer
from torch import Tensor, nn

from sj_online import layer as ours
from sj_online.analysis.memory import SavedBytes
from sj_online.install import replaced_forwards
from sj_online.testing import assert_differ
from sj_online.trainer.synapse import Trace

LEAK = 0.75

SYNAPSES = {
    "torch linear": (nn.Linear(6, 4), (5, 6)),
    "torch linear on sequences": (nn.Linear(6, 4), (5, 2, 6)),
    "torch linear without bias": (nn.Linear(6, 4, bias=False), (5, 6)),
    "torch conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (5, 4, 7)),
    "torch conv2d": (nn.Conv2d(4, 6, (3, 1), dilation=(2, 1), bias=False), (5, 4, 7, 5)),
    "torch conv2d, same": (nn.Conv2d(4, 6, (3, 4), padding="same", dilation=(2, 1)), (5, 4, 7, 5)),
    "torch conv2d, valid": (nn.Conv2d(4, 6, 3, padding="valid"), (5, 4, 7, 5)),
    "torch conv2d, circular": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (5, 4, 7, 5)),
    "torch conv3d": (nn.Conv3d(2, 3, (1, 3, 2), stride=(1, 2, 1)), (5, 2, 3, 7, 5)),
    "host linear": (layer.Linear(6, 4, step_mode="m"), (1, 5, 6)),
    "host conv1d": (layer.Conv1d(4, 6, 3), (5, 4, 7)),
    "host conv2d": (layer.Conv2d(4, 6, 3, step_mode="m"), (1, 5, 4, 7, 5)),
    "host conv3d": (layer.Conv3d(2, 3, 2), (5, 2, 3, 7, 5)),
    "host ws conv": (layer.WSConv2d(4, 6, 3, padding=1), (5, 4, 7, 5)),
    "host ws linear": (layer.WSLinear(6, 4), (5, 6)),
    "binary conv": (ours.BinaryConv2d(4, 6, 3, bias=True), (5, 4, 7, 5)),
    "binary linear": (ours.BinaryLinear(6, 4), (5, 6)),
    "ternary conv": (ours.TernaryConv2d(4, 6, 3), (5, 4, 7, 5)),
    "ternary linear": (ours.TernaryLinear(6, 4), (5, 6)),
    "scaled ws conv": (ours.ScaledWSConv2d(4, 6, 3, padding=1), (5, 4, 7, 5)),
    "scaled ws linear": (ours.ScaledWSLinear(6, 4), (5, 6)),
}


def grads(synapse: nn.Module, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Output, gradient of the input and gradients of the parameters."""
    synapse.zero_grad()
    x = x.clone().requires_grad_()
    y = synapse(x)
    y.backward(g)
    return y.detach(), x.grad, {name: p.grad for name, p in synapse.named_parameters()}


@pytest.mark.filterwarnings("ignore:Using padding=.same.")
@pytest.mark.parametrize("name", SYNAPSES)
@pytest.mark.parametrize("bias", [False, True])
def test_the_weight_sees_the_trace_and_all_else_the_spike(name, bias):
    torch.manual_seed(0)
    synapse, shape = copy.deepcopy(SYNAPSES[name])
    synapse = synapse.double()
    plain, trace = copy.deepcopy(synapse), Trace(bias=bias)
    a = 0.0
    with replaced_forwards({synapse: trace.around(synapse)}):
        for t in range(3):
            trace.begin(LEAK)
            s = torch.rand(shape, dtype=torch.float64).round()
            a = LEAK * a + s
            g = torch.randn_like(plain(s))
            y, ds, params = grads(synapse, s, g)
            expected_y, expected_ds, of_spike = grads(plain, s, g)
            _, _, of_trace = grads(plain, a, g)
            assert torch.equal(y, expected_y)
            torch.testing.assert_close(ds, expected_ds, rtol=0, atol=1e-12)
            for p in params:
                factor = sum(LEAK**k for k in range(t + 1)) if bias and p == "bias" else 1.0
                torch.testing.assert_close(params[p], of_trace[p] * factor, rtol=0, atol=1e-12)
    assert_differ(of_trace["weight"], of_spike["weight"], by=1e-3)


def test_only_the_trace_is_saved():
    conv, trace = nn.Conv2d(4, 6, 3), Trace()
    with replaced_forwards({conv: trace.around(conv)}):
        for _ in range(2):
            trace.begin(0.5)
            with SavedBytes(exclude=conv.parameters()) as saved:
                conv(torch.rand(5, 4, 7, 7))
    assert saved.peak == 5 * 4 * 7 * 7 * 4


def test_each_use_in_a_step_has_its_own_trace():
    fc, trace = nn.Linear(1, 1, bias=False), Trace()
    with replaced_forwards({fc: trace.around(fc)}):
        for _ in range(2):
            trace.begin(0.5)
            (fc(torch.tensor([[1.0]])) + 10 * fc(torch.tensor([[4.0]]))).backward()
    assert fc.weight.grad.item() == (1 + 1.5) + 10 * (4 + 6)


def test_a_use_that_is_left_out_lets_the_trace_leak():
    fc, trace = nn.Linear(1, 1, bias=False), Trace()
    with replaced_forwards({fc: trace.around(fc)}):
        for used in (True, False, True):
            trace.begin(0.5)
            if used:
                fc(torch.tensor([[4.0]])).backward()
    assert fc.weight.grad.item() == 4 + 5


def test_what_is_left_of_a_call_joins_the_last_one_bias_and_all():
    fc, trace = nn.Linear(1, 1), Trace(bias=True)
    with replaced_forwards({fc: trace.around(fc)}):
        for calls in (2, 1):
            fc.zero_grad()
            trace.begin(0.5)
            output = sum(fc(torch.tensor([[4.0]])) for _ in range(calls))
            trace.end()
            output.backward()
    assert (fc.weight.grad.item(), fc.bias.grad.item()) == (4 + 2 * 2, 1 + 2 * 0.5)


@pytest.mark.parametrize(("fn", "shape"), [(F.conv1d, (3, 2, 2)), (F.conv_transpose1d, (2, 3, 2))])
def test_what_a_convolution_is_not_given_is_as_in_torch(fn, shape):
    s, W, trace = torch.rand(4, 2, 6), torch.rand(shape), Trace()
    trace.begin(0.5)
    with trace:
        traced = fn(s, W)
    torch.testing.assert_close(traced, fn(s, W))


def test_a_bias_alone_can_be_traced():
    fc, trace = nn.Linear(1, 1), Trace(weight=False, bias=True)
    with replaced_forwards({fc: trace.around(fc)}):
        for _ in range(3):
            trace.begin(0.5)
            fc(torch.tensor([[4.0]])).backward()
    assert (fc.weight.grad.item(), fc.bias.grad.item()) == (12, 1 + 1.5 + 1.75)


def test_nothing_is_left_in_the_synapse():
    fc, trace = nn.Linear(2, 2), Trace()
    before = set(vars(fc))
    with replaced_forwards({fc: trace.around(fc)}):
        assert list(fc.state_dict()) == ["weight", "bias"]
    assert set(vars(fc)) == before
    pickle.dumps(fc)

    fc.forward = inner = fc.forward
    with replaced_forwards({fc: trace.around(fc)}):
        assert fc.forward is not inner
    assert fc.forward is inner
