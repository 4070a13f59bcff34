import pytest
import torch
import torch.nn.functional as F
from package_names import own
from spikingjelly.activation_based import functional, layer
from torch import nn

from sj_online import registry
from sj_online.layer import SECA, Feedback, ScaledWSConv2d, ScaledWSLinear, StepBatchNorm2d


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("synapse", [ScaledWSConv2d(3, 4, 3, bias=False), ScaledWSLinear(11, 4, bias=False)])
def test_sws_has_the_papers_weight_and_gradient_with_the_unbiased_variance(synapse, unbiased):
    synapse = synapse.double()
    nn.init.normal_(synapse.gain)
    conv = synapse.weight.dim() == 4
    x = torch.randn((2, 3, 5, 5) if conv else (2, 11), dtype=torch.float64, requires_grad=True)

    W = synapse.weight.flatten(1)
    N = W.shape[1]
    var = ((W - W.mean(1, keepdim=True)) ** 2).sum(1, keepdim=True) / (N - 1 if unbiased else N)
    W_hat = synapse.gain.flatten(1) * (W - W.mean(1, keepdim=True)) / (var * N + 1e-4).sqrt()
    expected = (F.conv2d if conv else F.linear)(x, W_hat.view_as(synapse.weight))

    grad, inputs = torch.randn_like(expected), (x, synapse.weight, synapse.gain)
    ours, oracle = ((out, *torch.autograd.grad(out, inputs, grad)) for out in (synapse(x), expected))
    for a, b in zip(ours, oracle, strict=True):
        # The biased variance is the negative control.
        assert torch.allclose(a, b, rtol=0, atol=1e-12) == unbiased


def test_sws_heeds_the_padding_mode():
    conv = ScaledWSConv2d(3, 4, 3, padding=1, padding_mode="circular")
    x = torch.randn(2, 3, 6, 6)
    padded = F.pad(x, (1, 1, 1, 1), mode="circular")
    torch.testing.assert_close(conv(x), F.conv2d(padded, conv.get_weight(), conv.bias))


def test_sws_runs_in_both_step_modes():
    conv = ScaledWSConv2d(3, 4, 3)
    x = torch.randn(5, 2, 3, 6, 6)
    steps = torch.stack([conv(x_t) for x_t in x])
    functional.set_step_mode(conv, "m")
    torch.testing.assert_close(conv(x), steps)


@pytest.mark.parametrize("sign", [False, True])
def test_seca_scores_each_channel_by_its_neighbours(sign):
    seca = SECA(5, sign=sign).double()
    I = torch.randn(3, 2, 7, 4, 6, dtype=torch.float64, requires_grad=True)
    padded = F.pad((I.mean((-1, -2)).sign() if sign else I.mean((-1, -2))), (2, 2))
    scores = torch.stack([padded[..., c : c + 5] @ seca.weight[0, 0] + seca.bias for c in range(7)], -1)
    expected = I * torch.sigmoid(scores).view(3, 2, 7, 1, 1)
    torch.testing.assert_close(seca(I), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(seca(I[1]), seca(I)[1], rtol=0, atol=1e-15)
    grad = torch.randn_like(I)
    ours, oracle = (torch.autograd.grad(out, (I, *seca.parameters()), grad) for out in (seca(I), expected))
    for a, b in zip(ours, oracle, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_seca_refuses_an_even_kernel():
    with pytest.raises(ValueError, match="kernel_size=4"):
        SECA(4)


def test_step_norm_trains_in_m_as_in_s_and_the_hosts_does_not():
    x = torch.randn(4, 3, 2, 5, 5, dtype=torch.float64) * torch.arange(1.0, 5.0).view(4, 1, 1, 1, 1)
    for norm, same in ((StepBatchNorm2d, True), (layer.BatchNorm2d, False)):
        single, multi = norm(2).double(), norm(2, step_mode="m").double()
        steps, sequence = torch.stack([single(x_t) for x_t in x]), multi(x)
        assert torch.allclose(steps, sequence, rtol=0, atol=1e-12) == same
        assert torch.allclose(single.running_var, multi.running_var, rtol=0, atol=1e-12) == same
    multi.eval()
    torch.testing.assert_close(multi(x)[1], multi(x[1:2])[0])


def feedback_net():
    return Feedback(layer.Linear(3, 4), nn.Sequential(layer.Linear(4, 4), nn.Tanh()), layer.Linear(4, 4)).double()


def test_feedback_adds_the_last_steps_features_from_the_second_step_on():
    net = feedback_net()
    x = torch.randn(3, 2, 3, dtype=torch.float64)
    y = [net.body(net.entry(x[0]))]
    for x_t in x[1:]:
        y.append(net.body(net.entry(x_t) + net.connection(y[-1])))
    assert torch.equal(torch.stack([net(x_t) for x_t in x]), torch.stack(y))
    functional.reset_net(net)
    functional.set_step_mode(net, "m")
    assert torch.equal(net(x), torch.stack(y))


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_feedback_starts_anew_with_another_batch_size(step_mode):
    net, fresh = feedback_net(), feedback_net()
    fresh.load_state_dict(net.state_dict())
    for each in (net, fresh):
        functional.set_step_mode(each, step_mode)
    for n in (1, 4, 3):
        x = torch.randn(*((n, 3) if step_mode == "s" else (2, n, 3)), dtype=torch.float64)
        functional.reset_net(fresh)
        assert torch.equal(net(x), fresh(x))


def test_feedback_carries_the_gradient_until_it_is_detached():
    for cut in (False, True):
        net = feedback_net()
        x = torch.randn(2, 1, 3, dtype=torch.float64, requires_grad=True)
        net(x[0])
        if cut:
            functional.detach_net(net)
        (grad,) = torch.autograd.grad(net(x[1]).sum(), x)
        assert bool(grad[0].any()) is not cut


LAYERS = {
    "binary_conv1d": lambda layer: nn.Sequential(nn.Flatten(-2), layer(3, 4, 3)),
    "binary_conv2d": lambda layer: layer(3, 4, 3),
    "binary_linear": lambda layer: layer(6, 4),
    "feedback": lambda layer: layer(nn.Identity(), nn.Tanh(), nn.Identity()),
    "scaled_ws_conv2d": lambda layer: layer(3, 4, 3),
    "scaled_ws_linear": lambda layer: layer(6, 4),
    "seca": lambda layer: layer(),
    "step_batch_norm2d": lambda layer: layer(3),
    "ternary_conv1d": lambda layer: nn.Sequential(nn.Flatten(-2), layer(3, 4, 3)),
    "ternary_conv2d": lambda layer: layer(3, 4, 3),
    "ternary_linear": lambda layer: layer(6, 4),
}


@pytest.mark.parametrize("name", own("layers"))
def test_every_registered_layer_names_its_paper_and_runs_in_both_step_modes(name):
    cls = registry.get("layers", name)
    module, x = LAYERS[name](cls), torch.randn(4, 2, 3, 6, 6)
    assert cls.paper
    steps = torch.stack([module(x_t) for x_t in x])
    functional.reset_net(module)
    functional.set_step_mode(module, "m")
    torch.testing.assert_close(module(x), steps)
