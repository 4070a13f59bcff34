import pytest
import torch
from package_names import own

from sj_online import registry
from sj_online.testing.rule import check_rule
from sj_online.trainer import BPTT, SLTT


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


@pytest.mark.parametrize(
    ("rule", "check"),
    [
        (DeclaredExact, "is_exact_or_approximate_as_declared"),
        (DeclaredApproximate, "is_exact_or_approximate_as_declared"),
        (HoardsGraphs, "memory_is_bounded_by_the_horizon"),
        (ForgetsToRestore, "leaves_the_network_as_it_was"),
        (IgnoresItsScale, "one_step_equals_backpropagation"),
        (ForgetsWhatItNeeds, "resumes_from_state_dict"),
    ],
)
def test_a_rule_that_breaks_the_contract_fails_the_check_of_it(rule, check):
    with pytest.raises(AssertionError, match=check):
        check_rule(rule)


def test_random_state_is_left_alone():
    before = torch.get_rng_state()
    check_rule(SLTT)
    assert (torch.get_rng_state() == before).all()
