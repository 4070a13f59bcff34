from contextlib import contextmanager

import pytest
import torch
from package_names import own

from sj_online import registry
from sj_online.testing.rule import CHECKS, check_rule
from sj_online.trainer import BPTT, SLTT, Result


@pytest.mark.parametrize("name", own("trainers"))
def test_every_registered_rule_conforms(name):
    check_rule(registry.get("trainers", name))


class DeclaredExact(SLTT):
    exact = True


class DeclaredApproximate(BPTT):
    exact = False


class HoardsGraphs(SLTT):
    """Frees no graph, so its memory grows with T."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, backward=lambda loss: loss.backward(retain_graph=True), **kwargs)
        self.hoard = []

    def forward(self, x, steps):
        self.hoard.append(super().forward(x, steps))
        return self.hoard[-1]


class ForgetsToRestore(SLTT):
    def forward(self, x, steps):
        self.net[0].stale = True
        return super().forward(x, steps)


class IgnoresItsScale(SLTT):
    def scale(self, k, T):
        return 2.0


class ForgetsWhatItNeeds(SLTT):
    """Its steps depend on a count that is not in its state_dict."""

    count = 0

    def scale(self, k, T):
        self.count += 1
        return 1.0 / (1 + self.count // 7)


class DeclaredExactInOneStep(SLTT):
    def propagate(self, loss):
        super().propagate(loss)
        self.net[0].weight.grad.mul_(2)


class DeclaredOtherInOneStep(SLTT):
    exact_in_one_step = False


class ForgetsWhatWasThere(SLTT):
    def propagate(self, loss):
        self.net.zero_grad()
        super().propagate(loss)


class KnowsOnlySequences(SLTT):
    def windows(self, T):
        for t in range(T):
            yield range(t, t + 1), t < T - (self.num_steps is not None)


class HasAModeItPrefers(SLTT):
    def propagate(self, loss):
        super().propagate(loss if self.net[0].step_mode == "s" else 2 * loss)


class StreamsSomethingElse(SLTT):
    def stream(self, steps):
        self.optimizer.param_groups[0]["lr"] *= 2
        return super().stream(steps)


class SaysOtherLossesInAStream(SLTT):
    def stream(self, steps):
        return (Result(result.loss + 1, result.output) for result in super().stream(steps))


class StreamsNothing(SLTT):
    """Neither its stream nor its sequences move a weight."""

    def update_weights(self):
        self.optimizer.zero_grad()

    def train_step(self, x, y, mask=None):
        result = super().train_step(x, y, mask)
        with torch.no_grad():
            for p in self.net.parameters():
                p.add_(1)
        return result


class DoesNotRefuse(BPTT):
    def stream(self, steps):
        return iter(())


class IgnoresMasks(SLTT):
    def run(self, x, y, mask=None):
        return super().run(x, y)


class SeesAMaskOfOnes(SLTT):
    masked = False

    def run(self, x, y, mask=None):
        self.masked = mask is not None
        return super().run(x, y, mask)

    def propagate(self, loss):
        super().propagate(2 * loss if self.masked else loss)


class TellsAnotherLossUnderAMask(SLTT):
    def train_step(self, x, y, mask=None):
        result = super().train_step(x, y, mask)
        return Result(result.loss + (mask is not None), result.output)


class TakesTensorsOnly(SLTT):
    def objective(self, outputs, targets, steps):
        return super().objective(outputs + 0, targets, steps)


class UnpacksDicts(SLTT):
    def train_step(self, x, y, mask=None):
        result = super().train_step(x, y, mask)
        return Result(result.loss, result.output["logits"]) if isinstance(result.output, dict) else result


class MarksTheNetwork(SLTT):
    """In the middle of a sequence its network is of another class; afterwards it is as it was."""

    @contextmanager
    def installed(self):
        class Marked(type(self.net)):
            def __reduce_ex__(self, protocol):
                return Marked, tuple(self)

        plain, self.net.__class__ = type(self.net), Marked
        try:
            yield
        finally:
            self.net.__class__ = plain


class CopiesCompute(SLTT):
    """Its copies in the middle of a sequence have other weights than the network has afterwards."""

    def run(self, x, y, mask=None):
        for window in super().run(x, y, mask):
            self.net[0].weight.data += 1
            try:
                yield window
            finally:
                self.net[0].weight.data -= 1


class HoldsAGraph(SLTT):
    def train_step(self, x, y, mask=None):
        result = super().train_step(x, y, mask)
        return Result(result.loss.requires_grad_(), result.output)


class MovesOnlyTheFirst(SLTT):
    def update_weights(self):
        for p in list(self.net.parameters())[1:]:
            p.grad = None
        super().update_weights()


class PredictsInTraining(SLTT):
    def predict(self, x, reduce="mean"):
        self.net.train()
        return super().predict(x, reduce)


class SaysNoPaper(SLTT):
    paper = ""


class SaysNoSynapse(SLTT):
    def __repr__(self):
        return super().__repr__().replace(" 2 ", " two ")


BREAKS = {
    "one_step_equals_backpropagation": [IgnoresItsScale, DeclaredExactInOneStep, DeclaredOtherInOneStep],
    "is_exact_or_approximate_as_declared": [DeclaredExact, DeclaredApproximate],
    "adds_to_gradients": [ForgetsWhatWasThere],
    "static_input_equals_its_repetition": [KnowsOnlySequences],
    "multi_step_equals_single_step": [HasAModeItPrefers],
    "stream_equals_a_sequence": [StreamsSomethingElse, SaysOtherLossesInAStream, StreamsNothing, DoesNotRefuse],
    "a_mask_of_ones_is_no_mask": [IgnoresMasks, SeesAMaskOfOnes, TellsAnotherLossUnderAMask],
    "outputs_may_be_dicts": [TakesTensorsOnly, UnpacksDicts],
    "memory_is_bounded_by_the_horizon": [HoardsGraphs],
    "result_is_detached_and_complete": [HoldsAGraph, MovesOnlyTheFirst],
    "leaves_the_network_as_it_was": [ForgetsToRestore],
    "copies_inside_the_loop_are_plain": [MarksTheNetwork, CopiesCompute],
    "predicts_in_eval_mode": [PredictsInTraining],
    "resumes_from_state_dict": [ForgetsWhatItNeeds],
    "says_what_it_is": [SaysNoPaper, SaysNoSynapse],
}


def test_every_check_has_a_rule_that_breaks_it():
    assert list(BREAKS) == [check.__name__ for check in CHECKS]


@pytest.mark.parametrize(("check", "rule"), [(check, rule) for check, rules in BREAKS.items() for rule in rules])
def test_a_rule_that_breaks_the_contract_fails_the_check_of_it(check, rule):
    with pytest.raises(AssertionError, match=f"^check_rule: {check}: "):
        check_rule(rule)


def test_random_state_is_left_alone():
    before = torch.get_rng_state()
    check_rule(SLTT)
    assert (torch.get_rng_state() == before).all()
