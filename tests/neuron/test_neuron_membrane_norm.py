"""Membrane batch normalisation and its fold, the parallel neuron, float64."""

import pytest
import torch

from sj_online.neuron import EMPFNode, HDLIFNode, fold_membrane_norm

T, N, C = 4, 3, 5
TOL = {"rtol": 0, "atol": 1e-12}


def trained(cls=EMPFNode, num_steps=T, **kwargs):
    torch.manual_seed(0)
    node = cls(num_steps, **kwargs).double()
    with torch.no_grad():
        for p in node.parameters():
            p.normal_()
        for norm in node.membrane_norm or ():
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return node


def current():
    torch.manual_seed(1)
    return torch.randn(T, N, C, 6, 6, dtype=torch.float64)


def run(node, x):
    node.reset()
    return node(x) if node.step_mode == "m" else torch.stack([node(x_t) for x_t in x])


def statistics(node):
    """Per step and channel, broadcast to [T, N, C, H, W]: alpha, beta, gamma, b, mu, sigma."""
    norms = node.membrane_norm
    alpha, beta = (raw.detach().sigmoid().view(T, 1, 1, 1, 1) for raw in (node.raw_alpha, node.raw_beta))
    gamma, b, mu = (
        torch.stack([getattr(n, name).detach() for n in norms]).view(T, 1, C, 1, 1)
        for name in ("weight", "bias", "running_mean")
    )
    sigma = torch.stack([(n.running_var + n.eps).sqrt() for n in norms]).view(T, 1, C, 1, 1)
    return alpha, beta, gamma, b, mu, sigma


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("training", [True, False])
def test_forward_and_gradients_equal_the_equation(training, step_mode):
    node, x = trained(membrane_norm=C, step_mode=step_mode).train(training), current().requires_grad_()
    alpha, beta, gamma, b, mu, sigma = statistics(node)
    alpha, beta = node.raw_alpha.sigmoid(), node.raw_beta.sigmoid()
    v, s_seq = 0.0, []
    for t in range(T):
        m = node.decay[t] * v + x[t]
        norm = node.membrane_norm[t]
        if training:
            var, mean = torch.var_mean(m, (0, 2, 3), correction=0, keepdim=True)
        else:
            var, mean = norm.running_var.view(-1, 1, 1), norm.running_mean.view(-1, 1, 1)
        bn = norm.weight.view(-1, 1, 1) * (m - mean) / (var + norm.eps).sqrt() + norm.bias.view(-1, 1, 1)
        hat = alpha[t] * m + beta[t] * bn
        s_seq.append(torch.relu(hat - node.threshold[t]))
        v = hat - s_seq[-1]
    s, parameters = torch.stack(s_seq), list(node.parameters())
    expected = torch.autograd.grad(s.square().sum(), [x, *parameters])
    out = run(node, x)
    torch.testing.assert_close(out, s, **TOL)
    for got, want in zip(torch.autograd.grad(out.square().sum(), [x, *parameters]), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize(("cls", "num_steps"), [(EMPFNode, T), (HDLIFNode, T), (EMPFNode, None)])
def test_fold_in_form_2_is_the_neuron_in_eval_mode(cls, num_steps, step_mode):
    node, x = trained(cls, num_steps, membrane_norm=C, step_mode=step_mode).eval(), current()
    folded = fold_membrane_norm(node)
    torch.testing.assert_close(run(folded, x), run(node, x), **TOL)
    torch.testing.assert_close(folded.v, node.v, **TOL)
    assert run(node, x).any() and not list(folded.parameters())


@pytest.mark.parametrize(("sign", "holds"), [(-1, True), (+1, False)])
def test_form_1_holds_with_the_corrected_sign_and_fails_with_the_printed_one(sign, holds):
    """EM-PF, Eq. 7-8: leak A decay, threshold + B, current A I, and v = m - s - B at every step."""
    node, x = trained(membrane_norm=C).eval(), current()
    alpha, beta, gamma, b, mu, sigma = statistics(node)
    A, B = alpha + beta * gamma / sigma, beta * (gamma * mu / sigma + sign * b)
    decay, threshold = node.decay.detach(), node.threshold.detach()
    v, s_seq = 0.0, []
    for t in range(T):
        m = A[t] * decay[t] * v + A[t] * x[t]
        s_seq.append(torch.relu(m - (threshold[t] + B[t])))
        v = m - s_seq[-1] - B[t]
    error = (torch.stack(s_seq) - run(node, x)).abs().max()
    assert error < 1e-12 if holds else error > 0.1


def test_the_corrected_corollary_says_when_a_neuron_fires():
    """EM-PF, Corollary 4.3 with its sign and its leak term corrected, where A > 0; as printed it is wrong."""
    node, x = trained(membrane_norm=C, store_v_seq=True).eval(), current()
    with torch.no_grad():
        for norm in node.membrane_norm:
            norm.weight.abs_()
    alpha, beta, gamma, b, mu, sigma = statistics(node)
    threshold, decay = (p.detach().view(T, 1, 1, 1, 1) for p in (node.threshold, node.decay))
    fired = run(node, x) > 0
    v = torch.cat([torch.zeros_like(x[:1]), node.v_seq[:-1]])
    scale = alpha * sigma + beta * gamma
    bound = (sigma * (threshold - beta * b) + beta * gamma * mu) / scale - decay * v
    assert torch.equal(x >= bound, fired)
    printed = (sigma * (threshold + beta * b) + beta * gamma * mu - decay * v) / scale
    assert not torch.equal(x >= printed, fired)


@pytest.mark.parametrize("shape", [(N, C), (N, C, 7)])
def test_membrane_norm_takes_any_shape_with_channels(shape):
    node = EMPFNode(membrane_norm=C)
    assert node(torch.randn(shape)).shape == shape


@pytest.mark.parametrize(
    "kwargs", [{"membrane_norm": 0}, {"membrane_norm": True}, {"membrane_norm": 4, "parallel": True}]
)
def test_bad_membrane_norm_is_named(kwargs):
    with pytest.raises(ValueError, match=f"membrane_norm={kwargs['membrane_norm']}, parallel="):
        EMPFNode(**kwargs)


@pytest.mark.parametrize("num_steps", [T, None])
def test_parallel_all_steps_at_once_equal_the_loop_and_there_is_no_membrane(num_steps):
    x = current().requires_grad_()
    loop, merged = (trained(num_steps=num_steps, parallel=True, step_mode=m) for m in "sm")
    s, s_m = run(loop, x), run(merged, x)
    threshold = loop.threshold.expand(T)
    torch.testing.assert_close(s_m, torch.relu(x - threshold.view(T, 1, 1, 1, 1)), **TOL)
    assert torch.equal(s, s_m)
    grads = [torch.autograd.grad(out.square().sum(), [x, n.raw_threshold]) for out, n in ((s, loop), (s_m, merged))]
    torch.testing.assert_close(grads[0], grads[1], **TOL)
    assert not loop.v.any() and [n for n, _ in loop.named_parameters()] == ["raw_threshold"]
    assert loop.leak(0) == 0


def test_a_sequential_neuron_is_not_a_parallel_one():
    x = current()
    assert not torch.equal(run(trained(), x), run(trained(parallel=True), x))
