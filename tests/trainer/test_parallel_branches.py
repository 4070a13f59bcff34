"""Two ranks whose graphs differ make the same collective calls, and end alike."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from spikingjelly.activation_based import layer, neuron
from torch import nn

from sj_online.trainer import OTTT, SLTT, parallel

T, N, WORLD = 3, 6, 2


class Branching(nn.Module):
    """Each sample takes one of two branches, by the sign of its first feature; no sample ever takes the third."""

    def __init__(self):
        super().__init__()
        self.fc = layer.Linear(4, 5)
        self.node = neuron.LIFNode(v_threshold=0.3)
        self.branches = nn.ModuleList(nn.Linear(5, 3) for _ in range(3))

    def forward(self, x):
        spikes, output = self.node(self.fc(x)), x.new_zeros(len(x), 3)
        for branch, taken in zip(self.branches, (x[:, 0] > 0, x[:, 0] <= 0), strict=False):
            if taken.any():
                output = output + branch(spikes) * taken[:, None]
        return output


def network(seed=0):
    torch.manual_seed(seed)
    return Branching().double()


def batch(mixed=False):
    """The first half of the batch takes the first branch, the second half the other; or some of each take each."""
    torch.manual_seed(1)
    x, y = torch.rand(T, N, 4, dtype=torch.float64) * 2, torch.tensor([0, 1, 2, 2, 1, 0])
    x[:, [1, 3, 5] if mixed else [3, 4, 5], 0] *= -1
    return x, y


def half(rank, x, y):
    return x[:, rank * N // WORLD :][:, : N // WORLD], y[rank * N // WORLD :][: N // WORLD]


def trained(rule, net, x, y, **options):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    trainer = rule(net, optimizer, **options)
    for _ in range(2):
        trainer.train_step(x, y)
    return net.state_dict()


CASES = {
    "SLTT, step": (SLTT, {"update": "step"}),
    "SLTT": (SLTT, {}),
    "OTTT": (OTTT, {"trace_decay": {"fc": 0.5, **{f"branches.{i}": 0.5 for i in range(3)}}}),
}


class Counted:
    """Counts the collective calls on tensors."""

    def __init__(self, monkeypatch):
        self.sizes = []
        reduce = dist.all_reduce
        monkeypatch.setattr(dist, "all_reduce", lambda t, *rest: (self.sizes.append(t.numel()), reduce(t, *rest)))


def gradients(rank):
    """Of one optimizer: on one rank, on none, sparse on one, half precision, not contiguous, more than a bucket."""
    shapes = [(3,), (3,), (3,), (4, 2), (3,), (2, 2, 3, 3), (5, 5)]
    dtypes = [torch.float32] * 4 + [torch.float16, torch.float32, torch.float64]
    parameters = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape, dtype in zip(shapes, dtypes, strict=True)]
    one, none, frozen, sparse, half, last, wide = parameters
    frozen.requires_grad_(False)
    if rank == 1:
        one.grad = torch.full((3,), 4.0)
        sparse.grad = torch.eye(4, 2).to_sparse()
    half.grad = torch.full((3,), 60000.0, dtype=torch.float16)  # the sum is beyond half precision
    last.grad = (torch.arange(36.0).view(2, 2, 3, 3) * (rank + 1)).to(
        memory_format=torch.channels_last if rank else torch.contiguous_format
    )
    wide.grad = torch.full((5, 5), float(rank), dtype=torch.float64)
    return parameters


def average_odd_gradients(rank, monkeypatch):
    parameters = gradients(rank)
    optimizer = torch.optim.SGD([{"params": parameters[:4]}, {"params": parameters[4:]}], lr=0.1)
    optimizer.param_groups[1]["params"].append(parameters[0])  # named twice
    monkeypatch.setattr(parallel, "BUCKET_BYTES", 150)  # `last` alone is 144
    counted = Counted(monkeypatch)
    parallel.average_gradients(optimizer)
    return [p.grad for p in parameters], counted.sizes


def average_buffers(rank, monkeypatch):
    counted = Counted(monkeypatch)
    shared = torch.full((4,), 1.0 + rank)
    tensors = [shared, torch.tensor(rank), shared, torch.full((3,), 2.0 * rank), torch.full((2,), 3j * rank)]
    parallel.average(tensors)
    return tensors, counted.sizes


def broadcast(rank, monkeypatch):
    net = nn.Module()
    values = {
        "a": torch.rand(3),
        "flag": torch.tensor([rank == 0]),
        "b": torch.rand(5, dtype=torch.float64),
        "c": torch.rand(2, 3, 2, 2).to(memory_format=torch.channels_last).bfloat16(),
        "count": torch.tensor(7 + rank),
        "empty": torch.zeros(0),
    }
    for name, value in values.items():
        net.register_buffer(name, value)
    parallel.broadcast(net)
    return net.state_dict()


def error_of(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        return type(error).__name__, str(error)


def skip_on_one_rank(rank, monkeypatch):
    answers = iter([rank != 0, None])
    net, (x, y) = network(), half(rank, *batch())
    rule = SLTT(net, torch.optim.SGD(net.parameters(), lr=0.5), before_step=lambda: next(answers))
    states = []
    for _ in range(2):
        rule.train_step(x, y)
        states.append({name: +value for name, value in net.state_dict().items()})
    return states


def an_error_on_one_rank(rank, monkeypatch):
    net, (x, y) = network(), half(rank, *batch())
    rule = SLTT(net, torch.optim.SGD(net.parameters(), lr=0.5), update="step")
    told = error_of(rule.train_step, x, y if rank else y.repeat(2))
    rule.train_step(x, y)
    return told, net.state_dict()


def different_lengths(rank, monkeypatch):
    net, (x, y) = network(), half(rank, *batch())
    return error_of(SLTT(net, torch.optim.SGD(net.parameters(), lr=0.5)).train_step, x[: T - rank], y)


def different_networks(rank, monkeypatch):
    net = nn.Linear(2, 3 + rank)
    return error_of(parallel.broadcast, net)


def agreement(rank, monkeypatch):
    return [parallel.agree(flag) for flag in (True, rank == 0, rank == 1, False)]


PARTS = [
    average_odd_gradients, average_buffers, broadcast, skip_on_one_rank, an_error_on_one_rank, different_lengths,
    different_networks, agreement,
]  # fmt: skip


def worker(rank, directory):
    dist.init_process_group("gloo", init_method=f"file://{directory}/meeting", rank=rank, world_size=WORLD)
    results = {
        (name, mixed): trained(rule, network(rank), *half(rank, *batch(mixed)), **options)
        for name, (rule, options) in CASES.items()
        for mixed in (False, True)
    }
    for part in PARTS:
        torch.manual_seed(rank)
        with pytest.MonkeyPatch.context() as monkeypatch:
            results[part.__name__] = part(rank, monkeypatch)
    torch.save(results, f"{directory}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, (str(directory),), WORLD)
    return [torch.load(directory / f"{rank}.pt") for rank in range(WORLD)]


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def distance(first, second):
    return max((first[key] - second[key]).abs().max().item() for key in first)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_ranks_on_different_branches_train_as_the_joined_batch(ranks, name, mixed):
    rule, options = CASES[name]
    first, second = (rank[name, mixed] for rank in ranks)
    assert equal(first, second)
    assert distance(first, trained(rule, network(), *batch(mixed), **options)) < 1e-14
    assert distance(first, trained(rule, network(), *half(0, *batch(mixed)), **options)) > 1e-3
    assert torch.equal(first["branches.2.weight"], network().state_dict()["branches.2.weight"])  # no decay either


@pytest.mark.parametrize("name", ["SLTT"])
def test_the_update_is_that_of_the_averaged_gradients_of_the_halves(ranks, name):
    net = network()
    sgd = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    rule = SLTT(net, sgd, backward=lambda loss: (loss / WORLD).backward())
    for _ in range(2):
        for rank in range(WORLD):
            for _ in rule.gradients(*half(rank, *batch())):
                pass
        rule.step()
    assert distance(net.state_dict(), ranks[0][name, False]) < 1e-14


def test_odd_gradients_are_averaged_in_few_calls_alike_on_all_ranks(ranks):
    (first, sizes), (second, other_sizes) = (rank["average_odd_gradients"] for rank in ranks)
    eye = torch.eye(4, 2)
    by_hand = [torch.full((3,), 2.0), None, None, eye / 2, torch.full((3,), 60000.0).half()]
    by_hand += [torch.arange(36.0).view(2, 2, 3, 3) * 1.5, torch.full((5, 5), 0.5).double()]
    for gradients in (first, second):
        assert [g is None for g in gradients] == [g is None for g in by_hand]
        assert all(torch.equal(a, b) for a, b in zip(gradients, by_hand, strict=True) if b is not None)
    assert second[5].is_contiguous(memory_format=torch.channels_last)
    # A word, the mask of 7, then buckets: `one` and `sparse`, half precision, `last`, float64.
    assert sizes == other_sizes == [3, 7, 11, 3, 36, 25]


def test_buffers_are_averaged_in_one_buffer_per_dtype_and_integers_stay(ranks):
    for rank, (tensors, sizes) in enumerate(each["average_buffers"] for each in ranks):
        shared, count, again, other, complex_ = tensors
        assert shared.tolist() == again.tolist() == [1.5] * 4
        assert other.tolist() == [1.0] * 3 and count == rank and complex_.tolist() == [1.5j] * 2
        assert sizes == [3, 7, 2]


def test_broadcast_gives_every_dtype_and_layout(ranks):
    torch.manual_seed(0)
    first, second = (rank["broadcast"] for rank in ranks)
    assert equal(first, second)
    assert torch.equal(second["a"], torch.rand(3)) and second["flag"].item() and second["count"] == 7


def test_networks_that_differ_are_an_error_on_all_ranks(ranks):
    for rank in ranks:
        assert (
            rank["different_networks"][0] == "ValueError"
            and "networks of the ranks differ" in rank["different_networks"][1]
        )


def test_a_step_that_one_rank_skips_is_skipped_on_all(ranks):
    (skipped, stepped), other = (rank["skip_on_one_rank"] for rank in ranks)
    assert equal(skipped, other[0]) and equal(stepped, other[1])
    assert equal(skipped, network().state_dict()) and distance(stepped, skipped) > 1e-3


def test_all_agree_only_if_all_say_so(ranks):
    assert [rank["agreement"] for rank in ranks] == [[True, False, False, False]] * WORLD
    assert parallel.agree(True) and not parallel.agree(False)


def test_an_error_on_one_rank_is_an_error_on_all_and_training_can_go_on(ranks):
    (own, state), (told, other) = (rank["an_error_on_one_rank"] for rank in ranks)
    assert own[0] == "ValueError" and told[0] == "OtherRankError" and "another rank" in told[1]
    assert equal(state, other) and distance(state, network().state_dict()) > 1e-3


def test_sequences_of_different_lengths_are_an_error_on_all_ranks(ranks):
    assert [rank["different_lengths"] for rank in ranks] == [
        ("ValueError", "T is 2 on one rank and 3 on another: it must be the same on all ranks")
    ] * WORLD


def test_one_process_does_nothing():
    tensor = torch.ones(2, dtype=torch.float16)
    parallel.average([tensor])
    with parallel.together():
        parallel.check_alike("T", 3)
    with pytest.raises(KeyError), parallel.together():
        raise KeyError
    assert tensor.tolist() == [1, 1] and parallel.from_first(tensor) is tensor
