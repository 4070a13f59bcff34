"""Time and memory of each neuron, multi-step in torch on the CPU, as ratios to the host's LIFNode in one run.

    python examples/bench_neurons.py

Exits with 1 if a neuron takes more than 1.1 times the host's time for forward and backward, or saves more bytes.
"""

import sys
from collections.abc import Callable

import torch
from spikingjelly.activation_based.neuron import BaseNode, LIFNode

from sj_online.analysis.memory import SavedBytes
from sj_online.analysis.timing import interleaved
from sj_online.neuron import EMPFNode, HDLIFNode, LMHNode

SHAPE = (8, 16, 128, 16, 16)  # T, N, C, H, W
ROUNDS = 20
MOST_TIME = 1.1

NODES: dict[str, type[BaseNode]] = {
    "LIFNode (host)": LIFNode,
    "LIFNode again": LIFNode,
    "EMPFNode": EMPFNode,
    "HDLIFNode": HDLIFNode,
    "LMHNode": LMHNode,
}


def training_step(node: BaseNode, x: torch.Tensor, grad: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        node.reset()
        node.zero_grad()
        x.grad = None
        node(x).backward(grad)

    return step


def saved_bytes(node: BaseNode, x: torch.Tensor) -> int:
    node.reset()
    with SavedBytes(exclude=[x, *node.parameters()]) as saved:
        node(x)
    return saved.peak


def main() -> int:
    torch.manual_seed(0)
    x, grad = torch.randn(SHAPE, requires_grad=True), torch.randn(SHAPE)
    nodes = {name: node(step_mode="m") for name, node in NODES.items()}
    seconds = interleaved({name: training_step(node, x, grad) for name, node in nodes.items()}, ROUNDS)
    memory = {name: saved_bytes(node, x) for name, node in nodes.items()}
    host = "LIFNode (host)"
    print(
        f"[T, N, C, H, W] = {list(SHAPE)}, forward and backward, least of {ROUNDS}, {torch.get_num_threads()} threads"
    )
    print(f"{'':16}{'ms':>8}{'ratio':>8}{'saved MB':>10}{'ratio':>8}")
    failed = False
    for name in nodes:
        time, size = seconds[name] / seconds[host], memory[name] / memory[host]
        missed = name != "LIFNode again" and (time > MOST_TIME or size > 1)
        failed |= missed
        row = f"{name:16}{1e3 * seconds[name]:8.1f}{time:8.2f}{memory[name] / 1e6:10.1f}{size:8.2f}"
        print(row + ("  missed" if missed else ""))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
