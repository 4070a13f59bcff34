"""A step that STOL runs again: every kind of state as if it had run once, or a refusal."""

import itertools
import random

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import base, layer, neuron
from stol_networks import EXACT, HARD, N, T, gradient, sgd
from torch import nn
from torch.ao.quantization import MovingAverageMinMaxObserver

from sj_online.trainer import BPTT, SLTT, STOL


class Clock(nn.Module):
    """Counts steps in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("t", torch.zeros(()))

    def reset(self):
        self.t.zero_()

    def forward(self, x):
        self.t += 1
        return x + 0.1 * self.t.clone()


class Replaced(Clock):
    """The same, by a new tensor each step."""

    def forward(self, x):
        self.t = self.t + 1
        return x + 0.1 * self.t


class Counter(nn.Module):
    """Counts in a plain number."""

    t = 0

    def reset(self):
        self.t = 0

    def forward(self, x):
        self.t += 1
        return x * (1 + 0.1 * self.t)


class Kept(base.MemoryModule):
    """A memory of the host's, and a list beside it."""

    def __init__(self):
        super().__init__()
        self.register_memory("last", 0.0)
        self.seen = []

    def reset(self):
        super().reset()
        self.seen = []

    def forward(self, x):
        self.seen.append(len(self.seen))
        y = x + 0.5 * self.last + 0.01 * len(self.seen)
        self.last = y
        return y


class Drawing(nn.Module):
    """Random by a generator of its own or the process's."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, x):
        return x * (0.5 + self.draw(self))


def drawing(draw, **attributes):
    module = Drawing(draw)
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def observer():
    return MovingAverageMinMaxObserver(averaging_constant=0.3)


def spectral():
    return nn.utils.spectral_norm(nn.Linear(8, 8))


MODULES = {
    "buffer": Clock,
    "buffer made anew": Replaced,
    "number": Counter,
    "memory and list": Kept,
    "observer": observer,
    "instance norm": lambda: nn.InstanceNorm1d(8, track_running_stats=True),
    "batch norm": lambda: layer.BatchNorm1d(8),
    "spectral norm": spectral,
    "dropout": lambda: nn.Dropout(0.4),
    "python": lambda: drawing(lambda _: random.random()),
    "numpy": lambda: drawing(lambda _: np.random.rand()),
    "own generator": lambda: drawing(
        lambda m: torch.rand((), generator=m.own).item(), own=torch.Generator().manual_seed(3)
    ),
    "own python": lambda: drawing(lambda m: m.own.random(), own=random.Random(3)),
    "own numpy": lambda: drawing(lambda m: m.own.random(), own=np.random.default_rng(3)),
    "array": lambda: drawing(lambda m: m.own.__iadd__(0.1)[0], own=np.zeros(1)),
}


def network(name):
    torch.manual_seed(0)
    net = nn.Sequential(layer.Linear(8, 8), MODULES[name](), neuron.LIFNode(**HARD), layer.Linear(8, 3))
    if name == "instance norm":
        net.insert(1, nn.Unflatten(1, (8, 1)))
        net[1] = nn.Unflatten(1, (2, 4))
        net[2] = nn.InstanceNorm1d(2, track_running_stats=True)
        net.insert(3, nn.Flatten())
    return net.double() if name != "observer" else net


def seed():
    torch.manual_seed(2), random.seed(2), np.random.seed(2)


def data(dtype=torch.float64):
    torch.manual_seed(1)
    return torch.rand(T, N, 8, dtype=dtype) * 1.5, torch.randint(3, (N,))


def state(net):
    found = {name: value.clone() for name, value in net.named_buffers()}
    for name, module in net.named_modules():
        for key in ("t", "seen", "last", "own", "v"):
            if isinstance(value := getattr(module, key, None), int | list | np.ndarray | torch.Tensor):
                found[f"{name}.{key}"] = torch.as_tensor(value).clone()
    return found


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("horizon", [2, 4])
def test_outputs_and_states_are_those_of_the_plain_forward(name, horizon):
    """Two sequences, the weights at rest."""
    results = []
    for make in (SLTT, lambda *args, **options: STOL(*args, horizon, **options)):
        net = network(name)
        x, y = data(next(net.parameters()).dtype)
        rule = make(net, sgd(net, 0.0), update="sequence")
        seed()
        outputs = [rule.train_step(x, y).output for _ in range(2)]
        results.append((outputs, state(net), torch.rand(1), random.random(), np.random.rand()))
    (plain, states, *drawn), (ours, our_states, *our_draws) = results
    assert all(map(torch.equal, plain, ours)) and drawn == our_draws
    assert states.keys() == our_states.keys() and len(states) >= 1
    for key, value in states.items():
        assert torch.equal(value, our_states[key]), key


# The vectors of the spectral norm are changed in place, which a graph of all steps does not outlive.
@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"observer", "spectral norm"}))
def test_with_all_steps_the_gradient_is_that_of_backpropagation_through_time(name):
    gradients = []
    for make in (BPTT, lambda *args, **options: STOL(*args, horizon=T, **options), SLTT):
        net = network(name)
        rule = make(net, sgd(net), step_scale="sum")
        x, y = data()
        random.seed(2), np.random.seed(2)
        gradients.append(gradient(rule, x, y))
    torch.testing.assert_close(gradients[1], gradients[0], **EXACT)
    assert (gradients[2] - gradients[0]).abs().max() > 1e-6


@pytest.mark.parametrize("name", ["buffer", "buffer made anew", "instance norm", "batch norm", "spectral norm"])
def test_buffers_stay_the_same_tensors(name):
    """Also for those who hold them (an averaged copy, another rank's bucket)."""
    net = network(name)
    x, y = data()
    held, before = dict(net.named_buffers()), {k: v.clone() for k, v in net.named_buffers()}
    STOL(net, sgd(net)).train_step(x, y)
    if name != "buffer made anew":
        assert all(buffer is held[key] for key, buffer in net.named_buffers())
    assert any((value != before[key]).any() for key, value in net.named_buffers())


def hidden_clock():
    ticks = itertools.count()
    return drawing(lambda _: 0.1 * next(ticks))


class Elsewhere:
    t = 0


UNKNOWN = {
    "closure": hidden_clock,
    "iterator": lambda: drawing(lambda m: 0.1 * next(m.own), own=itertools.count()),
    "object": lambda: drawing(lambda m: setattr(m.own, "t", m.own.t + 0.1) or m.own.t, own=Elsewhere()),
    "class": lambda: drawing(lambda m: setattr(Elsewhere, "t", Elsewhere.t + 0.1) or Elsewhere.t),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_cannot_be_put_back_is_refused(name):
    torch.manual_seed(0)
    net = nn.Sequential(layer.Linear(8, 8), UNKNOWN[name](), neuron.LIFNode(**HARD), layer.Linear(8, 3)).double()
    x, y = data()
    with pytest.raises(ValueError, match="running a past step again changes the network's output") as error:
        STOL(net, sgd(net)).train_step(x, y)
    assert "\n" not in str(error.value)
    STOL(net, sgd(net), horizon=1).train_step(x, y)  # runs nothing again


def test_a_state_that_changes_no_output_is_named():
    class Wrapped:
        """Behaves as a number that a module counts, and is none that could be copied."""

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.box, self.count = Wrapped(), 0
            self.box.t = 0

        def forward(self, x):
            self.box.t += 1
            self.count = self.box.t
            return x

    net = nn.Sequential(layer.Linear(8, 8), Odd(), neuron.LIFNode(**HARD), layer.Linear(8, 3)).double()
    with pytest.raises(ValueError, match=r"leaves '1.count' other than it was"):
        STOL(net, sgd(net)).train_step(*data())


def test_a_module_that_comes_later_is_checked_too():
    net = network("number")
    rule = STOL(net, sgd(net))
    rule.train_step(*data())
    net.insert(1, hidden_clock())
    with pytest.raises(ValueError, match="running a past step again"):
        rule.train_step(*data())


def test_the_second_sequence_makes_no_call_more_than_its_steps_and_their_past():
    net, calls = network("number"), []
    net[3].register_forward_hook(lambda *_: calls.append(1))
    rule = STOL(net, sgd(net), horizon=3)
    for _ in range(2):
        rule.train_step(*data())
    calls.clear()
    rule.train_step(*data())
    assert len(calls) == T + (T - 1) + (T - 2)


def test_statistics_of_the_past_are_those_of_norms_that_train_only():
    net = nn.Sequential(
        layer.Linear(8, 8), Clock(), layer.BatchNorm1d(8), layer.BatchNorm1d(8).eval(), neuron.LIFNode(**HARD)
    ).double()
    x, y = data()
    STOL(net, sgd(net), history_statistics=True).train_step(x, y)
    assert net[1].t == T and net[2].num_batches_tracked == 2 * T - 1 and net[3].num_batches_tracked == 0


class Boxed(nn.Module):
    """Counts in an object of its own kind, which a reset empties: twice the same without a replay."""

    def __init__(self):
        super().__init__()
        self.box = type("Box", (), {"count": 0})()

    def reset(self):
        self.box.count = 0

    def forward(self, x):
        self.box.count += 1
        return x * (1 + 0.5 * self.box.count)


def test_it_is_the_replay_that_is_tried():
    net = nn.Sequential(Boxed(), nn.Linear(3, 4), neuron.LIFNode(v_threshold=0.2), nn.Linear(4, 3)).double()
    x, y = torch.rand(T, N, 3, dtype=torch.float64) * 2, torch.zeros(N, dtype=torch.long)
    SLTT(net, sgd(net)).train_step(x, y)
    with pytest.raises(ValueError, match="running a past step again changes the network's output"):
        STOL(net, sgd(net)).train_step(x, y)


def test_an_output_that_is_nan_is_no_other_output():
    net = nn.Sequential(nn.Linear(3, 4), neuron.LIFNode(), nn.Linear(4, 3)).double()
    x, y = torch.rand(T, N, 3, dtype=torch.float64), torch.zeros(N, dtype=torch.long)
    with torch.no_grad():
        net[2].bias[0] = float("nan")
    assert STOL(net, sgd(net, 0.0)).train_step(x, y).loss.isnan()
