"""Time and memory of the training rules beside each other, on one network; exits with 1 if a bound is missed.

    python examples/bench_rules.py [--device cuda] [--rounds 20]

The rules run in turn, round by round; a time is the minimum over the rounds. The ratio of SLTT to itself, measured in
the same way, shows what a ratio is worth. Memory is the peak of the bytes saved for backward, without parameters and
input. On two CPU cores it takes about ten minutes.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, memopt, neuron
from spikingjelly.activation_based.learning.online_learning import ottt_online_training
from torch import Tensor, nn

from sj_online.analysis.memory import SavedBytes
from sj_online.trainer import BPTT, OTTT, SLTT, STOL, RandomBP, Rule

T, N, CLASSES = 6, 16, 10
MEMORY_STEPS = (2, 8, 32)
LIF = {"tau": 2.0, "decay_input": False, "v_reset": None, "detach_reset": True}

RULES: dict[str, Callable[..., Rule]] = {
    "SLTT": SLTT,
    "SLTT again": SLTT,
    "SLTT, step": partial(SLTT, update="step"),
    "OTTT": OTTT,
    "RandomBP": RandomBP,
    "STOL": STOL,
}
RATIOS = [
    ("SLTT again", "SLTT", 0.0, float("inf")),
    ("OTTT", "SLTT", 0.0, 1.1),
    ("OTTT", "host's OTTT", 0.0, 0.9),
    ("SLTT", "host's SLTT", 0.0, 1.05),
    ("SLTT, step", "RandomBP", 1.8, float("inf")),
    ("STOL", "SLTT, step", 0.0, 2.1),
]
# The most MB that may be saved for backward with and without BN.
MEMORY: dict[str, tuple[type[Rule], dict[bool, float]]] = {
    "SLTT": (SLTT, {True: 55.8, False: 38.2}),
    "SLTT, compressed": (SLTT, {True: 41.0, False: 23.0}),
    "SLTT, memopt": (SLTT, {True: 33.8, False: 30.6}),
    "SLTT, memopt, compressed": (SLTT, {True: 22.0, False: 17.2}),
    "OTTT": (OTTT, {True: 55.8, False: 38.2}),
    "OTTT, compressed": (OTTT, {True: 43.4, False: 23.0}),
    "RandomBP": (RandomBP, {True: 55.8, False: 38.2}),
    "STOL": (STOL, {True: 111.6, False: 76.4}),
    "BPTT": (BPTT, {True: float("inf"), False: float("inf")}),
}


def network(norm: bool, node: type = neuron.LIFNode, container: type = nn.Sequential) -> nn.Module:
    """64 - 128 - pool - 256 - pool - 256 - GAP - FC, a neuron behind each convolution."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in [(3, 64), (64, 128), (128, 256), (256, 256)]:
        layers += [layer.AvgPool2d(2)] * (before >= 128)
        layers += [layer.Conv2d(before, after, 3, padding=1, bias=False)]
        layers += [layer.BatchNorm2d(after)] * norm
        layers += [node(**LIF)]
    return container(*layers, layer.AdaptiveAvgPool2d(1), layer.Flatten(), layer.Linear(256, CLASSES))


def optimizer(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)


def host_step(net: nn.Module, sgd: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """The host's online training on one batch."""
    x_seq, y_seq = x.expand(T, *x.shape).transpose(0, 1), y.expand(T, N).t()
    ottt_online_training(net, sgd, x_seq, y_seq, lambda o, y: F.cross_entropy(o, y) / T, online=False)
    functional.reset_net(net)


def candidates(norm: bool, device: str, x: Tensor, y: Tensor) -> dict[str, Callable[[], object]]:
    """A training step by each rule, and by the host's own online training."""
    steps: dict[str, Callable[[], object]] = {}
    for name, rule in RULES.items():
        net = network(norm).to(device)
        steps[name] = partial(rule(net, optimizer(net), num_steps=T).train_step, x, y)
    sltt = network(norm, neuron.SLTTLIFNode).to(device)
    ottt = network(norm, neuron.OTTTLIFNode, layer.OTTTSequential).to(device)
    steps["host's SLTT"] = partial(host_step, sltt, optimizer(sltt), x, y)
    steps["host's OTTT"] = partial(host_step, ottt, optimizer(ottt), x, y)
    return steps


def seconds(step: Callable[[], object], device: str) -> float:
    """Of one training step."""
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def times(norm: bool, device: str, rounds: int) -> bool:
    """Measure and print the times; returns whether all ratios are within their bounds."""
    torch.manual_seed(0)
    x, y = torch.rand(N, 3, 32, 32, device=device), torch.randint(CLASSES, (N,), device=device)
    steps = candidates(norm, device, x, y)
    best = dict.fromkeys(steps, float("inf"))
    for turn in range(rounds + 1):
        for name, step in steps.items():
            taken = seconds(step, device)
            best[name] = min(best[name], taken) if turn else best[name]  # the first round warms up

    for name, value in best.items():
        print(f"  {name:12} {1e3 * value:9.1f} ms a batch")
    good = True
    for a, b, low, high in RATIOS:
        ratio = best[a] / best[b]
        within = low <= ratio <= high
        bound = f"at least {low}" if low else f"at most {high}" if high < float("inf") else "to itself"
        print(f"  {a + ' / ' + b:24} {ratio:6.3f}  ({bound}){'' if within else '  MISSED'}")
        good &= within
    return good


class Block(nn.Sequential):
    """A convolution with its norm and neuron: what the host's memopt is told to run again in backward."""


def in_blocks(net: nn.Module, x: Tensor) -> nn.Module:
    """The network as the host's memopt leaves it."""
    blocks: list[nn.Module] = []
    for module in net:
        blocks += [Block()] * isinstance(module, nn.Conv2d)
        into = blocks[-1] if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, neuron.LIFNode)) else None
        into.append(module) if into is not None else blocks.append(module)
    net = nn.Sequential(*blocks)
    memopt.optimize_memory(net, Block, example_forward=lambda net: net(x), level=1)
    functional.reset_net(net)
    return net


def megabytes(name: str, rule: type[Rule], norm: bool, device: str, steps: int) -> float:
    """Peak of the bytes saved for backward in a training step."""
    net = network(norm).to(device)
    x, y = torch.rand(N, 3, 32, 32, device=device), torch.randint(CLASSES, (N,), device=device)
    net = in_blocks(net, x) if "memopt" in name else net
    trained = rule(net, optimizer(net), num_steps=steps, compress="compress" in name)
    with SavedBytes(exclude=[*net.parameters(), x]) as saved:
        trained.train_step(x, y)
    return saved.peak / 1e6


def memory(norm: bool, device: str) -> bool:
    """Measure and print the bytes saved; returns whether they are within their bounds."""
    print(f"  {'':24}" + "".join(f"{f'T={steps}':>10}" for steps in MEMORY_STEPS) + "  MB saved for backward")
    good = True
    for name, (rule, bound) in MEMORY.items():
        peaks = [megabytes(name, rule, norm, device, steps) for steps in MEMORY_STEPS]
        within = max(peaks) <= bound[norm]
        allowed = f"at most {bound[norm]:.1f}" if bound[norm] < float("inf") else "grows with T"
        print(f"  {name:24}" + "".join(f"{peak:10.1f}" for peak in peaks) + f"  ({allowed})", end="")
        print("" if within else "  MISSED")
        good &= within
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", default=20, type=int)
    arguments = parser.parse_args()

    machine = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"torch {torch.__version__}, {machine}, T={T}, batch {N}, minimum of {arguments.rounds} rounds")
    good = True
    for norm in (True, False):
        print("with BN" if norm else "without BN")
        good &= memory(norm, arguments.device)
        good &= times(norm, arguments.device, arguments.rounds)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
