"""Copies made in the middle of training, interrupts at any line, and two trainings at once."""

import copy
import io
import pickle
import sys
import threading

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from sj_online import install
from sj_online.trainer import NDOT, OTTT, STOL

RULES = {"OTTT": OTTT, "NDOT": NDOT, "STOL": STOL}


def lif() -> neuron.LIFNode:
    return neuron.LIFNode(2.0, decay_input=False, v_threshold=0.2, v_reset=None, detach_reset=True)


class Shifted(layer.Linear):
    """A layer; the tests give one instance a forward of its own."""

    def shifted(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.5


def network(special: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(layer.Linear(8, 8), lif(), Shifted(8, 8), lif(), layer.Linear(8, 3))
    if special:
        nn.utils.parametrizations.weight_norm(net[0])
        net[2].forward = net[2].shifted
    return net


def of_torch_save(net: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def shallow(net: nn.Module) -> nn.Module:
    """Copies of the modules that share their parameters."""
    made = copy.copy(net)
    made._modules = {name: copy.copy(module) for name, module in net._modules.items()}
    return made


# Parametrised modules cannot be pickled.
COPIES = {
    "deepcopy": (copy.deepcopy, True),
    "copy": (shallow, False),
    "pickle": (lambda net: pickle.loads(pickle.dumps(net)), False),
    "torch.save": (of_torch_save, False),
}
BATCH = (torch.rand(4, 2, 8) * 2, torch.tensor([0, 2]))


def detached(net: nn.Module) -> nn.Module:
    """In the middle of a forward the memories are parts of a graph, which no tensor can be copied with."""
    for module in net.modules():
        if isinstance(module, neuron.LIFNode) and isinstance(module.v, Tensor):
            module.v = module.v.detach()
    return net


def trained(rule: type, how: str, where: str) -> tuple[nn.Module, list[nn.Module], list[dict]]:
    """The network, copies of it that were made while it was trained, and its weights then."""
    make, special = COPIES[how]
    net = network(special)
    kept, states = [], []

    def keep(*_) -> None:
        if where == "hook":
            handle.remove()  # the copy is without it
        kept.append(make(detached(net)))
        states.append({name: p.detach().clone() for name, p in net.state_dict().items()})

    before_step = keep if where == "step" else None
    made = rule(net, torch.optim.SGD(net.parameters(), 0.1), update="step", before_step=before_step)
    if where == "hook":
        made.train_step(*BATCH)  # the network has been looked at
        handle = net[1].register_forward_pre_hook(keep)
    made.train_step(*BATCH)
    return net, kept, states


@pytest.mark.parametrize("where", ["step", "hook"])
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("rule", RULES)
def test_copies_made_while_training_are_plain_networks(rule, how, where):
    net, kept, states = trained(RULES[rule], how, where)
    assert len(kept) == (1 if where == "hook" else 4)
    plain = network(COPIES[how][1])
    x = torch.rand(2, 8)
    for made, state in zip(kept, states, strict=True):
        assert [type(m).__name__ for m in made.modules()] == [type(m).__name__ for m in plain.modules()]
        assert all(install.plain(m) is type(m) for m in made.modules())
        if how == "copy":
            continue
        functional.reset_net(made)
        plain.load_state_dict(state)
        functional.reset_net(plain)
        if not COPIES[how][1]:
            assert torch.equal(made(x), plain(x))
        before = made[4](torch.ones(1, 8))
        net[4].bias.data.add_(100.0)
        assert torch.equal(made[4](torch.ones(1, 8)), before)
        made[4].bias.data.add_(1.0)
        assert torch.allclose(made[4](torch.ones(1, 8)), before + 1)


def interrupted(rule, frames: tuple[str, ...], at: int) -> bool:
    """Train, with a KeyboardInterrupt at the n-th line that is run in these files; whether there was one."""
    seen = 0

    def trace(frame, event, arg):
        nonlocal seen
        if not frame.f_code.co_filename.endswith(frames):
            return None
        if event == "line":
            seen += 1
            if seen == at:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        rule.train_step(*BATCH)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


FILES = {
    "OTTT": ("sj_online/install.py", "trainer/traced.py"),
    "NDOT": ("sj_online/install.py", "trainer/traced.py", "trainer/ndot.py"),
    "STOL": ("sj_online/install.py", "trainer/stol.py", "trainer/base.py"),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("fresh", [True, False], ids=["while it is looked at", "afterwards"])
def test_an_interrupt_at_any_line_leaves_nothing_that_the_next_sequence_does_not_undo(rule, fresh):
    hit = []
    for at in [*range(1, 60, 7), *range(60, 280, 17), *range(280, 1200, 97)]:
        net = network(special=False)
        made = RULES[rule](net, torch.optim.SGD(net.parameters(), 0.0))
        other = RULES[rule](net, torch.optim.SGD(net.parameters(), 0.0))
        if not fresh:
            made.train_step(*BATCH)
        hit.append(interrupted(made, FILES[rule], at))
        expected = network(special=False)
        for each in (other, made):
            each.train_step(*BATCH)
            assert all(install.plain(m) is type(m) and "forward" not in vars(m) for m in net.modules())
            assert not any("reset" in vars(m) for m in net.modules())
        functional.reset_net(net)
        assert torch.equal(net(BATCH[0][0]), expected(BATCH[0][0]))
    assert sum(hit) > 8


@pytest.mark.parametrize("at", range(1, 70, 4))
def test_an_interrupted_ndot_does_not_block_the_next(at):
    net = network(special=False)
    rule = NDOT(net, torch.optim.SGD(net.parameters(), 0.1))
    rule.train_step(*BATCH)
    assert interrupted(rule, ("trainer/ndot.py",), at)
    rule.train_step(*BATCH)


def test_two_ndot_trainings_in_two_threads_work_or_refuse():
    errors, done = [], []

    def train() -> None:
        net = network(special=False)
        rule = NDOT(net, torch.optim.SGD(net.parameters(), 0.1))
        for _ in range(6):
            try:
                rule.train_step(*BATCH)
                done.append(net)
            except RuntimeError as error:
                errors.append(str(error))

    threads = [threading.Thread(target=train) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) + len(errors) == 12 and done
    assert all("NDOT is training another network" in error for error in errors)
    train()
    assert len(done) + len(errors) == 18 and all(install.plain(m) is type(m) for net in done for m in net.modules())


def test_a_second_ndot_inside_the_first_refuses():
    a, b = network(special=False), network(special=False)
    inner = NDOT(b, torch.optim.SGD(b.parameters(), 0.1))
    first = NDOT(a, torch.optim.SGD(a.parameters(), 0.1)).gradients(*BATCH)
    next(iter(first))
    with pytest.raises(RuntimeError, match="NDOT is training another network"):
        inner.train_step(*BATCH)
    first.close()
    inner.train_step(*BATCH)
