"""A step that STOL runs again leaves no mark: on values, random numbers, statistics, monitors, or the network."""

import pytest
import torch
from spikingjelly.activation_based import layer, monitor, neuron
from stol_networks import CLASSES, EXACT, HARD, T, batch, feedback, gradient, mlp, sgd, truncated
from torch import nn

from sj_online.trainer import BPTT, SLTT, STOL, replaying


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
    seen.clear()  # the first batch is preceded by a look at the network
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


def test_a_recorder_can_ask_whether_a_step_is_run_again():
    x, y = batch(2, 3, 3)
    seen = []
    for make in (SLTT, STOL, lambda *args: STOL(*args, first_history=True)):
        net, calls = feedback(), []
        net.readout.register_forward_hook(lambda *_, calls=calls: calls.append(replaying()))
        make(net, sgd(net)).train_step(x, y)
        seen.append((calls.count(False), calls.count(True)))
    assert [steps for steps, _ in seen] == [T, T, T]
    assert seen[1][1] >= seen[0][1] + T - 1 and seen[2][1] >= seen[0][1] + T


def test_the_hosts_monitors_do_not_see_the_look_at_the_network():
    x, y = batch(2, 3, 3)
    net = feedback()
    with monitor.OutputMonitor(net, neuron.LIFNode) as outputs:
        SLTT(net, sgd(net)).train_step(x, y)
    assert len(outputs.records) == 4 * T


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
