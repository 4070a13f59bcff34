"""LM-H: the equations, the exact adjoint against the printed one, degenerate cases, the rate identity; float64."""

import pytest
import torch
from spikingjelly.activation_based import neuron, surrogate

from sj_online.neuron import LMHNode

T, N = 6, 40
TOL = {"rtol": 0, "atol": 1e-12}


def trained(num_steps=T, scale=1.0, **kwargs):
    torch.manual_seed(0)
    node = LMHNode(num_steps, **kwargs).double()
    with torch.no_grad():
        for p in node.parameters():
            p.normal_(0, scale)
    return node


def current(n=N):
    torch.manual_seed(1)
    return torch.randn(T, n, dtype=torch.float64).requires_grad_()


def run(node, x):
    node.reset()
    return node(x) if node.step_mode == "m" else torch.stack([node(x_t) for x_t in x])


def factors(node):
    return [p.expand(T) for p in (node.mu_d, node.mu_s, node.lambda_s, node.lambda_d)]


def paper(node, x):
    """LM-H, Eq. 4, by autograd; every intermediate value keeps its gradient."""
    mu_d, mu_s, lambda_s, lambda_d = factors(node)
    th, H = node.v_threshold, surrogate.PiecewiseQuadratic(alpha=1.0)
    v_d, v_s = [torch.zeros_like(x[0])], [torch.full_like(x[0], th / 2)]
    m, o = [], []
    for t in range(T):
        v_d.append(mu_d[t] * v_d[-1] + mu_s[t] * v_s[-1] + x[t])
        m.append(lambda_s[t] * v_s[-1] + lambda_d[t] * v_d[-1])
        o.append(th * H(m[-1] - th))
        v_s.append(m[-1] - o[-1].detach())
    return torch.stack(o), v_d, v_s, m


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize(("num_steps", "v_threshold"), [(None, 1.0), (T, 1.0), (T, 0.7)])
def test_forward_and_every_gradient_equal_the_paper(num_steps, v_threshold, step_mode):
    node, x = trained(num_steps, v_threshold=v_threshold, step_mode=step_mode), current()
    parameters, weight = list(node.parameters()), torch.randn(T, N, dtype=torch.float64)
    o, v_d, v_s, _ = paper(node, x)
    expected = torch.autograd.grad((o * weight).sum() + (v_s[-1] * v_d[-1]).sum(), [x, *parameters])
    out = run(node, x)
    torch.testing.assert_close(out, o, **TOL)
    torch.testing.assert_close((node.v, node.v_d), (v_s[-1], v_d[-1]), **TOL)
    got = torch.autograd.grad((out * weight).sum() + (node.v * node.v_d).sum(), [x, *parameters])
    for g, want in zip(got, expected, strict=True):
        torch.testing.assert_close(g, want, **TOL)
    assert set(o.detach().unique().tolist()) == {0.0, v_threshold}


@pytest.mark.parametrize("temporal_grad", [True, False])
@pytest.mark.parametrize("name", ["PiecewiseQuadratic", "ATan"])
def test_the_sequence_equals_autograd_of_the_loop_for_any_surrogate(name, temporal_grad):
    x, results = current(), []
    for step_mode in "sm":
        surrogate_function = getattr(surrogate, name)(alpha=1.5)
        node = trained(surrogate_function=surrogate_function, temporal_grad=temporal_grad, step_mode=step_mode)
        o = run(node, x)
        results.append([o, *torch.autograd.grad(o.sin().sum() + node.v.sin().sum(), [x, *node.parameters()])])
    torch.testing.assert_close(results[0], results[1], **TOL)


def adjoint(node, grad_o, m, printed):
    """dL/dx of the vanilla neuron by the exact recursion, or as LM-H, Eq. 8-9 print it."""
    mu_d, mu_s, lambda_s, lambda_d = (f.detach()[0] for f in factors(node))
    G_m, G_d, grads = torch.zeros(N).double(), torch.zeros(N).double(), []
    for t in reversed(range(T)):
        own = grad_o[t] * (1 - (m[t].detach() - 1).abs()).clamp(min=0)
        if printed:
            G_m = own + (lambda_s + lambda_d * mu_s) * G_m
            G_d = lambda_d * G_m + (mu_d + lambda_d * mu_s) * G_d
        else:
            G_m = own + lambda_s * G_m + mu_s * G_d
            G_d = lambda_d * G_m + mu_d * G_d
        grads.insert(0, G_d)
    return torch.stack(grads)


@pytest.mark.parametrize("mu_s_is_zero", [False, True])
def test_the_gradient_is_the_exact_adjoint_and_the_printed_one_only_if_mu_s_is_zero(mu_s_is_zero):
    node, x = trained(None, step_mode="m"), current()
    if mu_s_is_zero:
        node.raw_mu_s.data.zero_()
    grad_o = torch.randn(T, N, dtype=torch.float64)
    grad = torch.autograd.grad(run(node, x), x, grad_o)[0]
    m = paper(node, x)[3]
    torch.testing.assert_close(grad, adjoint(node, grad_o, m, printed=False), **TOL)
    error = (grad - adjoint(node, grad_o, m, printed=True)).abs().max()
    assert error < 1e-12 if mu_s_is_zero else error > 0.01


def test_online_equals_the_exact_gradient_of_the_last_step_only():
    x = current()
    grads = [torch.autograd.grad(run(trained(temporal_grad=g, step_mode="m"), x).sum(), x)[0] for g in (True, False)]
    torch.testing.assert_close(grads[0][-1], grads[1][-1], **TOL)
    assert not torch.allclose(grads[0][:-1], grads[1][:-1])


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("v_threshold", [1.0, 0.7, 2.5])
def test_untrained_it_is_its_threshold_times_an_if_that_starts_at_half_of_it(v_threshold, step_mode):
    x = v_threshold * current().detach()
    host = neuron.IFNode(v_threshold=v_threshold, v_reset=None, step_mode=step_mode)
    host.v = torch.full_like(x[0], v_threshold / 2)
    node = LMHNode(v_threshold=v_threshold, step_mode=step_mode).double()
    expected = v_threshold * (host(x) if step_mode == "m" else torch.stack([host(x_t) for x_t in x]))
    out = run(node, x)
    assert torch.equal(out, expected) and expected.unique().numel() == 2
    assert torch.equal(node.v, host.v)
    for p in node.parameters():
        assert not p.any()
        p.data.fill_(0.5)
        assert not torch.equal(run(node, x), expected)
        p.data.zero_()


@pytest.mark.parametrize("leak", [0.75, 0.9])
def test_with_the_dendrite_silent_it_is_lif_with_decay_lambda_s(leak):
    x = current().detach()
    host = neuron.LIFNode(tau=1 / (1 - leak), decay_input=False, v_reset=None, step_mode="m")
    host.v = torch.full_like(x[0], 0.5)
    node = LMHNode(step_mode="m").double()
    assert node.adopt_leak(leak)
    assert torch.equal(run(node, x), host(x))
    torch.testing.assert_close(node.v, host.v, **TOL)
    assert not torch.equal(run(LMHNode(step_mode="m").double(), x), run(node, x))


@pytest.mark.parametrize(("printed", "holds"), [(False, True), (True, False)])
def test_the_closed_form_of_the_radical_neuron_with_the_corrected_index(printed, holds):
    """LM-H, Eq. 7, where the coefficient of the history is lambda_d of step t; the paper prints that of step k."""
    node, x = trained(), current().detach()
    mu_d, mu_s, lambda_s, lambda_d = (f.detach() for f in factors(node))
    _, _, v_s, m = paper(node, x)
    v_s = [v.detach() for v in v_s]
    for t in range(T):
        total = (lambda_s[t] + lambda_d[t] * mu_s[t]) * v_s[t] + lambda_d[t] * x[t]
        for k in range(t):
            coefficient = lambda_d[k] if printed else lambda_d[t]
            total = total + coefficient * mu_d[k + 1 : t + 1].prod() * (mu_s[k] * v_s[k] + x[k])
        error = (total - m[t].detach()).abs().max()
        assert error < 1e-12 or (t and not holds)
    assert holds or error > 0.01


def test_the_rate_identity():
    """LM-H, Eq. 10: mean output = mean current - mean conversion errors of dendrite and soma; Eq. 11 in the limit."""
    node, x = trained(None, step_mode="m", store_v_seq=True), current().detach()
    o, v_d, v_s, _ = (list(v) for v in paper(node, x))
    mu_d, mu_s, lambda_s, lambda_d = (f.detach()[0] for f in factors(node))
    delta_d = [(1 - lambda_d) * v_d[t + 1] - mu_d * v_d[t] for t in range(T)]
    delta_s = [v_s[t + 1] - (lambda_s + mu_s) * v_s[t] for t in range(T)]
    mean = x.mean(0) - (sum(delta_d) + sum(delta_s)) / T
    torch.testing.assert_close(run(node, x).mean(0), mean, **TOL)
    assert not torch.allclose(run(node, x).mean(0), x.mean(0) - sum(delta_d) / T)


def test_factors_stay_in_their_ranges_and_start_at_the_if_point():
    node = LMHNode(3)
    assert [f.tolist() for f in (node.mu_d, node.mu_s, node.lambda_s, node.lambda_d)] == [[0.0] * 3] * 2 + [
        [1.0] * 3
    ] * 2
    node = trained(scale=30.0)
    assert (node.mu_d.abs() <= 0.5).all() and ((node.lambda_s - 1).abs() <= 0.5).all()
    assert node.leak(0) is None


@pytest.mark.parametrize("v_threshold", [0.0, -1.0, float("inf"), float("nan")])
def test_a_threshold_out_of_range_is_named(v_threshold):
    with pytest.raises(ValueError, match=f"v_threshold={v_threshold} is not a finite number above 0"):
        LMHNode(v_threshold=v_threshold)


def test_a_surrogate_without_a_kernel_refuses_cupy():
    with pytest.raises(ValueError, match="backend='cupy' is not one of 'torch', 'auto' that this LMHNode supports"):
        LMHNode(surrogate_function=surrogate.ATan(), backend="cupy")
