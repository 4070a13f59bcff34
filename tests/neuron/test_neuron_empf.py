"""EM-PF: the equations, both gradients and both theorems, float64."""

import pytest
import torch

from sj_online.analysis.memory import SavedBytes
from sj_online.neuron import EMPFNode

T = 5
TOL = {"rtol": 0, "atol": 1e-12}


def node_with_random_parameters(num_steps=T, **kwargs):
    node = EMPFNode(num_steps, **kwargs).double()
    with torch.no_grad():
        for p in node.parameters():
            p.normal_()
    return node


def paper(x, decay, threshold, online):
    """EM-PF, Eq. 3-5, by autograd of the printed equations; chi at equality does not occur in random data."""
    v, s_seq = torch.zeros_like(x[0]), []
    for t in range(len(x)):
        m = decay[t % len(decay)] * (v.detach() if online else v) + x[t]
        s_seq.append(torch.relu(m - threshold[t % len(threshold)]))
        v = m - s_seq[-1]
    return torch.stack(s_seq), v


def run(node, x):
    node.reset()
    if node.step_mode == "m":
        return node(x)
    return torch.stack([node(x_t) for x_t in x])


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("temporal_grad", [True, False])
@pytest.mark.parametrize("num_steps", [None, T])
def test_forward_and_every_gradient_equal_the_paper(step_mode, temporal_grad, num_steps):
    torch.manual_seed(0)
    node = node_with_random_parameters(num_steps, temporal_grad=temporal_grad, step_mode=step_mode)
    x = torch.randn(T, 3, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    s, v = paper(x, node.decay, node.threshold, online=not temporal_grad)
    inputs = [x, node.raw_decay, node.raw_threshold]
    expected = torch.autograd.grad((s * weight).sum(), inputs)
    out = run(node, x)
    torch.testing.assert_close(out, s, **TOL)
    torch.testing.assert_close(node.v, v, **TOL)
    for got, want in zip(torch.autograd.grad((out * weight).sum(), inputs), expected, strict=True):
        torch.testing.assert_close(got, want, **TOL)


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_fired_neurons_are_reset_to_the_threshold_exactly_and_chi_is_one_there(step_mode):
    node = EMPFNode(step_mode=step_mode, store_v_seq=True)
    x = torch.randn(8, 1000, generator=torch.Generator().manual_seed(0))
    x[0, :10] = 0.5
    x.requires_grad_()
    s = run(node, x)
    threshold = node.threshold.item()
    assert (node.v_seq <= threshold).all()
    assert (node.v_seq[s > 0] == threshold).all()
    assert (s[0, :10] == 0).all()
    assert (torch.autograd.grad(s[0].sum(), x)[0][0, :10] == 1).all()


def test_one_step_saves_the_state_and_a_byte():
    node, x = EMPFNode(), torch.randn(1000, requires_grad=True)
    node.v = torch.rand(1000)
    with SavedBytes(exclude=[x, *node.parameters()]) as saved:
        node(x)
    assert 5000 <= saved.peak < 5100


@pytest.mark.parametrize("temporal_grad", [True, False])
def test_one_step_under_the_transforms_of_torch_func(temporal_grad):
    node = node_with_random_parameters(None, temporal_grad=temporal_grad)
    x, v = torch.randn(2, 9, dtype=torch.float64)
    x[0] = node.threshold.detach() - node.decay.detach() * v[0]  # at equality, or an ulp beside it

    def step(x, v):
        (s,), (v,) = node.functional_forward((x,), (v,))
        return torch.stack([s, v])

    m = node.decay.detach() * v + x
    chi = (m >= node.threshold.detach()).double()
    assert 0 < chi.sum() < 9
    in_time = node.decay.detach() * float(temporal_grad)
    for i, factor in ((0, 1.0), (1, in_time)):
        want = torch.stack([(chi * factor).diag(), ((1 - chi) * factor).diag()])
        for jacobian in (torch.func.jacrev, torch.func.jacfwd):
            torch.testing.assert_close(jacobian(step, argnums=i)(x, v).detach(), want, **TOL)
    per_sample = torch.vmap(torch.func.grad(lambda x, v: step(x, v)[0].sum()))(x[:, None], v[:, None])
    torch.testing.assert_close(per_sample.detach()[:, 0], chi, **TOL)


@pytest.mark.parametrize("temporal_grad", [True, False])
def test_final_state_carries_its_gradient_in_both_modes(temporal_grad):
    torch.manual_seed(1)
    x = torch.randn(T, 4, dtype=torch.float64, requires_grad=True)
    grads = []
    for step_mode in "sm":
        torch.manual_seed(2)
        node = node_with_random_parameters(temporal_grad=temporal_grad, step_mode=step_mode)
        run(node, x)
        grads.append(torch.autograd.grad(node.v.square().sum(), [x, *node.parameters()], materialize_grads=True))
    for one, many in zip(*grads, strict=True):
        torch.testing.assert_close(one, many, **TOL)
    assert bool(grads[0][0][:-1].any()) is temporal_grad


def stbp_and_online(x, node, grad):
    grads = []
    for node.temporal_grad in (True, False):
        s = run(node, x)
        grads.append(torch.autograd.grad(s, [x, node.raw_threshold], grad))
    return s > 0, *grads


def test_stbp_gradient_is_that_of_the_next_firing_step_times_the_leaks_between():
    torch.manual_seed(3)
    node = node_with_random_parameters(step_mode="m")
    x = torch.randn(T, 50, dtype=torch.float64, requires_grad=True)
    grad = torch.randn_like(x)
    fired, (stbp, _), (online, _) = stbp_and_online(x, node, grad)
    decay = node.decay.detach()
    for n in range(50):
        for t in range(T):
            later = [k for k in range(t, T) if fired[k, n]]
            want = grad[later[0], n] * decay[t + 1 : later[0] + 1].prod() if later else torch.tensor(0.0).double()
            torch.testing.assert_close(stbp[t, n], want, **TOL)
    torch.testing.assert_close(online[fired], stbp[fired], **TOL)
    assert (online[~fired] == 0).all() and (stbp[~fired] != 0).any(), "they must differ where the neuron is silent"


def test_theorem_4_2_of_empf_all_steps_fire_or_all_are_silent():
    torch.manual_seed(4)
    node = node_with_random_parameters(step_mode="m")
    decay, threshold = node.decay.detach(), node.threshold.detach()
    bound = threshold.clone()
    bound[1:] -= decay[1:] * threshold[:-1]
    noise = torch.rand(T, 20, dtype=torch.float64)
    for x, fires in ((bound[:, None] + noise, True), (-noise, False)):
        fired, (stbp, _), (online, _) = stbp_and_online(x.requires_grad_(), node, torch.randn(T, 20).double())
        assert fired.all() if fires else not fired.any()
        torch.testing.assert_close(stbp, online, **TOL)


def test_the_online_gradient_differs_for_thresholds_and_for_lower_layers():
    torch.manual_seed(5)
    nodes = [node_with_random_parameters(step_mode="m") for _ in range(2)]
    x = torch.randn(T, 40, dtype=torch.float64, requires_grad=True)
    grad = torch.ones_like(x)
    _, (_, stbp_threshold), (_, online_threshold) = stbp_and_online(x, nodes[0], grad)
    assert not torch.allclose(stbp_threshold, online_threshold)
    lower = []
    for nodes[0].temporal_grad in (True, False):
        nodes[1].temporal_grad = nodes[0].temporal_grad
        hidden = run(nodes[0], x)
        lower.append(torch.autograd.grad(run(nodes[1], hidden), x, grad)[0])
    fires = hidden > 0
    assert not torch.allclose(lower[0][fires], lower[1][fires])


def test_the_leak_of_the_first_step_gets_no_gradient():
    node = node_with_random_parameters(step_mode="m")
    node(torch.randn(T, 30).double()).sum().backward()
    assert node.raw_decay.grad[0] == 0 and (node.raw_decay.grad[1:] != 0).all()


def test_state_is_float32_under_half_precision():
    node = EMPFNode(step_mode="m")
    s = node(torch.randn(3, 4, dtype=torch.bfloat16))
    assert (s.dtype, node.v.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_running_past_num_steps_is_an_error_until_reset_or_a_new_batch_size(step_mode):
    node = EMPFNode(2, step_mode=step_mode)
    x = torch.randn(2, 3)
    run(node, x)
    with pytest.raises(ValueError, match="num_steps=2: EMPFNode is asked to run step [34]"):
        node(x if step_mode == "m" else x[0])
    run(node, x)
    node(torch.randn(2, 5) if step_mode == "m" else torch.randn(5))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"decay": 1.0}, r"decay=1.0 is not inside the open interval \(0, 1\)"),
        ({"threshold": 0}, r"threshold=0 is not inside the open interval \(0, 1\)"),
        ({"num_steps": 0}, "num_steps=0 is not None or an integer of at least 1"),
        ({"backend": "triton"}, "backend='triton' is not one of 'torch', 'cupy', 'auto'"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        EMPFNode(**kwargs)


def test_not_learnable_means_buffers_of_the_same_names():
    node = EMPFNode(3, learnable=False)
    assert not list(node.parameters())
    assert set(node.state_dict()) == set(EMPFNode(3).state_dict()) == {"raw_decay", "raw_threshold"}
