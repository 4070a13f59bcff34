"""Checks of a rule's conduct: memory, results, and what it leaves in a network."""

import copy
import pickle

import torch
from spikingjelly.activation_based import functional, layer
from torch import nn

from sj_online.analysis.memory import SavedBytes

from .rule_subject import CLASSES, Factory, N, batch, made, network, seeded, weights


def memory_is_bounded_by_the_horizon(factory: Factory) -> None:
    """Bytes saved for backward do not depend on T beyond the horizon; without a horizon they grow."""
    peaks = []
    for steps in (8, 32):
        net, (x, y) = network(), batch(steps)
        rule = made(factory, net)
        with SavedBytes(exclude=[x, *net.parameters()]) as saved:
            rule.train_step(x, y)
        peaks.append(saved.peak)
    assert (peaks[0] == peaks[1]) == (rule.horizon is not None), f"saved bytes {peaks} at T=8 and 32, {rule.horizon=}"


def result_is_detached_and_complete(factory: Factory) -> None:
    """``train_step`` returns a scalar loss and the mean output, and changes every parameter."""
    net, (x, y) = network(), batch()
    before = [p.detach().clone() for p in net.parameters()]
    result = made(factory, net).train_step(x, y)
    assert result.loss.shape == () and result.output.shape == (N, CLASSES), "shapes of the result"
    assert not result.loss.requires_grad and not result.output.requires_grad, "the result holds a graph"
    assert all((p != old).any() for p, old in zip(net.parameters(), before, strict=True)), "a parameter has not moved"


def leaves_the_network_as_it_was(factory: Factory) -> None:
    """Outside ``train_step`` the network computes, saves and pickles as without the rule; ``close`` clears it."""
    net, (x, y) = network(), batch()
    names, members = list(net.state_dict()), [set(vars(module)) for module in net.modules()]
    rule = made(factory, net)
    rule.train_step(x, y)
    twin = network()
    twin.load_state_dict(net.state_dict())
    functional.reset_net(net)
    with torch.no_grad():
        assert all((net(x_t) == twin(x_t)).all() for x_t in x), "the network computes something else"
    assert list(net.state_dict()) == names, "state_dict has other names"
    pickle.dumps(copy.deepcopy(net))
    rule.close()
    assert [set(vars(module)) for module in net.modules()] == members, "close() leaves something in a module"


def copies_inside_the_loop_are_plain(factory: Factory) -> None:
    """A copy or pickle of the network in the middle of a sequence is a network of its own, without the rule."""
    net, (x, y) = network(), batch()
    plain = [(type(module), set(vars(module))) for module in net.modules()]
    windows = made(factory, net).gradients(x, y)
    next(windows)
    copies = [copy.deepcopy(net), pickle.loads(pickle.dumps(net))]
    windows.close()
    for twin in copies:
        found = [(type(module), set(vars(module))) for module in twin.modules()]
        assert found == plain, "a copy has other classes or attributes than the network had"
        functional.reset_net(twin)
        functional.reset_net(net)
        with torch.no_grad():
            assert all((net(x_t) == twin(x_t)).all() for x_t in x), "a copy computes something else"


def predicts_in_eval_mode(factory: Factory) -> None:
    """``predict`` is the mean output in eval mode, and restores the training mode."""
    net = nn.Sequential(layer.Dropout(0.5), *network())
    net[1].eval()
    x, _ = batch()
    with SavedBytes() as saved:
        output = made(factory, net).predict(x)
    assert saved.peak == 0 and not output.requires_grad, "predict builds a graph"
    assert net.training and not net[1].training, "training modes are not restored"
    net.eval()
    functional.reset_net(net)
    torch.testing.assert_close(output, torch.stack([net(x_t) for x_t in x]).mean(0).detach())


def resumes_from_state_dict(factory: Factory) -> None:
    """A run continued from the saved states goes on as one that was not interrupted."""
    x, y = batch()
    net = network()
    rule = made(factory, net)
    rule.train_step(x, y)
    resumed_net = copy.deepcopy(net)
    resumed = made(factory, resumed_net)
    resumed.optimizer.load_state_dict(copy.deepcopy(rule.optimizer.state_dict()))
    resumed.load_state_dict(copy.deepcopy(rule.state_dict()))
    for each in (rule, resumed):
        seeded(each.train_step, x, y)
    assert (weights(net) == weights(resumed_net)).all(), "the resumed run differs"


def says_what_it_is(factory: Factory) -> None:
    """The rule names its paper, and its table every synapse."""
    net, (x, y) = network(), batch()
    rule = made(factory, net)
    rule.train_step(x, y)
    text = repr(rule)
    assert rule.paper and rule.paper in text, "no paper in print(rule)"
    missing = [
        name for name, module in net.named_modules() if isinstance(module, nn.Linear) and f" {name} " not in text
    ]
    assert not missing, f"synapses {missing} are not in print(rule)"
