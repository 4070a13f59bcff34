"""Checks of a rule's gradients: what it learns, however its input and targets come."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from sj_online.trainer import Rule

from .oracle import assert_live, bptt_gradient, rule_gradient
from .rule_subject import CLASSES, Factory, N, T, batch, flat, made, network, seeded, weights

EXACT = 1e-12


def _declared(what: str, declared: bool, distance: float) -> None:
    assert (distance < EXACT) == declared, f"declared {what}={declared}, but {distance=:.1e} from backpropagation"


def one_step_equals_backpropagation(factory: Factory) -> None:
    """With T=1 there is no time to cut: the gradient is that of backpropagation, or the rule says that it is not."""
    net, (x, y) = network(), batch(1)
    rule, oracle = made(factory, net), bptt_gradient(net, x, y)
    assert_live(oracle)
    distance = (flat(rule_gradient(rule, x, y)) - flat(oracle)).abs().max().item()
    _declared("exact_in_one_step", rule.exact_in_one_step, distance)


def is_exact_or_approximate_as_declared(factory: Factory) -> None:
    """The gradient of T steps has the direction of backpropagation through time, or has not."""
    net, (x, y) = network(), batch()
    rule = made(factory, net)
    ours, oracle = flat(rule_gradient(rule, x, y)), flat(bptt_gradient(net, x, y))
    assert_live([ours, oracle])
    _declared("exact", rule.exact, (ours / ours.norm() - oracle / oracle.norm()).abs().max().item())


def adds_to_gradients(factory: Factory) -> None:
    """``gradients`` adds to what is in ``.grad``."""
    net, (x, y) = network(), batch(1)
    once = rule_gradient(made(factory, net), x, y)
    for _ in range(2):
        for _ in made(factory, net).gradients(x, y):
            pass
    twice = {name: p.grad for name, p in net.named_parameters()}
    torch.testing.assert_close(twice, {name: 2 * value for name, value in once.items()})


def static_input_equals_its_repetition(factory: Factory) -> None:
    """``num_steps=T`` with ``[N, ...]`` is the sequence of T copies."""
    x, y = batch(1)
    net, twin = network(), network()
    twin.load_state_dict(net.state_dict())
    static = seeded(made(factory, net, T).train_step, x[0], y)
    repeated = seeded(made(factory, twin).train_step, x.expand(T, *x.shape[1:]), y)
    assert static.loss == repeated.loss and (weights(net) == weights(twin)).all(), "the two differ"


def multi_step_equals_single_step(factory: Factory) -> None:
    """A network in step mode 'm' trains as the same network in 's'."""
    net, (x, y) = network(), batch()
    found = []
    for mode in ("s", "m"):
        functional.reset_net(net)
        functional.set_step_mode(net, mode)
        found.append(seeded(rule_gradient, made(factory, net), x, y))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=EXACT)


def stream_equals_a_sequence(factory: Factory) -> None:
    """A rule that streams does as on a sequence with an update at each window; one that does not refuses."""
    net, (x, y) = network(), batch()
    rules, before = [_per_step(made(factory, each)) for each in (net, copy.deepcopy(net))], weights(net)
    steps = ((x_t, y) for x_t in x)
    if not rules[0].streams:
        try:
            rules[0].stream(steps)
        except ValueError:
            return
        raise AssertionError("streams=False, but stream() does not refuse with a ValueError")
    losses = [result.loss for result in rules[0].stream(steps)]
    expected = [window.loss for window in _updating(rules[1], x, y)]
    torch.testing.assert_close(losses, expected, rtol=0, atol=EXACT)
    torch.testing.assert_close(weights(net), weights(rules[1].net), rtol=0, atol=EXACT)
    assert (weights(net) != before).any(), "nothing was learnt"


def _per_step(rule: Rule) -> Rule:
    rule.update = "step"
    if type(rule).scale is Rule.scale:
        rule.step_scale = "sum"  # the mean would divide by a T that a stream does not have
    return rule


def _updating(rule: Rule, x: Tensor, y: Tensor) -> Iterator[Any]:
    for window in rule.gradients(x, y):
        rule.update_weights()
        yield window


def a_mask_of_ones_is_no_mask(factory: Factory) -> None:
    """Where every step of every sample counts, a mask changes nothing; where none does, nothing is learnt."""
    net, (x, y) = network(), batch()
    nets = [net, copy.deepcopy(net), copy.deepcopy(net)]
    before = weights(net)
    masks = [None, torch.ones(T, N), torch.zeros(T, N)]
    results = [seeded(made(factory, each).train_step, x, y, mask=m) for each, m in zip(nets, masks, strict=True)]
    assert results[0].loss == results[1].loss, "the losses differ"
    assert (weights(nets[0]) == weights(nets[1])).all(), "the updates differ"
    assert (weights(nets[2]) == before).all(), "steps that do not count learn"


class _Named(nn.Sequential):
    """A network whose output is a dict."""

    def forward(self, x: Tensor) -> Any:
        return {"logits": super().forward(x)}


def outputs_may_be_dicts(factory: Factory) -> None:
    """A network that gives a dict trains as the same one that gives the tensor in it; the loss gets the dict."""
    net, (x, y) = network(), batch()
    named = _Named(*copy.deepcopy(net))
    plain_rule, rule = made(factory, net), made(factory, named)
    plain_rule.loss_fn = F.cross_entropy
    plain = seeded(plain_rule.train_step, x, y)
    rule.loss_fn = lambda output, y: F.cross_entropy(output["logits"], y)
    result = seeded(rule.train_step, x, y)
    assert isinstance(result.output, dict) and result.output["logits"].shape == (N, CLASSES), "the output is no dict"
    torch.testing.assert_close(result.output["logits"], plain.output, rtol=0, atol=EXACT)
    torch.testing.assert_close(weights(named), weights(net), rtol=0, atol=EXACT)
