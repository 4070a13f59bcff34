"""STOL against its recursion written out, against truncated BPTT, and in what it leaves alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, memopt, monitor, neuron, op_counter, surrogate
from torch import nn

from sj_online.analysis import SavedBytes
from sj_online.trainer import BPTT, SLTT, STOL
from sj_online.trainer.base import detach

T, N, CLASSES = 6, 5, 3
# u[t] = u[t-1] (1 - s[t-1]) / 2 + x[t], the gradient of the reset kept (STOL, Eq. 2).
HARD = {
    "tau": 2.0,
    "v_reset": 0.0,
    "decay_input": False,
    "detach_reset": False,
    "surrogate_function": surrogate.PiecewiseQuadratic(alpha=1.0),
}
EXACT = {"rtol": 0, "atol": 1e-12}


def mlp(bias=False, **node):
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Linear(4, 8, bias=bias),
        neuron.LIFNode(**{**HARD, **node}),
        layer.Linear(8, 7, bias=bias),
        neuron.LIFNode(**{**HARD, **node}),
        layer.Linear(7, CLASSES, bias=bias),
    )
    for weight in net.parameters():
        nn.init.normal_(weight, 0.3, 0.6)
    return net.double()


class Feedback(nn.Module):
    """A residual branch, a neuron that hears itself a step later, and one neuron called twice a step."""

    def __init__(self):
        super().__init__()
        node = {**HARD, "surrogate_function": surrogate.Sigmoid(alpha=2.0)}
        self.stem = layer.Conv2d(2, 4, 3, padding=1)
        self.twice = neuron.LIFNode(**node)
        self.heard = layer.ElementWiseRecurrentContainer(neuron.LIFNode(**node), lambda y, x: 0.5 * y + x)
        self.branch = nn.Sequential(layer.Conv2d(4, 4, 3, padding=1), layer.BatchNorm2d(4), neuron.LIFNode(**node))
        self.drop = nn.Dropout(0.3)
        self.mask = layer.Dropout(0.3)
        self.readout = nn.Sequential(layer.Conv2d(4, CLASSES, 1), layer.AdaptiveAvgPool2d(1), layer.Flatten())

    def forward(self, x):
        x = self.mask(self.heard(self.stem(x)))
        x = x + self.drop(self.branch(x))
        x += self.twice(x)
        return self.readout(self.twice(x))


def feedback():
    torch.manual_seed(0)
    net = Feedback()
    nn.init.normal_(net.stem.weight, 0.2, 0.3)
    return net.double()


def batch(*shape, steps=T):
    torch.manual_seed(1)
    return torch.rand(steps, N, *shape, dtype=torch.float64) * 1.5, torch.randint(CLASSES, (N,))


def sgd(net, lr=0.1):
    return torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)


def gradient(rule, x, y):
    rule.net.zero_grad()
    torch.manual_seed(2)
    for _ in rule.gradients(x, y):
        pass
    return torch.cat([p.grad.flatten() for p in rule.net.parameters()])


def truncated(net, x, y, k, masks=None):
    """The oracle: each step's loss through a graph that begins k - 1 steps earlier, weights frozen."""
    total = 0
    for t in range(len(x)):
        functional.reset_net(net)
        torch.manual_seed(2)
        for j in range(t + 1):
            if j == t - k + 1:
                detach(net)
            output = net(x[j])
        total = total + F.cross_entropy(output, y)
    net.zero_grad()
    total.backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()])


@pytest.mark.parametrize("k", [1, 2, 3, T])
@pytest.mark.parametrize("net, shape", [(mlp(bias=True), (4,)), (feedback(), (2, 3, 3))], ids=["mlp", "feedback"])
def test_with_frozen_weights_it_is_truncated_bptt(net, shape, k):
    x, y = batch(*shape)
    oracle = truncated(copy.deepcopy(net), x, y, k)
    for mode in ("s", "m"):
        functional.set_step_mode(net, mode)
        ours = gradient(STOL(net, sgd(net), k, update="sequence"), x, y)
        torch.testing.assert_close(ours, oracle, **EXACT)
    functional.set_step_mode(net, "s")
    other = gradient(STOL(net, sgd(net), k % T + 1, update="sequence"), x, y)
    assert (other - oracle).abs().max() > 1e-6


@pytest.mark.parametrize("steps, k", [(T, T), (2, 2), (T, 2 * T)])
def test_with_all_steps_it_is_bptt_of_the_summed_loss(steps, k):
    net, (x, y) = mlp(), batch(4, steps=steps)
    oracle = gradient(BPTT(net, sgd(net), step_scale="sum"), x, y)
    torch.testing.assert_close(gradient(STOL(net, sgd(net), k), x, y), oracle, **EXACT)


def test_with_one_step_it_is_sltt():
    nets, (x, y) = (mlp(), mlp()), batch(4)
    STOL(nets[0], sgd(nets[0]), horizon=1).train_step(x, y)
    SLTT(nets[1], sgd(nets[1]), update="step", step_scale="sum").train_step(x, y)
    assert all((a == b).all() for a, b in zip(*(net.parameters() for net in nets), strict=True))


def theta(u):
    return (1 - (u - 1).abs()).clamp(min=0)


def recursion(weights, biases, x, y, lr, momentum=0.9, first_history=False, spatial=True):
    """STOL, Alg. 1 with SGD and momentum after every step, written out by hand."""
    L = len(weights)
    W, b = [w.clone() for w in weights], [v.clone() for v in biases]
    velocity = [torch.zeros_like(p) for p in [*W, *b]]
    u = [x.new_zeros(N, len(w)) for w in W[:-1]]
    s = [torch.zeros_like(v) for v in u]
    x_before = torch.zeros_like(x[0])
    for t in range(len(x)):
        u_before, s_before = u, s
        u, s = [], []
        for l in range(L - 1):
            current = (x[t] if l == 0 else s[-1]) @ W[l].T + b[l]
            u.append(u_before[l] * (1 - s_before[l]) / 2 + current)
            s.append((u[-1] >= 1).to(x.dtype))
        output = s[-1] @ W[-1].T + b[-1]
        delta = (output.softmax(1) - F.one_hot(y, CLASSES)) / N
        grads = [None] * (2 * L)
        grads[L - 1], grads[2 * L - 1] = delta.T @ s[-1], delta.sum(0)
        down, down_before = delta @ W[-1], torch.zeros_like(s[-1])
        for l in reversed(range(L - 1)):
            delta = down * theta(u[l])
            past = (1 - s_before[l] - u_before[l] * theta(u_before[l])) / 2
            delta_before = down_before * theta(u_before[l]) + delta * past
            if t == 0 and not first_history:
                delta_before = torch.zeros_like(delta)
            inputs, inputs_before = (x[t], x_before) if l == 0 else (s[l - 1], s_before[l - 1])
            grads[l] = delta.T @ inputs + delta_before.T @ inputs_before
            grads[L + l] = (delta + delta_before).sum(0)
            down, down_before = delta @ W[l], (delta_before @ W[l]) * spatial
        x_before = x[t]
        for p, g, v in zip([*W, *b], grads, velocity, strict=True):
            v.mul_(momentum).add_(g)
            p.sub_(lr * v)
    return [*W, *b]


@pytest.mark.parametrize("first_history", [False, True])
@pytest.mark.parametrize("spatial", [False, True])
def test_updates_at_every_step_follow_the_recursion(first_history, spatial):
    net, (x, y) = mlp(bias=True), batch(4)
    linears = [m for m in net if isinstance(m, nn.Linear)]
    weights, biases = [m.weight.detach() for m in linears], [m.bias.detach() for m in linears]
    expected = recursion(weights, biases, x, y, 0.5, first_history=first_history, spatial=spatial)
    frozen = recursion(weights, biases, x, y, 0.0)
    other = recursion(weights, biases, x, y, 0.5, first_history=not first_history, spatial=spatial)
    STOL(net, sgd(net, 0.5), first_history=first_history, spatial_history=spatial).train_step(x, y)
    ours = [*(m.weight for m in linears), *(m.bias for m in linears)]
    for a, e, f in zip(ours, expected, frozen, strict=True):
        torch.testing.assert_close(a.detach(), e, **EXACT)
        assert (a - f).abs().max() > 1e-3
    # The spurious history reaches biases from the first step on, weights only through the updates of those.
    assert max((a - o).abs().max() for a, o in zip(ours, other, strict=True)) > 1e-6


def test_the_spurious_first_history_reaches_biases_only():
    net, (x, y) = mlp(bias=True), batch(4, steps=1)
    with_it = gradient(STOL(net, sgd(net), first_history=True), x, y)
    without = gradient(STOL(net, sgd(net)), x, y)
    sizes = [p.numel() for p in net.parameters()]
    differs = [(a != b).any().item() for a, b in zip(with_it.split(sizes), without.split(sizes), strict=True)]
    assert differs == [False, True, False, True, False, False]


def test_values_are_those_of_the_forward_pass_alone():
    """A neuron with a learnable leak too: outputs, states and statistics are SLTT's while the weights stand still."""
    results = []
    for make in (SLTT, STOL):
        net, (x, y) = feedback(), batch(2, 3, 3)
        net.heard.sub_module = neuron.ParametricLIFNode(decay_input=False).double()
        net.branch[2].store_v_seq = True
        torch.manual_seed(3)
        outputs = [window.output for window in make(net, sgd(net)).gradients(x, y)]
        results.append([*outputs, net.branch[2].v, net.branch[2].v_seq, *net.buffers(), torch.get_rng_state()])
    assert all((a == b).all() for a, b in zip(*results, strict=True))
    assert len(results[0][T + 1]) == T


def test_a_kept_state_outlives_an_update_of_the_leak():
    """The state with which a step begins is the one with which the last step ended, whatever the update did."""
    net, (x, y) = mlp(), batch(4)
    net[1] = neuron.ParametricLIFNode(init_tau=2.0, decay_input=False).double()
    seen = []
    rule = STOL(net, sgd(net, 0.5))
    rule.before_step = lambda: seen.append(net[1].v.detach().clone())
    net[1].register_forward_pre_hook(lambda node, _: seen.append(node.v))
    rule.train_step(x, y)
    # Each step: before the history, before the step, after it.
    for t in range(1, T):
        after, _, before = seen[3 * t - 2], seen[3 * t - 1], seen[3 * t]
        assert (after == before).all()


def test_statistics_are_updated_once():
    x, y = batch(2, 3, 3)
    counts = []
    for rule in (SLTT, STOL):
        net = feedback()
        rule(net, sgd(net)).train_step(x, y)
        counts.append(net.branch[1].num_batches_tracked.item())
    assert counts == [T, T]


def test_a_norm_in_eval_mode_stays_frozen_in_the_history():
    net, (x, y) = feedback(), batch(2, 3, 3)
    net.branch[1] = nn.InstanceNorm2d(4, track_running_stats=True).double().eval()
    net.branch[1].running_mean += 0.3
    ours = gradient(STOL(net, sgd(net), T), x, y)
    torch.testing.assert_close(ours, truncated(net, x, y, T), **EXACT)


def test_history_statistics_and_first_history_are_the_authors():
    """Two updates a step, the first of them with an all-zero batch: both pull the statistics towards 0."""
    x, y = batch(2, 3, 3, steps=1)
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, bias=False),
        layer.BatchNorm2d(4),
        neuron.LIFNode(**HARD),
        layer.Flatten(),
        layer.Linear(4, CLASSES),
    ).double()
    with torch.no_grad():
        z = net[0](x[0])
    STOL(net, sgd(net), first_history=True, history_statistics=True).train_step(x, y)
    assert net[1].num_batches_tracked == 2
    torch.testing.assert_close(net[1].running_mean, 0.1 * z.mean((0, 2, 3)), **EXACT)
    torch.testing.assert_close(net[1].running_var, 0.9 * 0.9 + 0.1 * z.var((0, 2, 3)), **EXACT)


class ConvCalls(op_counter.ModuleCounter):
    def __init__(self):
        super().__init__()
        self.rules[("forward", nn.Conv2d)] = lambda *args: 1


class FunctionCalls(op_counter.BaseCounter):
    def __init__(self):
        super().__init__()
        self.rules[torch.flatten] = self.rules[F.adaptive_avg_pool2d] = lambda *args: 1


def test_the_hosts_monitors_and_counters_see_each_step_once():
    x, y = batch(2, 3, 3)
    seen = []
    for make in (SLTT, STOL, lambda *args, **kwargs: STOL(*args, first_history=True, **kwargs)):
        net = feedback()
        rule = make(net, sgd(net), backward=lambda loss: None)
        counters = [op_counter.SynOpCounter(), op_counter.FlopCounter(), ConvCalls(), FunctionCalls()]
        with (
            monitor.OutputMonitor(net, neuron.LIFNode) as outputs,
            monitor.AttributeMonitor("v", True, net, neuron.LIFNode) as potentials,
            op_counter.ModuleCounterMode([counters[2]], model=net),
            op_counter.DispatchCounterMode(counters[:2]),
            op_counter.FunctionCounterMode([counters[3]]),
        ):
            rule.train_step(x, y)
        seen.append([len(outputs.records), len(potentials.records), *(counter.get_total() for counter in counters)])
    assert seen[0][0] == seen[0][1] == 4 * T and seen[0][4:] == [3 * T, T] and min(seen[0]) > 0
    assert seen[1] == seen[0] and seen[2] == seen[0]


def test_other_hooks_run_in_the_history_too():
    """A weight that a pre-hook computes (weight normalisation) has its gradient from both steps."""
    net, (x, y) = mlp(), batch(4, steps=2)
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(net[0])
    oracle = gradient(BPTT(net, sgd(net), step_scale="sum"), x, y)
    torch.testing.assert_close(gradient(STOL(net, sgd(net)), x, y), oracle, **EXACT)


def test_nothing_is_left_in_the_network_even_by_an_error():
    net, (x, y) = mlp(), batch(4)
    before = [(type(module), set(vars(module))) for module in net.modules()]

    def broken(output, y):
        raise RuntimeError("broken loss")

    rule = STOL(net, sgd(net))
    for _ in rule.gradients(x, y):
        assert [(type(module), set(vars(module))) for module in net.modules()] == before
        break
    with pytest.raises(RuntimeError, match="broken loss"):
        STOL(net, sgd(net), loss_fn=broken).train_step(x, y)
    with pytest.raises(RuntimeError, match="shapes"):
        rule.train_step(x[..., :3], y)
    assert [(type(module), set(vars(module))) for module in net.modules()] == before


@pytest.mark.parametrize("horizon", [2, 3])
def test_saved_bytes_are_at_most_horizon_times_those_of_sltt(horizon):
    peaks = []
    for make, steps in ((SLTT, 8), (STOL, horizon), (STOL, 8), (STOL, 32)):
        net, (x, y) = feedback(), batch(2, 12, 12, steps=steps)
        rule = make(net, sgd(net), **({"horizon": horizon} if make is STOL else {}))
        with SavedBytes(exclude=[x, *net.parameters()]) as saved:
            rule.train_step(x, y)
        peaks.append(saved.peak)
    assert peaks[1] == peaks[2] == peaks[3]
    assert 1 < peaks[1] / peaks[0] <= horizon


@pytest.mark.parametrize("horizon", [0, 1.5, True])
def test_horizon_is_checked(horizon):
    with pytest.raises(ValueError, match=f"horizon={horizon!r}"):
        STOL(mlp(), None, horizon)


def test_layers_that_mix_time_and_recomputed_ones_are_errors():
    net = nn.Sequential(
        layer.Linear(4, 3), neuron.LIFNode(step_mode="m"), layer.ThresholdDependentBatchNorm1d(1.0, 1.0, 3)
    )
    with pytest.raises(ValueError, match="'2' .*mixes the steps"):
        STOL(net, None)
    net = mlp()
    net[1] = memopt.checkpoint_module(net[1])
    with pytest.raises(ValueError, match="'1' .*memopt"):
        STOL(net, None)
