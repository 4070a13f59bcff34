"""Conformance checks of a neuron: the host's contract, and what this package asks beyond it."""

from collections.abc import Callable, Collection

import torch
from spikingjelly.activation_based.neuron import BaseNode

from . import node_execution as execution
from . import node_state as states
from .subject import Subject

CHECKS: tuple[Callable[[Subject], None], ...] = (
    execution.single_step_equals_multi_step,
    states.purity,
    states.functional_form,
    states.state_restoration,
    states.reset,
    states.detach,
    states.batch_size,
    states.copies,
    execution.precision,
    states.potentials,
    execution.final_state_gradient,
    execution.layouts,
    execution.memopt,
    execution.compiled,
    execution.exported,
    execution.gradcheck,
)


def check_node(
    factory: Callable[..., BaseNode],
    *,
    shape: tuple[int, ...] = (2, 3, 4, 4),
    smooth: bool = False,
    known_failures: Collection[str] = (),
) -> None:
    """Check that a neuron keeps the contract of the host in ``'s'`` and ``'m'``.

    Args:
        factory: ``factory(step_mode=..., store_v_seq=...)`` returns a new neuron that can run at least 4 steps; usually
            its class.
        shape: of the input of one step [N, C, H, W].
        smooth: whether the backward pass is the derivative of the forward pass at almost every input, so that finite
            differences must agree.
        known_failures: names of the checks that are known to fail. It is an error if one of them passes.

    Raises:
        AssertionError: names the check that failed, or that passed though it was declared to fail.
        ValueError: a known failure that is not the name of a check.

    Example:
        >>> from sj_online.neuron import EMPFNode
        >>> check_node(EMPFNode, smooth=True)
    """
    checks = {check.__name__: check for check in CHECKS if smooth or check is not execution.gradcheck}
    if unknown := set(known_failures) - set(checks):
        raise ValueError(f"known_failures={sorted(unknown)} are not names of checks; known: {', '.join(checks)}")
    subject = Subject(factory, shape)
    for name, check in checks.items():
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                check(subject)
        except Exception as error:
            if name not in known_failures:
                raise AssertionError(f"check_node: {name}: {error}") from error
        else:
            if name in known_failures:
                raise AssertionError(f"check_node: {name}: declared as a known failure, but it passes")
