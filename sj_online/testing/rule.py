"""Conformance checks of a training rule."""

from collections.abc import Callable

import torch

from . import rule_conduct as conduct
from . import rule_gradients as gradients
from .rule_subject import Factory

CHECKS: tuple[Callable[[Factory], None], ...] = (
    gradients.one_step_equals_backpropagation,
    gradients.is_exact_or_approximate_as_declared,
    gradients.adds_to_gradients,
    gradients.static_input_equals_its_repetition,
    gradients.multi_step_equals_single_step,
    gradients.stream_equals_a_sequence,
    gradients.a_mask_of_ones_is_no_mask,
    gradients.outputs_may_be_dicts,
    conduct.memory_is_bounded_by_the_horizon,
    conduct.result_is_detached_and_complete,
    conduct.leaves_the_network_as_it_was,
    conduct.copies_inside_the_loop_are_plain,
    conduct.predicts_in_eval_mode,
    conduct.resumes_from_state_dict,
    conduct.says_what_it_is,
)


def check_rule(factory: Factory) -> None:
    """Check that a rule keeps the contract of all rules, and is what it declares.

    It declares ``exact``: whether a sequence's gradient has the direction of backpropagation through time;
    ``exact_in_one_step``: whether that of one step is backpropagation; ``horizon``: by what memory is bounded;
    ``streams``: whether it learns from a stream. Each is checked both ways.

    Args:
        factory: ``factory(net, optimizer, num_steps=None)`` returns the rule, usually its class.

    Raises:
        AssertionError: names the check that failed.

    Example:
        >>> from sj_online.trainer import SLTT
        >>> check_rule(SLTT)
    """
    for check in CHECKS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                check(factory)
            except Exception as error:
                raise AssertionError(f"check_rule: {check.__name__}: {error}") from error
