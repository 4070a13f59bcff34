"""Every kind of state is kept, put back and cut, in whatever it is held."""

import random
from collections import deque
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import base, layer, neuron
from torch import nn

from sj_online.state import State, Structure, detach, looked_at, replaying, sandbox
from sj_online.trainer import BPTT, SLTT, STOL, TimeSlicing
from sj_online.tree import tensors

T, N = 6, 4
EXACT = {"rtol": 0, "atol": 1e-12}


@dataclass
class Pair:
    a: object
    b: object


CONTAINERS = {
    "tensor": (lambda v: v, lambda h: h),
    "list": (lambda v: [v], lambda h: h[0]),
    "tuple": (lambda v: (v, 1), lambda h: h[0]),
    "dict": (lambda v: {"v": v}, lambda h: h["v"]),
    "deque": (lambda v: deque([v], maxlen=2), lambda h: h[-1]),
    "dataclass": (lambda v: Pair(v, None), lambda h: h.a),
    "nested": (lambda v: {"x": [Pair((v,), "name")]}, lambda h: h["x"][0].a[0]),
}


class Echo(base.MemoryModule):
    """Adds half of what it gave a step before; its memory is in a container, in place or made anew."""

    def __init__(self, form, where):
        super().__init__()
        self.form, self.where = form, where
        if where == "memory":
            self.register_memory("held", None)
        else:
            self.__dict__["held"] = None

    def reset(self):
        super().reset()
        self.held = None

    def single_step_forward(self, x):
        wrap, unwrap = CONTAINERS[self.form]
        y = x if self.held is None else x + 0.5 * unwrap(self.held)
        if self.where == "in place" and self.held is not None:
            if isinstance(self.held, list):
                self.held[0] = y
            elif isinstance(self.held, dict):
                self.held["v"] = y
            else:
                self.held.append(y)
        else:
            self.held = wrap(y)
        return y


def network(form, where):
    torch.manual_seed(0)
    return nn.Sequential(
        layer.Linear(8, 8), Echo(form, where), neuron.LIFNode(v_threshold=0.4), layer.Linear(8, 3)
    ).double()


def data():
    torch.manual_seed(1)
    return torch.rand(T, N, 8, dtype=torch.float64) * 2, torch.tensor([0, 1, 2, 0])


def sgd(net, lr=0.1):
    return torch.optim.SGD(net.parameters(), lr)


def gradient(rule, x, y):
    rule.net.zero_grad()
    list(rule.gradients(x, y))
    return torch.cat([p.grad.flatten() for p in rule.net.parameters()])


@pytest.mark.parametrize(
    ("form", "where"),
    [
        *((form, "memory") for form in CONTAINERS),
        *((form, "attribute") for form in CONTAINERS if form != "dict"),
        *((form, "in place") for form in ("list", "dict", "deque")),
    ],
)
def test_a_memory_in_any_container_is_cut_kept_and_put_back_as_a_tensor_is(form, where):
    x, y = data()
    plain, ours = network("tensor", "memory"), network(form, where)
    outputs = [SLTT(ours, sgd(ours, 0.0)).train_step(x, y).output]
    outputs.append(STOL(ours, sgd(ours, 0.0), update="sequence").train_step(x, y).output)
    torch.testing.assert_close(outputs[1], outputs[0], **EXACT)
    gradients = {}
    for make in (
        SLTT,
        lambda *args: STOL(*args, horizon=3, update="sequence"),
        lambda *args: TimeSlicing(*args, k=2, update="sequence"),
        BPTT,
    ):
        gradients[make] = gradient(make(ours, sgd(ours)), x, y)
        torch.testing.assert_close(gradients[make], gradient(make(plain, sgd(plain)), x, y), **EXACT)
    assert (gradients[SLTT] - gradients[BPTT]).abs().max() > 1e-4
    with torch.no_grad():  # the oracle of the output, by hand
        ours[1].reset(), ours[2].reset()
        want = torch.stack([ours(x_t) for x_t in x]).mean(0)
    torch.testing.assert_close(outputs[0], want, **EXACT)


def test_with_all_steps_the_replay_of_containers_is_backpropagation_through_time():
    x, y = data()
    for form in ("list", "dict", "dataclass", "nested"):
        net = network(form, "memory")
        ours = gradient(STOL(net, sgd(net), horizon=T, step_scale="mean", update="sequence"), x, y)
        torch.testing.assert_close(ours, gradient(BPTT(net, sgd(net)), x, y), **EXACT)


def test_detach_cuts_what_has_a_graph_and_keeps_the_container():
    class Holder(nn.Module):
        pass

    net, leaf = Holder(), torch.ones(2, requires_grad=True)
    net.plain, net.leaf_too = leaf * 2, [leaf]
    net.items, net.named, net.line, net.pair = [leaf * 3, 1], {"a": leaf * 4}, deque([leaf * 5], 3), Pair(leaf * 6, "b")
    held, named, untouched = net.items, net.named, net.leaf_too
    view = (leaf * 7)[:1]
    net.view = view
    detach(net)
    for value in (net.plain, net.items, net.named, net.line, net.pair, net.view):
        assert all(tensor.grad_fn is None and not tensor.requires_grad for tensor in tensors(value))
    assert net.items is held and net.named is named and net.leaf_too is untouched and net.leaf_too[0] is leaf
    assert (net.items[0] == 3).all() and net.items[1] == 1 and net.line.maxlen == 3 and net.pair.b == "b"


class Everything(nn.Module):
    """Something of every kind of state."""

    def __init__(self):
        super().__init__()
        self.register_buffer("buffer", torch.zeros(2))
        self.register_buffer("nothing", None)
        self.count, self.items, self.seen = 0, [torch.zeros(1)], set()
        self.pair, self.line = Pair(torch.zeros(1), 0), deque([0], 2)
        self.array = np.zeros(2)
        self.held = {"generator": [random.Random(4)]}
        self.torch, self.python = torch.Generator().manual_seed(3), random.Random(3)
        self.numpy, self.old_numpy = np.random.default_rng(3), np.random.RandomState(3)
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        self.buffer += 1
        self.count += 1
        self.items[0] = self.items[0] + 1
        self.items.append(torch.ones(1))
        self.seen.add(self.count)
        self.pair.a = self.pair.a + 1
        self.pair.b += 1
        self.line.append(self.count)
        self.array += 1
        self.new = self.count
        return self.drawn()

    def drawn(self):
        return [
            torch.rand((), generator=self.torch).item(),
            self.python.random(),
            self.held["generator"][0].random(),
            self.numpy.random(),
            self.old_numpy.rand(),
            torch.rand(()).item(),
            random.random(),
            np.random.rand(),
        ]

    def values(self):
        return [
            self.buffer.tolist(),
            self.count,
            [t.item() for t in self.items],
            set(self.seen),
            (self.pair.a.item(), self.pair.b),
            list(self.line),
            self.array.tolist(),
            getattr(self, "new", None),
        ]


def test_every_kind_of_state_is_put_back_as_often_as_asked():
    net = Everything()
    net(None)
    kept, before = State(net), net.values()
    first = net(None)
    net(None)
    after = net.values()
    for _ in range(2):
        kept.put()
        assert net.values() == before != after
        assert net(None) == first, "and every random number"
    del net.new
    kept.put()
    assert net.values() == before


def test_a_sandbox_leaves_the_same_objects_and_no_new_ones():
    net = Everything()
    objects = {name: vars(net)[name] for name in ("items", "seen", "pair", "line", "array")}
    buffer, values, modes = net.buffer, net.values(), net.training
    draws = net.drawn()
    net = Everything()
    objects = {name: vars(net)[name] for name in objects}
    buffer = net.buffer
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    expected_next = Everything().drawn()
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    with pytest.raises(KeyError), sandbox(net):
        net(None)
        net.eval()
        raise KeyError
    assert net.values() == values and net.buffer is buffer and net.training is modes
    assert all(vars(net)[name] is held for name, held in objects.items()) and not hasattr(net, "new")
    assert net.drawn() == expected_next != draws


def test_a_recorder_is_told_only_while_it_is_looked_at():
    assert not replaying()
    with looked_at(nn.Identity()):
        assert replaying()
    assert not replaying()


def test_a_structure_is_equal_until_something_changes():
    def changed(change):
        net = nn.Sequential(nn.Linear(2, 2), neuron.LIFNode(), nn.Linear(2, 2))
        before = Structure(net)
        assert before == Structure(net)
        change(net)
        return before != Structure(net)

    assert not changed(lambda net: net(torch.rand(1, 2)))
    assert not changed(lambda net: net.load_state_dict(net.state_dict()))
    assert not changed(lambda net: net.eval())
    for change in (
        lambda net: net.append(neuron.IFNode()),
        lambda net: net.__setitem__(1, neuron.IFNode()),
        lambda net: net[0].requires_grad_(False),
        lambda net: setattr(net[0], "weight", nn.Parameter(torch.zeros(2, 2))),
        lambda net: net.__delitem__(2),
        lambda net: setattr(net[2], "bias", None),
        lambda net: setattr(net[1], "__class__", neuron.IFNode),
    ):
        assert changed(change)
    assert Structure(nn.Linear(2, 2)) != Structure(nn.Linear(2, 2)) and Structure(nn.Identity()) != 1
