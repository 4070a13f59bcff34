import copy

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from sj_online.analysis import SavedBytes
from sj_online.loss import over_window
from sj_online.neuron import EMPFNode, HDLIFNode, LMHNode
from sj_online.trainer import BPTT, SLTT, RandomBP, replaying

T, N = 6, 4
LIF = {"tau": 2.0, "decay_input": False, "v_reset": None, "detach_reset": True}


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Conv2d(2, 6, 3, padding=1, bias=False),
        layer.BatchNorm2d(6),
        neuron.LIFNode(**LIF),
        layer.AdaptiveAvgPool2d(1),
        layer.Flatten(),
        layer.Linear(6, 3),
    )
    return net.double()


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.rand(T, N, 2, 5, 5, dtype=torch.float64), torch.randint(3, (N,))


def sgd(net, **options):
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, **options)


def gradient(net):
    return torch.cat([p.grad.flatten() for p in net.parameters()])


def summed_gradient(rule, x, y):
    rule.net.zero_grad()
    for _ in rule.gradients(x, y):
        pass
    return gradient(rule.net)


def without_gradient_in_time(net):
    """The host's online neuron in the place of LIFNode: an independent implementation of SLTT's cut."""
    net = copy.deepcopy(net)
    net[2] = neuron.SLTTLIFNode(**LIF).double()
    return net


@pytest.mark.parametrize("step_scale", ["mean", "sum"])
def test_sltt_is_backpropagation_through_the_hosts_online_neuron(net, batch, step_scale):
    x, y = batch
    oracle = without_gradient_in_time(net)
    losses = torch.stack([F.cross_entropy(oracle(x_t), y) for x_t in x])
    (losses.mean() if step_scale == "mean" else losses.sum()).backward()
    ours = summed_gradient(SLTT(net, sgd(net), step_scale=step_scale), x, y)
    torch.testing.assert_close(ours, gradient(oracle), rtol=0, atol=1e-12)


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_bptt_is_autograd_of_the_loop(net, batch, step_mode):
    x, y = batch
    net.eval()  # in 'm' batch normalisation sees all steps at once
    oracle = copy.deepcopy(net)
    torch.stack([F.cross_entropy(oracle(x_t), y) for x_t in x]).mean().backward()
    functional.set_step_mode(net, step_mode)
    ours = summed_gradient(BPTT(net, sgd(net)), x, y)
    torch.testing.assert_close(ours, gradient(oracle), rtol=0, atol=1e-12)
    assert (ours - summed_gradient(SLTT(net, sgd(net)), x, y)).abs().max() > 1e-6


def test_step_updates_are_a_loop_with_an_optimizer_step_in_it(net, batch):
    x, y = batch
    oracle = without_gradient_in_time(net)
    optimizer = sgd(oracle)
    for x_t in x:
        optimizer.zero_grad()
        F.cross_entropy(oracle(x_t), y).backward()
        optimizer.step()
    SLTT(net, sgd(net), update="step", step_scale="sum").train_step(x, y)
    for (name, ours), theirs in zip(net.state_dict().items(), oracle.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12, msg=name)


def test_result_is_the_mean_over_all_steps(net, batch):
    x, y = batch
    oracle = copy.deepcopy(net)
    with torch.no_grad():
        outputs = torch.stack([oracle(x_t) for x_t in x])
    for rule in (SLTT(net, sgd(net)), RandomBP(net, sgd(net), update="sequence")):
        before = copy.deepcopy(net.state_dict())
        result = rule.train_step(x, y)
        net.load_state_dict(before)
        torch.testing.assert_close(result.output, outputs.mean(0))
        torch.testing.assert_close(result.loss, torch.stack([F.cross_entropy(o, y) for o in outputs]).mean())


def test_random_bp_is_unbiased_for_the_mean_of_the_steps(net, batch):
    """Over all draws of one step its gradient averages to SLTT's (no update in between)."""
    x, y = batch
    net.eval()
    each = {}
    rule = RandomBP(net, sgd(net), generator=torch.Generator().manual_seed(0))
    while len(each) < T:
        net.zero_grad()
        (window,) = rule.gradients(x, y)
        each[window.steps[0]] = gradient(net)
    mean = torch.stack(list(each.values())).mean(0)
    full = summed_gradient(SLTT(net, sgd(net)), x, y)
    torch.testing.assert_close(mean, full, rtol=0, atol=1e-12)
    assert (each[0] - full).abs().max() > 1e-6


@pytest.mark.parametrize("k", [1, 3, T])
def test_random_bp_learns_from_k_steps_and_runs_all(net, batch, k):
    x, y = batch
    rule = RandomBP(net, sgd(net), k=k)
    windows = list(rule.run(x, y))
    assert [list(w.steps) for w in windows] == [[t] for t in range(T)]
    assert sum(w.learned for w in windows) == k
    assert net[1].num_batches_tracked == T


def test_random_bp_builds_a_graph_only_where_it_learns(net, batch):
    modes = []
    net[0].register_forward_hook(lambda *_: None if replaying() else modes.append(torch.is_grad_enabled()))
    windows = list(RandomBP(net, sgd(net), k=2).run(*batch))
    assert modes == [window.learned for window in windows] and sum(modes) == 2


def test_sltt_k_with_all_steps_is_sltt(net, batch):
    x, y = batch
    net.eval()
    k_steps = summed_gradient(RandomBP(net, sgd(net), k=T, step_scale="mean", update="sequence"), x, y)
    assert (k_steps == summed_gradient(SLTT(net, sgd(net)), x, y)).all()


def test_stopping_early_gives_the_same_gradient_from_fewer_steps(net, batch):
    x, y = batch
    net.eval()
    gradients, steps = [], []
    for stop_early in (False, True):
        rule = RandomBP(net, sgd(net), generator=torch.Generator().manual_seed(0), stop_early=stop_early)
        net.zero_grad()
        steps.append(len(list(rule.run(x, y))))
        gradients.append(gradient(net))
    assert (gradients[0] == gradients[1]).all()
    assert steps[1] < steps[0] == T


def test_random_draws_resume_from_state_dict(net):
    def draws(rule):
        return [[t for (t,), learns in rule.windows(50) if learns] for _ in range(3)]

    rule = RandomBP(net, sgd(net), generator=torch.Generator().manual_seed(1))
    draws(rule)
    resumed = RandomBP(net, sgd(net), generator=torch.Generator())
    resumed.load_state_dict(rule.state_dict())
    assert draws(rule) == draws(resumed) != draws(RandomBP(net, sgd(net), generator=torch.Generator()))


@pytest.mark.parametrize("make", [SLTT, RandomBP])
@pytest.mark.parametrize(
    "node",
    [
        lambda T: neuron.LIFNode(**LIF),
        EMPFNode,
        LMHNode,
        lambda T: HDLIFNode(T, parallel=True),
        lambda T: HDLIFNode(T, membrane_norm=6),
    ],
    ids=["lif", "empf", "lmh", "parallel", "membrane_norm"],
)
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_online_memory_does_not_depend_on_time(net, make, node, step_mode):
    peaks = {}
    for T in (2, 8, 32):
        net[2] = node(T).double()
        functional.set_step_mode(net, step_mode)
        peaks[T] = saved_bytes(make, net, T)
    assert len(set(peaks.values())) == 1 and peaks[2] > 0


def test_memory_of_bptt_grows_linearly(net):
    two, eight, fourteen = (saved_bytes(BPTT, net, T) for T in (2, 8, 14))
    assert fourteen - eight == eight - two > 0


def saved_bytes(make, net, T):
    x, y = torch.rand(T, N, 2, 5, 5, dtype=torch.float64), torch.randint(3, (N,))
    with SavedBytes(exclude=[x, *net.parameters()]) as saved:
        make(net, sgd(net)).train_step(x, y)
    return saved.peak


def test_a_loss_over_the_window_sees_all_its_steps(net, batch):
    x, y = batch
    net.eval()
    rate_ce = over_window(lambda outputs, y: F.cross_entropy(outputs.mean(0), y))
    oracle = copy.deepcopy(net)
    F.cross_entropy(torch.stack([oracle(x_t) for x_t in x]).mean(0), y).backward()
    torch.testing.assert_close(summed_gradient(BPTT(net, sgd(net), loss_fn=rate_ce), x, y), gradient(oracle))


def test_seams_for_scaling_and_clipping(net, batch):
    x, y = batch
    calls = []
    rule = SLTT(
        net,
        sgd(net),
        update="step",
        backward=lambda loss: (2 * loss).backward(),
        before_step=lambda: calls.append(nn.utils.clip_grad_norm_(net.parameters(), 1e-3)),
    )
    before = nn.utils.parameters_to_vector(net.parameters()).detach()
    rule.train_step(x, y)
    assert len(calls) == T
    assert 0 < (nn.utils.parameters_to_vector(net.parameters()) - before).norm() < 0.1 * 1e-3 * T * 10
    before = nn.utils.parameters_to_vector(net.parameters()).detach()
    SLTT(net, sgd(net), before_step=lambda: False).train_step(x, y)
    assert (nn.utils.parameters_to_vector(net.parameters()) == before).all()


def test_updates_within_autocast_see_the_new_weights(batch):
    x, y = batch
    torch.manual_seed(0)
    net = nn.Sequential(layer.Flatten(), layer.Linear(50, 6), neuron.LIFNode(**LIF), layer.Linear(6, 3))
    oracle = copy.deepcopy(net)
    with torch.autocast("cpu", torch.bfloat16):
        SLTT(net, sgd(net), update="step").train_step(x.float(), y)
    optimizer = sgd(oracle)
    for x_t in x.float():
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(oracle(x_t), y) / T
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        functional.detach_net(oracle)
    for ours, theirs in zip(net.parameters(), oracle.parameters(), strict=True):
        assert (ours == theirs).all()
