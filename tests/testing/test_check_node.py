"""Every registered neuron passes the public checks, and every check catches a neuron that is broken for it."""

from functools import partial

import pytest
import torch
from spikingjelly.activation_based import neuron, surrogate

from sj_online import registry
from sj_online.neuron import EMPFNode, HDLIFNode
from sj_online.testing import check_node
from sj_online.testing.node import CHECKS
from sj_online.testing.subject import Subject

SMOOTH = {"empf"}
EXCLUDED = {"qcfs": "an activation of ANNs, no BaseNode"}
HOSTS = {"ottt_lif", "sltt_lif", "stol_lif"}
"""The host's LIFNode, whose state has the dtype of its input, which is half under autocast."""
NAMES = sorted(set(registry.names("neurons")) - set(EXCLUDED))


@pytest.mark.parametrize("name", NAMES)
def test_registered_for_any_number_of_steps(name):
    known = {"precision"} if name in HOSTS else set()
    check_node(registry.get("neurons", name), smooth=name in SMOOTH, known_failures=known)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in HOSTS])
def test_registered_with_parameters_per_step(name):
    check_node(partial(registry.get("neurons", name), 4), smooth=name in SMOOTH)


def test_what_is_excluded_is_no_neuron():
    assert not any(issubclass(registry.get("neurons", name), neuron.BaseNode) for name in EXCLUDED)


@pytest.mark.parametrize("options", [{"membrane_norm": 3, "temporal_grad": False}, {"parallel": True}], ids=str)
def test_options(options):
    check_node(partial(HDLIFNode, 4, **options))


def test_the_host_fails_where_it_is_known_to():
    lif = partial(neuron.LIFNode, surrogate_function=surrogate.Sigmoid(spiking=False))
    check_node(lif, smooth=True, known_failures={"precision"})


def test_a_known_failure_that_passes_and_one_that_is_unknown_are_errors():
    with pytest.raises(AssertionError, match="purity: declared as a known failure, but it passes"):
        check_node(neuron.LIFNode, known_failures={"purity"})
    with pytest.raises(ValueError, match="known_failures=.'purty'. are not names of checks; known: single_step_equals"):
        check_node(neuron.LIFNode, known_failures={"purty"})


class ForgetsTheState(EMPFNode):
    def sequence(self, x_seq, states, t):
        return super().sequence(x_seq, (states[0] * 0,), t)


class WritesIntoTheState(EMPFNode):
    def single_step_functional_forward(self, inputs, states, **kwargs):
        outputs, new = super().single_step_functional_forward(inputs, (states[0].clone(),))
        states[0].data.copy_(new[0].data)
        return outputs, new


class ReadsItsMemory(EMPFNode):
    def single_step_functional_forward(self, inputs, states, **kwargs):
        return super().single_step_functional_forward(inputs, (self.v + 0 * states[0],))


class Counts(EMPFNode):
    """Holds a state that is no memory."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * self.calls


class KeepsItsState(EMPFNode):
    def reset(self):
        pass


class StaysInTheGraph(EMPFNode):
    def detach(self):
        pass


class KeepsTheTimeOfAnotherBatch(EMPFNode):
    def __init__(self, **kwargs):
        super().__init__(4, **kwargs)

    def materialize_states(self, inputs, states, step_mode):
        return (*super().materialize_states(inputs, states, step_mode)[:-1], states[-1])


class CannotBePickled(EMPFNode):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hook = lambda: None


class SpikesInFloat32(EMPFNode):
    def forward(self, x):
        return super().forward(x).to(torch.promote_types(x.dtype, torch.float32))


class RecordsNothing(EMPFNode):
    def multi_step_forward(self, x_seq):
        s_seq = super().multi_step_forward(x_seq)
        self.v_seq = None
        return s_seq


class CutsTheFinalState(EMPFNode):
    def sequence(self, x_seq, states, t):
        s_seq, (v,), v_seq = super().sequence(x_seq, states, t)
        return s_seq, (v.detach(),), v_seq


class WantsContiguousInput(EMPFNode):
    def forward(self, x):
        return super().forward(x.view(-1).view(x.shape))


class ReadsAValue(EMPFNode):
    def forward(self, x):
        return super().forward(x) if x.detach().sum().item() < 1e9 else x


class IsNoDerivative(HDLIFNode):
    """Straight through a quantiser: not what finite differences give."""


BROKEN = {
    "single_step_equals_multi_step": (ForgetsTheState, "outputs"),
    "purity": (WritesIntoTheState, "arguments and parameters"),
    "functional_form": (ReadsItsMemory, "outputs"),
    "state_restoration": (Counts, "outputs"),
    "reset": (KeepsItsState, "float"),
    "detach": (StaysInTheGraph, "still in a graph"),
    "batch_size": (KeepsTheTimeOfAnotherBatch, "out of bounds"),
    "copies": (CannotBePickled, "pickle"),
    "precision": (SpikesInFloat32, "torch.float32 spikes for torch.bfloat16 input"),
    "potentials": (RecordsNothing, "v_seq is not"),
    "final_state_gradient": (CutsTheFinalState, "gradients"),
    "layouts": (WantsContiguousInput, "view size is not compatible"),
    "memopt": (ReadsItsMemory, "different metadata"),
    "compiled": (ReadsAValue, "data-dependent"),
    "exported": (ReadsAValue, "data-dependent"),
    "gradcheck": (IsNoDerivative, "Jacobian mismatch"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_check_catches_a_broken_neuron(name):
    broken, message = BROKEN[name]
    check = {check.__name__: check for check in CHECKS}[name]
    torch.manual_seed(0)
    with pytest.raises((AssertionError, RuntimeError), match=message):
        check(Subject(broken, (2, 3, 4, 4)))


def test_every_check_has_a_neuron_that_fails_it():
    assert {check.__name__ for check in CHECKS} == set(BROKEN)
