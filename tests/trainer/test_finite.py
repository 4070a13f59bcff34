"""What is not finite reaches the reported loss, for spiking neurons too, and nothing waits for the device."""

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sj_online.neuron import EMPFNode
from sj_online.trainer import BPTT, FPTT, OTTT, SLTT, STOL, RandomBP, TimeSlicing
from sj_online.trainer.finite import poison, poison_of_all

T, N = 5, 4
RULES = [SLTT, OTTT, STOL, FPTT, RandomBP, TimeSlicing, BPTT]
NODES = {"lif": lambda: neuron.LIFNode(v_threshold=0.3), "empf": EMPFNode, "if": lambda: neuron.IFNode(0.3)}


def network(node):
    torch.manual_seed(0)
    return nn.Sequential(layer.Linear(8, 8), NODES[node](), layer.Linear(8, 6), NODES[node](), layer.Linear(6, 3))


def data():
    torch.manual_seed(1)
    return torch.rand(T, N, 8) * 2, torch.tensor([0, 1, 2, 0])


def sgd(net, lr=0.1):
    return torch.optim.SGD(net.parameters(), lr)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("make", RULES)
def test_an_input_that_is_not_finite_is_in_the_loss(make, node, bad):
    x, y = data()
    net = network(node)
    rule = make(net, sgd(net, 0.0))
    assert rule.train_step(x, y).loss.isfinite()
    x[T - 1, 0, 0] = bad  # at the end, where no later step can show it
    assert not rule.train_step(x, y).loss.isfinite()
    if make is not RandomBP:
        assert not any(window.loss.isfinite() for window in rule.gradients(x, y))


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("make", RULES)
def test_weights_and_gradients_that_are_not_finite_are_in_the_loss(make, node):
    x, y = data()
    for bad in (float("nan"), float("inf")):
        net = network(node)
        with torch.no_grad():
            net[0].weight[0, 0] = bad
        assert not make(net, sgd(net, 0.0)).train_step(x, y).loss.isfinite()
        if make is not RandomBP:
            net = network(node)
            with torch.no_grad():
                net[0].weight[0, 0] = bad
            windows = list(make(net, sgd(net)).gradients(x, y))
            assert windows and not any(window.loss.isfinite() for window in windows)
        net = network(node)

        def spoil(net=net, bad=bad):
            net[2].weight.grad = torch.full_like(net[2].weight, bad)

        rule = make(net, sgd(net), before_step=spoil)
        assert not rule.train_step(x, y).loss.isfinite()


@pytest.mark.parametrize("make", [SLTT, OTTT, TimeSlicing])
def test_a_stream_says_so_too(make):
    x, y = data()
    net = network("lif")
    rule = make(net, sgd(net))
    results = rule.stream((x[t % T], y) for t in range(8))
    assert next(results).loss.isfinite()
    with torch.no_grad():
        net[0].weight[0, 0] = torch.nan
    assert not next(results).loss.isfinite()
    results.close()
    clean = network("lif")
    x[1, 0, 0] = torch.inf
    losses = [bool(r.loss.isfinite()) for r in SLTT(clean, sgd(clean, 0.0)).stream((x_t, y) for x_t in x)]
    assert losses[:2] == [True, False]


def test_the_control_without_poison_hides_it():
    """A neuron turns NaN into no spike: without the addend the loss would be finite."""
    x, _ = data()
    x[:, 0, 0] = torch.nan
    net = network("lif")
    with torch.no_grad():
        assert net(x[0]).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_large_numbers_are_finite(dtype):
    largest = torch.finfo(dtype).max
    x = torch.full((3, 4), largest, dtype=dtype)
    assert poison(x) == 0 and poison(-x) == 0 and poison(x[:, ::2]) == 0
    net = nn.Linear(4, 3).to(dtype)
    assert poison_of_all(net) == 0
    with torch.no_grad():
        net.weight.fill_(largest), net.bias.fill_(-largest)
    assert poison_of_all(net) == 0
    net.bias.data[0] = torch.inf
    assert torch.as_tensor(poison_of_all(net)).isnan()
    assert poison(torch.ones(2, dtype=torch.long)) == 0 == poison_of_all(nn.Identity())


def test_finite_data_is_untouched():
    """The loss and the weights are to the bit those of a loop without any of this."""
    x, y = data()
    net, oracle = network("lif"), network("lif")
    result = BPTT(net, sgd(net)).train_step(x, y)
    losses = [nn.functional.cross_entropy(oracle(x_t), y) for x_t in x]
    loss = sum(losses[1:], losses[0]) / T
    loss.backward()
    sgd(oracle).step()
    torch.testing.assert_close(result.loss, loss.detach(), rtol=1e-6, atol=0)
    for ours, theirs in zip(net.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_steps_that_a_scaler_skips_are_no_fault():
    x, y = data()
    net = network("lif")
    optimizer = sgd(net)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    skipped = []

    def before_step():
        scaler.unscale_(optimizer)
        finite = all(p.grad.isfinite().all() for p in net.parameters())
        scaler.update(scaler.get_scale() / 2.0**40 if not finite else None)
        skipped.append(not finite)
        return finite

    def loss_fn(output, y):
        return 10 * nn.functional.cross_entropy(output, y)

    def backward(loss):
        scaler.scale(loss).backward()

    rule = SLTT(net, optimizer, loss_fn=loss_fn, step_scale="sum", before_step=before_step, backward=backward)
    losses = [rule.train_step(x, y).loss for _ in range(3)]
    assert skipped[0] and not skipped[-1]
    assert losses[0].isfinite() and losses[1].isfinite()


class Waits(TorchDispatchMode):
    """Counts what would wait for a device: reading a number, or asking where something is."""

    def __init__(self):
        super().__init__()
        self.waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        packet = getattr(func, "overloadpacket", None)
        aten = torch.ops.aten
        self.waits += packet in (aten._local_scalar_dense, aten.equal, aten.nonzero, aten.masked_select)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("make", [*RULES])
def test_a_step_does_not_wait_for_the_device(make, per_step):
    x, y = data()
    net = network("lif")
    rule = (
        make(net, sgd(net), update="step" if make not in (BPTT, FPTT) else None, per_step_targets=per_step)
        if (make not in (BPTT, FPTT))
        else make(net, sgd(net), per_step_targets=per_step)
    )
    y = y.expand(T, N) if per_step else y
    for _ in range(2):
        rule.train_step(x, y)
    counts = []
    for steps in (T, 2 * T):
        xs = torch.cat([x, x])[:steps]
        ys = torch.cat([y, y])[:steps] if per_step else y
        with Waits() as mode:
            rule.train_step(xs, ys)
        counts.append(mode.waits)
    assert counts[0] == counts[1], "no more for more steps"
    if make not in (FPTT, RandomBP):  # which look at the weights, and draw, once in a sequence
        assert counts == [0, 0]


def test_the_counter_counts():
    with Waits() as mode:
        torch.ones(2).sum().item()
    assert mode.waits == 1
