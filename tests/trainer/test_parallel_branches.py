"""Two ranks whose graphs differ make the same collective calls, and end alike."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from spikingjelly.activation_based import layer, neuron
from torch import nn

from sj_online.trainer import OTTT, SLTT

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


def error_of(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        return type(error).__name__, str(error)


def skip_on_one_rank(rank):
    answers = iter([rank != 0, None])
    net, (x, y) = network(), half(rank, *batch())
    rule = SLTT(net, torch.optim.SGD(net.parameters(), lr=0.5), before_step=lambda: next(answers))
    states = []
    for _ in range(2):
        rule.train_step(x, y)
        states.append({name: value.clone() for name, value in net.state_dict().items()})
    return states


def an_error_on_one_rank(rank):
    net, (x, y) = network(), half(rank, *batch())
    rule = SLTT(net, torch.optim.SGD(net.parameters(), lr=0.5), update="step")
    told = error_of(rule.train_step, x, y if rank else y.repeat(2))
    rule.train_step(x, y)
    return told, net.state_dict()


def different_lengths(rank):
    net, (x, y) = network(), half(rank, *batch())
    return error_of(SLTT(net, torch.optim.SGD(net.parameters(), lr=0.5)).train_step, x[: T - rank], y)


PARTS = [skip_on_one_rank, an_error_on_one_rank, different_lengths]


def worker(rank, directory):
    dist.init_process_group("gloo", init_method=f"file://{directory}/meeting", rank=rank, world_size=WORLD)
    results = {
        (name, mixed): trained(rule, network(rank), *half(rank, *batch(mixed)), **options)
        for name, (rule, options) in CASES.items()
        for mixed in (False, True)
    }
    results |= {part.__name__: part(rank) for part in PARTS}
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


def test_the_update_is_that_of_the_averaged_gradients_of_the_halves(ranks):
    net = network()
    sgd = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    rule = SLTT(net, sgd, backward=lambda loss: (loss / WORLD).backward())
    for _ in range(2):
        for rank in range(WORLD):
            for _ in rule.gradients(*half(rank, *batch())):
                pass
        rule.update_weights()
    assert distance(net.state_dict(), ranks[0]["SLTT", False]) < 1e-14


def test_a_step_that_one_rank_skips_is_skipped_on_all(ranks):
    (skipped, stepped), other = (rank["skip_on_one_rank"] for rank in ranks)
    assert equal(skipped, other[0]) and equal(stepped, other[1])
    assert equal(skipped, network().state_dict()) and distance(stepped, skipped) > 1e-3


def test_an_error_on_one_rank_is_an_error_on_all_and_training_can_go_on(ranks):
    (own, state), (told, other) = (rank["an_error_on_one_rank"] for rank in ranks)
    assert own[0] == "ValueError" and told[0] == "OtherRankError" and "another rank" in told[1]
    assert equal(state, other) and distance(state, network().state_dict()) > 1e-3


def test_sequences_of_different_lengths_are_an_error_on_all_ranks(ranks):
    assert [rank["different_lengths"] for rank in ranks] == [
        ("ValueError", "T is 2 on one rank and 3 on another: it must be the same on all ranks")
    ] * WORLD
