"""The collective calls: what they give, and that they are the same on ranks that hold different things."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from sj_online.trainer import parallel

WORLD = 2


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


def different_networks(rank, monkeypatch):
    net = nn.Linear(2, 3 + rank)
    with pytest.raises(ValueError) as error:
        parallel.broadcast(net)
    return str(error.value)


def agreement(rank, monkeypatch):
    return [parallel.agree(flag) for flag in (True, rank == 0, rank == 1, False)]


PARTS = [average_odd_gradients, average_buffers, broadcast, different_networks, agreement]


def worker(rank, directory):
    dist.init_process_group("gloo", init_method=f"file://{directory}/meeting", rank=rank, world_size=WORLD)
    results = {}
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
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(second["a"], torch.rand(3)) and second["flag"].item() and second["count"] == 7


def test_networks_that_differ_are_an_error_on_all_ranks(ranks):
    told = "the networks of the ranks differ: they must have the same parameters and buffers"
    assert [rank["different_networks"] for rank in ranks] == [told] * WORLD


def test_all_agree_only_if_all_say_so(ranks):
    assert [rank["agreement"] for rank in ranks] == [[True, False, False, False]] * WORLD
    assert parallel.agree(True) and not parallel.agree(False)


def test_one_process_does_nothing():
    tensor = torch.ones(2, dtype=torch.float16)
    parallel.average([tensor])
    with parallel.together():
        parallel.check_alike("T", 3)
    with pytest.raises(KeyError), parallel.together():
        raise KeyError
    assert tensor.tolist() == [1, 1] and parallel.from_first(tensor) is tensor
