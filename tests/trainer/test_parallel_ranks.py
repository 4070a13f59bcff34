"""Two processes with half of the batch each train as one process with all of it."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from package_names import fit_for, own
from spikingjelly.activation_based import layer, neuron
from torch import nn

from sj_online import registry
from sj_online.neuron import EMPFNode

RULES = own("trainers")
T, N, CLASSES, WORLD = 3, 6, 3, 2
LIF = {"tau": 2.0, "decay_input": False, "v_reset": None, "detach_reset": True}


def plain(seed, name):
    torch.manual_seed(seed)
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3), neuron.LIFNode(**LIF), layer.Flatten(), layer.Linear(16, 5), layer.Linear(5, CLASSES)
    )
    return net.double()


def normalised(seed, name):
    """Batch normalisation, parameters per step (some have no gradient), weights that are not contiguous."""
    torch.manual_seed(seed)
    plain_node = name in ("ottt", "ndot", "eprop", "decolle", "rate_bp")  # no one leak, not elementwise
    node = EMPFNode(T, membrane_norm=None if plain_node else 4)
    net = nn.Sequential(layer.Conv2d(2, 4, 3), layer.BatchNorm2d(4), node, layer.Flatten(), layer.Linear(16, CLASSES))
    return fit_for(name, net.double().to(memory_format=torch.channels_last))


def batch():
    torch.manual_seed(9)
    return torch.rand(T, N, 2, 4, 4, dtype=torch.float64) * 2, torch.randint(CLASSES, (N,))


def train(name, net, x, y):
    """Two training steps; the gradients of each update, and the state of the network at the end."""
    updates = []
    sgd = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.9)
    rule = registry.get("trainers", name)(
        net, sgd, before_step=lambda: updates.append([None if p.grad is None else +p.grad for p in net.parameters()])
    )
    for _ in range(2):
        rule.train_step(x, y)
    return {"updates": updates, "state": net.state_dict()}


def worker(rank, directory):
    """One rank: its own start values, random numbers and part of the batch."""
    dist.init_process_group("gloo", init_method=f"file://{directory}/meeting", rank=rank, world_size=WORLD)
    x, y = batch()
    part = slice(rank * N // WORLD, (rank + 1) * N // WORLD)
    results = {
        (make.__name__, name): train(name, make(rank, name), x[:, part], y[part])
        for make in (plain, normalised)
        for name in RULES
    }
    torch.save(results, f"{directory}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, (str(directory),), WORLD)
    return [torch.load(directory / f"{rank}.pt") for rank in range(WORLD)]


def close(first, second):
    return all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", RULES)
def test_gradients_and_parameters_are_those_of_the_whole_batch(ranks, name):
    x, y = batch()
    alone = train(name, plain(0, name), x, y)
    half = train(name, plain(0, name), x[:, : N // 2], y[: N // 2])
    for rank in ranks:
        ours = rank["plain", name]
        assert len(ours["updates"]) == len(alone["updates"])
        assert all(close(a, b) for a, b in zip(ours["updates"], alone["updates"], strict=True))
        assert close(ours["state"].values(), alone["state"].values())
    assert not close(half["state"].values(), alone["state"].values())


@pytest.mark.parametrize("name", RULES)
def test_with_batch_norm_and_parameters_per_step_all_ranks_agree(ranks, name):
    first, second = (rank["normalised", name]["state"] for rank in ranks)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any((value != normalised(0, name).state_dict()[key]).any() for key, value in first.items())
