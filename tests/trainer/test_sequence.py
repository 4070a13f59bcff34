"""The boundary of a rule: what it refuses in one line, and a sequence that is in progress, left or never begun."""

import gc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer, neuron
from torch import nn

from sj_online import predict
from sj_online.loss import OverWindow, over_window
from sj_online.trainer import BPTT, OTTT, SLTT, STOL, RandomBP, TimeSlicing

T, N = 5, 4
X, Y = torch.rand(T, N, 8, generator=torch.Generator().manual_seed(1)) * 2, torch.tensor([0, 1, 2, 0])


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(layer.Linear(8, 8), neuron.LIFNode(v_threshold=0.2), layer.Linear(8, 3))


def sgd(net, lr=0.1, **options):
    return torch.optim.SGD(net.parameters(), lr, **options)


def vector(net):
    return nn.utils.parameters_to_vector(net.parameters()).detach().clone()


@pytest.mark.parametrize(
    ("value", "steps"),
    [
        (None, True),
        (True, True),
        (1, True),
        (torch.tensor(True), True),
        (torch.tensor(0.3), True),
        (np.bool_(True), True),
        (np.float64(0.2), True),
        ([0], True),
        (False, False),
        (0, False),
        (0.0, False),
        (torch.tensor(False), False),
        (torch.tensor([False]), False),
        (np.bool_(False), False),
        (np.array(False), False),
        ([], False),
    ],
)
def test_before_step_may_return_any_truth_value(net, value, steps):
    before, asked = vector(net), []
    rule = SLTT(net, sgd(net), update="step", before_step=lambda: asked.append(1) or value)
    rule.train_step(X, Y)
    assert (vector(net) != before).any() == steps and len(asked) == T
    assert all(p.grad is None for p in net.parameters()), "the gradient of a step that was left out is gone"


def test_a_step_that_is_left_out_leaves_the_optimizer_alone(net):
    rule = SLTT(net, sgd(net, momentum=0.9, weight_decay=0.1), before_step=lambda: torch.tensor(False))
    rule.train_step(X, Y)
    assert not rule.optimizer.state


def test_over_window_marks_no_function_of_the_caller(net):
    def mine(outputs, y):
        return F.cross_entropy(outputs.flatten(0, -2) if outputs.dim() == 3 else outputs, y.repeat(len(outputs) // N))

    names = set(vars(mine)), mine.__name__
    whole = over_window(F.cross_entropy), over_window(mine)
    assert all(isinstance(loss, OverWindow) for loss in whole) and (set(vars(mine)), mine.__name__) == names
    assert not vars(F.cross_entropy)
    shapes = []
    for loss_fn in (F.cross_entropy, over_window(lambda o, y: shapes.append(o.shape) or F.cross_entropy(o.mean(0), y))):
        SLTT(net, sgd(net), loss_fn=loss_fn).train_step(X, Y)
    assert shapes == [(1, N, 3)] * T


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: SLTT(net, torch.optim.LBFGS(net.parameters())), "optimizer=LBFGS evaluates the loss anew"),
        (
            lambda net: SLTT(net, sgd(net), loss_fn=nn.CrossEntropyLoss(reduction="none")).train_step(X, Y),
            r"gives a tensor of shape \(4,\), not a scalar: reduce it to its mean",
        ),
        (
            lambda net: BPTT(net, sgd(net), loss_fn=over_window(lambda o, y: o)).train_step(X, Y),
            r"gives a tensor of shape \(5, 4, 3\), not a scalar",
        ),
        (lambda net: SLTT(net, sgd(net), loss_fn=lambda o, y: 1.0).train_step(X, Y), "gives a float, not a scalar"),
        (lambda net: SLTT(net, sgd(net)).train_step(X[:, :0], Y[:0]), "T=5 steps of N=0 samples"),
        (lambda net: SLTT(net, sgd(net), num_steps=3).train_step(X[0, :0], Y[:0]), "T=3 steps of N=0 samples"),
        (lambda net: SLTT(net, sgd(net)).train_step(X.numpy(), Y), "x is a ndarray, not a tensor"),
        (lambda net: SLTT(net, sgd(net)).train_step(X.tolist(), Y), "x is a list, not a tensor"),
        (lambda net: SLTT(net, sgd(net)).train_step(torch.tensor(1.0), Y), "no time axis"),
        (lambda net: SLTT(net, sgd(net)).train_step(np.float32(1), Y), "x is a float32"),
        (lambda net: SLTT(net, sgd(net)).train_step(X, Y.numpy()), "y is a ndarray"),
        (lambda net: SLTT(net, sgd(net)).train_step(X, [0, 1, 2, 0]), "y is a list"),
        (lambda net: SLTT(net, sgd(net)).train_step(X.transpose(0, 1), Y), r"\[N, T, ...\]\? give x.transpose\(0, 1\)"),
        (lambda net: list(SLTT(net, sgd(net)).gradients(X, Y[:2])), "has N=4, but y has 2 targets"),
        (lambda net: SLTT(net, sgd(net)).train_step(X, Y, mask=torch.ones(T)), r"mask of shape \(5,\) is not \[T, N\]"),
    ],
)
def test_what_a_rule_cannot_take_is_one_clear_line(net, call, message):
    before = vector(net)
    with pytest.raises(ValueError, match=message) as error:
        call(net)
    assert "\n" not in str(error.value)
    assert (vector(net) == before).all()
    SLTT(net, sgd(net)).train_step(X, Y)


RULES = [SLTT, OTTT, STOL, TimeSlicing, BPTT]


@pytest.mark.parametrize("make", RULES)
def test_a_sequence_in_progress_refuses_what_would_reset_it(net, make):
    rule = make(net, sgd(net, 0.0))
    list(rule.gradients(X, Y))
    want, refused = [p.grad.clone() for p in net.parameters()], 0
    net.zero_grad()
    around = nn.Sequential(net, nn.Identity())
    for _ in rule.gradients(X, Y):
        for call in (
            lambda: rule.predict(X),
            lambda: predict(net, X),
            lambda: predict(around, X),
            lambda: predict(nn.Sequential(net[1]), X),
            lambda: rule.train_step(X, Y),
            lambda: SLTT(net, sgd(net)).train_step(X, Y),
            lambda: list(rule.gradients(X, Y)),
            lambda: list(SLTT(net, sgd(net)).stream([(X[0], Y)])),
        ):
            with pytest.raises(RuntimeError, match="sequence") as error:
                call()
            assert "\n" not in str(error.value)
            refused += 1
    assert refused >= 8
    assert all(map(torch.equal, want, [p.grad for p in net.parameters()]))
    predict(nn.Linear(8, 3), X)
    rule.predict(X)


def test_before_step_and_a_stream_are_inside_of_a_sequence(net):
    said = []

    def before_step():
        with pytest.raises(RuntimeError, match="predict"):
            predict(net, X)
        with pytest.raises(RuntimeError, match="in progress"):
            rule.train_step(X, Y)
        said.append(1)

    rule = SLTT(net, sgd(net), update="step", before_step=before_step)
    rule.train_step(X, Y)
    stream = rule.stream((x, Y) for x in X)
    next(stream)
    with pytest.raises(RuntimeError, match="predict"):
        predict(net, X)
    stream.close()
    predict(net, X)
    assert len(said) == T + 1


def test_gradients_that_nobody_iterates_say_so_at_once_and_leave_no_update(net):
    rule = SLTT(net, sgd(net))
    with pytest.warns(UserWarning, match=r"gradients\(\) was not iterated"):
        rule.gradients(X, Y)
        gc.collect()
    before = vector(net)
    with pytest.raises(RuntimeError, match=r"gradients\(\) was not iterated, so it has left no gradient"):
        rule.update_weights()
    assert (vector(net) == before).all()
    rule.train_step(X, Y)  # needs none of them
    assert (vector(net) != before).any()
    list(rule.gradients(X, Y))
    rule.update_weights()


def test_held_gradients_that_are_iterated_later_are_no_fault(net):
    rule = SLTT(net, sgd(net))
    later = rule.gradients(X, Y)
    with pytest.raises(RuntimeError, match="not iterated"):
        rule.update_weights()
    assert len(list(later)) == T
    rule.update_weights()
    assert list(later) == []


@pytest.mark.parametrize("make", RULES)
@pytest.mark.parametrize("leave", ["break", "error", "close", "interrupt"])
def test_a_loop_may_be_left_at_any_time(net, make, leave):
    """The next sequence is that of a network that was never in the loop."""
    members = [(type(m), set(vars(m))) for m in net.modules()]

    def first_only():
        rule = make(net, sgd(net))
        loop = rule.gradients(X, Y)
        for _ in loop:
            if leave == "error":
                raise KeyError
            if leave == "interrupt":
                raise KeyboardInterrupt
            break
        if leave == "close":
            rule.close()
            assert list(loop) == []

    try:
        first_only()
    except (KeyError, KeyboardInterrupt):
        assert leave in ("error", "interrupt")
    assert [(type(m), set(vars(m))) for m in net.modules()] == members
    net.zero_grad()
    list(make(net, sgd(net)).gradients(X, Y))
    ours = [p.grad.clone() for p in net.parameters()]
    torch.manual_seed(0)
    fresh = nn.Sequential(layer.Linear(8, 8), neuron.LIFNode(v_threshold=0.2), layer.Linear(8, 3))
    list(make(fresh, sgd(fresh)).gradients(X, Y))
    assert all(map(torch.equal, ours, [p.grad for p in fresh.parameters()]))


def test_a_held_loop_that_is_left_in_the_middle_is_named_and_can_be_closed(net):
    rule = SLTT(net, sgd(net))
    loop = rule.gradients(X, Y)
    next(loop)
    with pytest.raises(RuntimeError, match=r"finish it, or close\(\) it"):
        rule.train_step(X, Y)
    rule.close()
    rule.train_step(X, Y)


@pytest.mark.parametrize("make", [*RULES, RandomBP])
def test_the_third_batch_makes_no_call_more_than_its_own(net, make):
    """The first is preceded by a look at the network, the second followed by one for silent neurons."""
    calls = []
    net[2].register_forward_hook(lambda *_: calls.append(1))
    rule = make(net, sgd(net))
    for _ in range(2):
        rule.train_step(X, Y)
    calls.clear()
    rule.train_step(X, Y)
    assert len(calls) == (2 * T - 1 if make is STOL else T)
    calls.clear()
    rule.predict(X)
    assert len(calls) == T


def test_networks_that_share_a_module_without_state_train_beside_each_other():
    """The host's neurons share the surrogate that is the default of their constructor."""
    nets = [nn.Sequential(nn.Linear(3, 2), neuron.LIFNode()) for _ in range(2)]
    assert nets[0][1].surrogate_function is nets[1][1].surrogate_function
    first = SLTT(nets[0], sgd(nets[0])).gradients(torch.rand(3, 2, 3), torch.tensor([0, 1]))
    next(first)
    SLTT(nets[1], sgd(nets[1])).train_step(torch.rand(3, 2, 3), torch.tensor([0, 1]))
    with pytest.raises(RuntimeError, match="in progress"):
        SLTT(nets[0], sgd(nets[0])).train_step(torch.rand(3, 2, 3), torch.tensor([0, 1]))
    first.close()
