"""Speed of the CuPy kernels on one CUDA device: bytes that must move over time, beside what a copy of memory reaches.

    python examples/bench_kernels.py

First every kernel is compared with the torch backend; without agreement no speed is printed. Times are the least of
ROUNDS, the candidates in turn, on tensors far beyond the L2 cache. "loop" is our torch backend, "compiled" one step per
time step under torch.compile, "LIF" the host's LIFNode. "copy" is the share of the copy's bandwidth.
"""

import platform
import sys
from collections.abc import Callable
from datetime import date
from functools import partial
from importlib.metadata import version

import torch
from spikingjelly.activation_based.neuron import BaseNode, LIFNode
from torch import Tensor

from sj_online.cuda import loader
from sj_online.neuron import EMPFNode, LMHNode

ELEMENTS = 2**28  # of x [T, N]; takes about 40 GB
STEPS = (1, 4, 8, 16)
DTYPES = (torch.float32, torch.bfloat16)
ROUNDS = 20

# Bytes that must move beside x and s or their gradients: per element what the forward keeps for the backward, and per
# neuron the states in and out.
NODES: dict[str, tuple[Callable[..., BaseNode], Callable[[int], float], dict[str, int]]] = {
    "EMPF": (EMPFNode, lambda T: 4, {"forward": 8, "backward": 8}),
    "EMPF online, fixed": (
        partial(EMPFNode, learnable=False, temporal_grad=False),
        lambda T: -(-T // 8) / T,
        {"forward": 8, "backward": 4},
    ),
    "LMH": (LMHNode, lambda T: 8, {"forward": 16, "backward": 12}),
}


def leaves(node: BaseNode, x: Tensor) -> list[Tensor]:
    return [x, *node.parameters()]


def check(make: Callable[..., BaseNode], dtype: torch.dtype) -> None:
    """Exit unless the CuPy backend gives the spikes of the torch backend, and its gradients up to rounding."""
    for T, N in ((1, 63), (5, 100_000), (16, 4096)):
        x = torch.randn(T, N, device="cuda", dtype=dtype, requires_grad=True)
        grad, results = torch.randn_like(x), []
        for backend in ("torch", "cupy"):
            node = make(step_mode="m", backend=backend).cuda()
            s = node(x)
            results.append([s, node.v, *torch.autograd.grad(s, leaves(node, x), grad)])
        for i, (a, b) in enumerate(zip(*results, strict=True)):
            close = torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max()))
            if not (torch.equal(a, b) if i < 2 else close):
                sys.exit(f"{node}, {dtype}, T={T}, N={N}: result {i} of CuPy differs from torch's; no speed is printed")


def milliseconds(candidates: dict[str, Callable[[], Callable[[], object]]]) -> dict[str, float]:
    """Least time of each candidate, in turn; a candidate prepares, and returns what is timed."""
    least = dict.fromkeys(candidates, float("inf"))
    for round_ in range(ROUNDS + 3):
        for name, prepare in candidates.items():
            timed = prepare()
            torch.cuda._sleep(20_000_000)  # so that the device never waits for Python
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            result = timed()
            end.record()
            end.synchronize()
            if round_ >= 3:
                least[name] = min(least[name], start.elapsed_time(end))
            del timed, result
    return least


def forward(run: Callable[[Tensor], Tensor], node: BaseNode, x: Tensor) -> Callable[[], object]:
    node.detach()
    return lambda: run(x)


def backward(run: Callable[[Tensor], Tensor], node: BaseNode, x: Tensor, grad: Tensor) -> Callable[[], object]:
    node.detach()
    s = run(x)
    return lambda: torch.autograd.grad(s, leaves(node, x), grad)


def candidates_of(make: Callable[..., BaseNode]) -> dict[str, tuple[Callable[[Tensor], Tensor], BaseNode]]:
    loop, step, cupy = (make(step_mode=m, backend=b).cuda() for m, b in (("m", "torch"), ("s", "torch"), ("m", "cupy")))
    host = LIFNode(step_mode="m").cuda()
    compiled = torch.compile(lambda x: torch.stack([step(x_t) for x_t in x]))
    return {"loop": (loop, loop), "compiled": (compiled, step), "cupy": (cupy, cupy), "LIF": (host, host)}


def main() -> int:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    reasons = loader.reasons(torch.empty(0, device=device))
    if reasons:
        sys.exit(f"bench_kernels cannot run: {'; '.join(reasons)}")
    import cupy

    torch.manual_seed(0)
    for make, *_ in NODES.values():
        for dtype in DTYPES:
            check(make, dtype)
    print(f"{torch.cuda.get_device_name()}, {date.today()}, python examples/bench_kernels.py, Python", end=" ")
    print(f"{platform.python_version()}, torch {torch.__version__}, CuPy {cupy.__version__}, SpikingJelly", end=" ")
    print(f"{version('spikingjelly')}, CUDA {torch.version.cuda}")
    source = torch.empty(ELEMENTS, device="cuda")
    target = torch.empty_like(source)
    copy = 8 * ELEMENTS / milliseconds({"copy": lambda: lambda: target.copy_(source)})["copy"] / 1e6
    print(f"copy: {copy:.0f} GB/s; times in ms\n")
    print("| neuron | dtype | T | pass | loop | compiled | LIF | CuPy | GB/s | copy | loop / CuPy | LIF / CuPy |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for name, (make, kept, state) in NODES.items():
        for dtype in DTYPES:
            for T in STEPS:
                torch.compiler.reset()
                x = torch.randn(T, ELEMENTS // T, device="cuda", dtype=dtype, requires_grad=True)
                grad, runs = torch.randn_like(x), candidates_of(make)
                moved = x.numel() * (2 * x.element_size() + kept(T))
                for direction, prepare, extra in (("forward", forward, ()), ("backward", backward, (grad,))):
                    ms = milliseconds({k: partial(prepare, run, node, x, *extra) for k, (run, node) in runs.items()})
                    rate = (moved + x.numel() // T * state[direction]) / ms["cupy"] / 1e6
                    times = " | ".join(f"{ms[k]:.2f}" for k in ("loop", "compiled", "LIF", "cupy"))
                    print(
                        f"| {name} | {str(dtype)[6:]} | {T} | {direction} | {times} | {rate:.0f} | {rate / copy:.0%} |"
                        f" {ms['loop'] / ms['cupy']:.1f} | {ms['LIF'] / ms['cupy']:.1f} |",
                        flush=True,
                    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
