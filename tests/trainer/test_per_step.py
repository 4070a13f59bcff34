"""Targets of each step, masks, and endless streams."""

import gc
import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from sj_online import predict
from sj_online.loss import over_window
from sj_online.trainer import BPTT, FPTT, OTTT, SLTT, STOL, RandomBP, TimeSlicing

T, N, CLASSES = 6, 4, 3
EXACT = {"rtol": 0, "atol": 1e-12}
MASK = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 1, 0]])


def network():
    torch.manual_seed(0)
    node = {"tau": 2.0, "v_threshold": 0.4, "v_reset": None, "decay_input": False, "detach_reset": True}
    return nn.Sequential(
        layer.Linear(8, 8), neuron.LIFNode(**node), layer.Linear(8, 7), neuron.LIFNode(**node), layer.Linear(7, CLASSES)
    ).double()


def data(steps=T):
    torch.manual_seed(1)
    return torch.rand(steps, N, 8, dtype=torch.float64) * 2, torch.randint(CLASSES, (steps, N))


def sgd(net, lr=0.1, **options):
    return torch.optim.SGD(net.parameters(), lr, **options)


def vector(net):
    return nn.utils.parameters_to_vector(net.parameters()).detach().clone()


def gradient(rule, *arguments, **options):
    rule.net.zero_grad()
    list(rule.gradients(*arguments, **options))
    return torch.cat([p.grad.flatten() for p in rule.net.parameters()])


def step_loss(output, y, kept):
    """The loss of the rows that count, times their share."""
    rows = kept.bool()
    return F.cross_entropy(output[rows], y[rows]) * rows.sum() / N if rows.any() else output.sum() * 0


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("masked", [False, True])
def test_bptt_of_targets_of_each_step_is_autograd_of_the_loop(masked, step_mode):
    x, y = data()
    net, oracle = network(), network()
    mask = MASK if masked else torch.ones(T, N)
    outputs = torch.stack([oracle(x_t) for x_t in x])
    losses = torch.stack([step_loss(*each) for each in zip(outputs, y, mask, strict=True)])
    losses.mean().backward()
    functional.set_step_mode(net, step_mode)
    rule = BPTT(net, sgd(net, 0.0), per_step_targets=True)
    ours = gradient(rule, x, y, mask=MASK if masked else None)
    torch.testing.assert_close(ours, torch.cat([p.grad.flatten() for p in oracle.parameters()]), **EXACT)
    result = rule.train_step(x, y, mask=MASK if masked else None)
    torch.testing.assert_close(result.loss, losses.mean().detach(), **EXACT)
    torch.testing.assert_close(result.output, outputs.detach(), **EXACT)
    assert result.output.shape == (T, N, CLASSES)
    if masked:
        assert (ours - gradient(rule, x, y)).abs().max() > 1e-4


@pytest.mark.parametrize("make", [SLTT, OTTT, STOL, FPTT, lambda *args, **kw: TimeSlicing(*args, k=2, **kw)])
def test_a_masked_row_is_a_row_without_weight(make):
    """The oracle carries the mask in the targets, to a loss of all rows; no rule need know."""
    x, y = data()
    net = network()
    ours = gradient(make(net, sgd(net), per_step_targets=True), x, y, mask=MASK)

    def weighted(output, target):
        return step_loss(output, target[:, 0], target[:, 1])

    both = torch.stack([y, MASK], -1)
    oracle = gradient(make(net, sgd(net), loss_fn=weighted, per_step_targets=True), x, both)
    torch.testing.assert_close(ours, oracle, **EXACT)
    torch.testing.assert_close(
        gradient(make(net, sgd(net), per_step_targets=True), x, y, mask=torch.ones(T, N)),
        gradient(make(net, sgd(net), per_step_targets=True), x, y),
        **EXACT,
    )
    assert (ours - gradient(make(net, sgd(net), per_step_targets=True), x, y)).abs().max() > 1e-4


@pytest.mark.parametrize("compress", [False, True])
def test_updates_under_a_mask_are_a_hand_written_loop(compress):
    """A step without a row that counts moves nothing: no momentum, no weight decay."""
    x, y = data()
    net, oracle = network(), network()
    optimizer = sgd(oracle, momentum=0.9, weight_decay=0.1)
    for x_t, y_t, kept in zip(x, y, MASK, strict=True):
        output = oracle(x_t)
        if kept.any():
            optimizer.zero_grad()
            step_loss(output, y_t, kept).backward()
            optimizer.step()
        functional.detach_net(oracle)
    rule = SLTT(
        net,
        sgd(net, momentum=0.9, weight_decay=0.1),
        update="step",
        step_scale="sum",
        per_step_targets=True,
        compress=compress,
    )
    rule.train_step(x, y, mask=MASK)
    torch.testing.assert_close(vector(net), vector(oracle), **EXACT)


@pytest.mark.parametrize("make", [SLTT, OTTT, STOL, TimeSlicing])
@pytest.mark.parametrize("update", ["step", "sequence"])
def test_a_batch_of_which_nothing_counts_moves_nothing(make, update):
    x, y = data()
    net = network()
    rule = make(net, sgd(net, momentum=0.9, weight_decay=0.1), update=update)
    rule.train_step(x, y[0])
    before = vector(net)
    result = rule.train_step(x, y[0], mask=torch.zeros(T, N))
    assert (vector(net) == before).all() and result.loss == 0
    rule.train_step(x, y[0])
    assert (vector(net) != before).any()


def test_sequences_of_different_length_are_each_their_own():
    """What is padded counts for nothing, whatever stands there; each sample's gradient is that of its own length."""
    x, y = data()
    lengths = [6, 2, 4, 1]
    mask = torch.arange(T)[:, None] < torch.tensor(lengths)
    padded = torch.where(mask[..., None], x, 9.0)
    net = network()
    rule = SLTT(net, sgd(net), step_scale="sum", loss_fn=nn.CrossEntropyLoss())
    ours = gradient(rule, padded, y[0], mask=mask)
    each = sum(gradient(rule, x[:length, n : n + 1], y[0, n : n + 1]) for n, length in enumerate(lengths))
    torch.testing.assert_close(ours, each / N, **EXACT)


def test_a_loss_of_a_window_takes_its_targets_but_no_mask():
    x, y = data()
    net, seen = network(), []

    def loss(outputs, y):
        seen.append((outputs.shape, y))
        return F.cross_entropy(outputs.flatten(0, 1), y.flatten())

    whole = {"loss_fn": over_window(loss), "per_step_targets": True}
    for make, k in ((SLTT, 1), (lambda *a, **kw: TimeSlicing(*a, k=4, **kw), 4), (BPTT, T)):
        seen.clear()
        make(net, sgd(net), **whole).train_step(x, y)
        assert seen[0][0] == (k, N, CLASSES) and torch.equal(torch.cat([y for _, y in seen]), y)
        with pytest.raises(ValueError, match="takes no mask: give one of a step") as error:
            make(net, sgd(net), **whole).train_step(x, y, mask=MASK)
        assert "\n" not in str(error.value)


STREAMED = {
    "sltt": lambda *args, **kw: SLTT(*args, update="step", step_scale="sum", **kw),
    "sltt_as_in_the_paper": lambda *args, **kw: SLTT(*args, update="step", step_scale="sum", **kw),
    "ottt": lambda *args, **kw: OTTT(*args, update="step", step_scale="sum", **kw),
    "stol": lambda *args, **kw: STOL(*args, horizon=3, **kw),
    "slices": lambda *args, **kw: TimeSlicing(*args, k=2, **kw),
    "uneven": lambda *args, **kw: TimeSlicing(*args, k=4, **kw),
    "fptt": lambda *args, **kw: FPTT(*args, **kw),
}


@pytest.mark.parametrize("name", STREAMED)
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_a_stream_is_one_sequence_bit_for_bit(name, step_mode):
    x, y = data()
    weights, outputs, losses = [], [], []
    for streamed in (False, True):
        net = network()
        functional.set_step_mode(net, step_mode)
        rule = STREAMED[name](net, sgd(net, momentum=0.9), per_step_targets=True)
        if streamed:
            if name == "sltt_as_in_the_paper":
                rule.step_scale = "mean"  # of a stream it is the sum all the same
            k = rule.stride
            results = list(rule.stream(zip(x, y, strict=True)))
            sizes = torch.tensor([min(k, T - t) for t in range(0, T, k)], dtype=torch.float64)
            outputs.append((torch.stack([r.output for r in results]) * sizes[:, None, None]).sum(0) / T)
            losses.append((torch.stack([r.loss for r in results]) * sizes).sum() / T)
        else:
            result = rule.train_step(x, y)
            outputs.append(result.output.mean(0))
            losses.append(result.loss)
        weights.append(torch.cat([mean.flatten() for mean in rule.means]) if name == "fptt" else vector(net))
    assert (weights[0] == weights[1]).all() and (weights[0] != vector(network())).any()
    torch.testing.assert_close(outputs[1], outputs[0], **EXACT)
    torch.testing.assert_close(losses[1], losses[0], **EXACT)


def test_a_step_of_a_stream_without_target_runs_and_does_not_learn():
    x, y = data()
    net, oracle = network(), network()
    rule = SLTT(oracle, sgd(oracle, momentum=0.9), update="step", step_scale="sum", per_step_targets=True)
    rule.train_step(x, y, mask=(torch.arange(T) % 2 == 0)[:, None].expand(T, N))
    learning, weights = SLTT(net, sgd(net, momentum=0.9, weight_decay=0.0)), [vector(net)]
    for _ in learning.stream((x[t], None if t % 2 else y[t]) for t in range(T)):
        weights.append(vector(net))
    torch.testing.assert_close(weights[-1], vector(oracle), **EXACT)
    moved = [bool((a != b).any()) for a, b in itertools.pairwise(weights)]
    assert moved == [True, False] * (T // 2)


def test_a_slice_of_a_stream_learns_from_its_steps_that_have_targets():
    x, y = data(2)
    net, oracle = network(), network()
    loss = [F.cross_entropy(oracle(x_t), y_t) for x_t, y_t in zip(x, y, strict=True)][1]
    loss.backward()
    sgd(oracle).step()
    (result,) = TimeSlicing(net, sgd(net), k=2).stream([(x[0], None), (x[1], y[1])])
    torch.testing.assert_close(vector(net), vector(oracle), **EXACT)
    torch.testing.assert_close(result.loss, loss.detach(), **EXACT)


def test_a_stream_goes_on_where_the_last_one_ended():
    x, y = data()
    whole, parts = network(), network()
    list(SLTT(whole, sgd(whole)).stream(zip(x, y, strict=True)))
    rule = SLTT(parts, sgd(parts))
    list(rule.stream(zip(x[:2], y[:2], strict=True)))
    list(rule.stream(zip(x[2:], y[2:], strict=True)))
    assert (vector(whole) == vector(parts)).all()
    assert list(rule.stream([])) == []


@pytest.mark.parametrize("make", [BPTT, RandomBP])
def test_a_rule_that_must_know_the_number_of_steps_refuses(make):
    net = network()
    with pytest.raises(ValueError, match=f"{make.__name__} must know the number of steps") as error:
        make(net, sgd(net)).stream([])
    assert "\n" not in str(error.value)


def test_averages_follow_weights_that_are_loaded_before_a_stream():
    x, y = data()
    results = []
    for loaded in (False, True):
        net = network()
        state = {name: value + 0.1 for name, value in net.state_dict().items()}
        if not loaded:
            net.load_state_dict(state)
        rule = FPTT(net, sgd(net))
        net.load_state_dict(state)
        list(rule.stream(zip(x, y, strict=True)))
        results.append(vector(net))
    assert (results[0] == results[1]).all()


def held():
    gc.collect()
    with warnings.catch_warnings(action="ignore"):  # of old names that are looked at
        plain = (torch.Tensor, nn.Parameter)  # not those that stand for tensors while something is compiled
        tensors = [each for each in gc.get_objects() if type(each) in plain]
    return len(tensors), sum(tensor.nbytes for tensor in tensors), len(gc.get_objects())


@pytest.mark.parametrize(
    ("make", "steps"),
    [(SLTT, 2_000), (STOL, 400), (OTTT, 400)]
    + [pytest.param(make, 100_000, marks=pytest.mark.slow) for make in (SLTT, STOL, OTTT)],
)
def test_a_long_stream_holds_no_more_than_a_short_one(make, steps):
    """And is one sequence of train_step, which holds all its inputs."""
    torch.manual_seed(1)
    x, y = torch.rand(steps, 1, 4) * 2, torch.randint(2, (steps, 1))

    def small():
        torch.manual_seed(0)
        net = nn.Sequential(layer.Linear(4, 3), neuron.LIFNode(v_threshold=0.4), layer.Linear(3, 2))
        return net, make(net, sgd(net, 0.01), update="step", step_scale="sum", per_step_targets=True)

    net, rule = small()
    counts = []
    for t, _ in enumerate(rule.stream(zip(x, y, strict=True))):
        if t in (100, steps // 2, steps - 2):
            counts.append(held())
    assert counts[1][:2] == counts[2][:2] == counts[0][:2]
    assert counts[2][2] - counts[0][2] < 50
    twin, rule = small()
    rule.train_step(x, y)
    assert (vector(net) == vector(twin)).all()
    assert (vector(net) != vector(small()[0])).any()


def test_a_rule_predicts_as_asked():
    x, _ = data()
    net = network()
    rule = SLTT(net, sgd(net))
    for reduce in ("mean", "none", "running"):
        assert torch.equal(rule.predict(x, reduce=reduce), predict(net, x, reduce=reduce))
    assert rule.predict(x, reduce="none").shape == (T, N, CLASSES)
    assert torch.equal(SLTT(net, sgd(net), num_steps=3).predict(x[0]), predict(net, x[0], 3))
