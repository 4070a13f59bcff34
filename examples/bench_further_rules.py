"""The further rules beside SLTT, OTTT and BPTT: accuracy on two small tasks and a made one, memory and time.

    python examples/bench_further_rules.py [digits] [rows] [recall] [memory] [time] [--seeds 3] [--epochs 25]

digits: scikit-learn's images at 4 steps, convolutions. rows: the same images row by row, 8 steps whose order matters.
recall: which cue was seen 20 steps ago. memory: bytes saved for backward. time: of a training step, by the processor's
clock, the minimum over rounds in which the rules take turns, relative to SLTT. On one CPU core all takes half an hour.
"""

import argparse
import runpy
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn

from sj_online.analysis import SavedBytes
from sj_online.data.images import digits as digits_data
from sj_online.data.sequences import delayed_recall
from sj_online.layer import BinaryConv2d
from sj_online.optim import bso
from sj_online.trainer import BPTT, DECOLLE, OTTT, SLTT, EProp, RateBP

HERE = Path(__file__).parent
OTPE = runpy.run_path(str(HERE / "otpe.py"))["OTPE"]
STLLR = runpy.run_path(str(HERE / "stllr.py"))["STLLR"]
BATCH = 64


def lif(tau: float) -> neuron.LIFNode:
    return neuron.LIFNode(tau, False, v_reset=None, detach_reset=True)


def convolutions(width: int = 16, size: int = 8, binary: bool = False) -> nn.Sequential:
    """Three convolutions with batch norm, leak 0.5; the inner ones binary if asked."""
    inner = BinaryConv2d if binary else layer.Conv2d
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate([(1, width), (width, 2 * width), (2 * width, 2 * width)]):
        kind = inner if i else layer.Conv2d
        layers += [kind(a, b, 3, padding=1, bias=False), layer.BatchNorm2d(b), lif(2.0)]
        layers += [layer.AvgPool2d(2)] * (i > 0)
    return nn.Sequential(*layers, layer.Flatten(), layer.Linear(2 * width * (size // 4) ** 2, 10))


def linear(inputs: int, classes: int) -> nn.Sequential:
    """Two hidden layers of 64, leak 0.9."""
    return nn.Sequential(
        layer.Linear(inputs, 64), lif(10.0), layer.Linear(64, 64), lif(10.0), layer.Linear(64, classes)
    )


STATIC: dict[str, tuple[Callable[..., Any], str]] = {
    "BPTT": (BPTT, "sgd"),
    "SLTT": (SLTT, "sgd"),
    "OTTT": (OTTT, "sgd"),
    "RateBP": (partial(RateBP, step_scale="sum"), "sgd"),
    "SLTT, feedback='random'": (partial(SLTT, feedback="random"), "adam"),
    "DECOLLE": (partial(DECOLLE, loss_fn=F.cross_entropy, update="sequence", step_scale="mean"), "adam"),
    "SLTT, binary, BSO": (partial(SLTT, update="step"), "bso"),
}
ROWS: dict[str, Callable[..., Any]] = {
    "BPTT": BPTT,
    "SLTT": SLTT,
    "OTTT": OTTT,
    "OTTT, exact=True": partial(OTTT, exact=True),
    "EProp, random": partial(EProp, feedback="random"),
    "EProp, readout_decay=0.5": partial(EProp, readout_decay=0.5),
    "OTPE, approximate": OTPE,
    "OTPE, of each synapse": partial(OTPE, approximate=False),
    "S-TLLR, alpha_post=-0.2": partial(STLLR, lambda_pre=None, alpha_post=-0.2, step_scale="mean"),
}
COST = {
    "SLTT": SLTT,
    "OTTT": OTTT,
    "SLTT, feedback='random'": partial(SLTT, feedback="random"),
    "RateBP": RateBP,
    "EProp": EProp,
    "DECOLLE": DECOLLE,
    "OTPE, approximate": OTPE,
    "S-TLLR": STLLR,
    "BPTT": BPTT,
}
LINEAR_COST = {
    "SLTT": SLTT,
    "EProp, readout_decay=0.5": partial(EProp, readout_decay=0.5),
    "OTPE, of each synapse": partial(OTPE, approximate=False),
    "BPTT": BPTT,
}


def images() -> list[tuple[Tensor, Tensor]]:
    """Training and test images ``[N, 1, 8, 8]`` in [0, 1], and labels."""
    data = digits_data()
    parts = []
    for part in (data.train, data.test):
        items = [part[i] for i in range(len(part))]
        parts.append((torch.stack([x for x, _ in items]) / 16, torch.tensor([y for _, y in items])))
    return parts


def optimizer(net: nn.Module, kind: str, lr: float) -> torch.optim.Optimizer:
    if kind == "bso":
        return bso(net, lr=0.1, threshold=1e-5, beta1=1e-2)
    return torch.optim.Adam(net.parameters(), lr) if kind == "adam" else torch.optim.SGD(net.parameters(), lr, 0.9)


def trained(rule: Any, x: Tensor, y: Tensor, epochs: int, axis: int, mask: Tensor | None = None) -> None:
    """Train on ``x`` whose batch is the given axis; targets with a time axis have it too."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(rule.optimizer, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(x.shape[axis]).split(BATCH):
            targets = y[rows] if mask is None else y[:, rows]
            rule.train_step(x.index_select(axis, rows), targets, None if mask is None else mask[:, rows])
        schedule.step()


def digits(seeds: int, epochs: int) -> None:
    """Static images at four steps."""
    (x, y), (x_test, y_test) = images()
    for name, (rule, kind) in STATIC.items():
        scores = []
        for seed in range(seeds):
            torch.manual_seed(seed)
            net = convolutions(binary=kind == "bso")
            made = rule(net, optimizer(net, kind, {"sgd": 0.1, "adam": 1e-2}.get(kind, 0)), num_steps=4)
            trained(made, x, y, epochs, 0)
            scores.append(100 * (made.predict(x_test).argmax(1) == y_test).float().mean().item())
        report(name, scores)


def rows(seeds: int, epochs: int) -> None:
    """The images row by row."""
    (x, y), (x_test, y_test) = images()
    x, x_test = (each[:, 0].transpose(0, 1) for each in (x, x_test))
    for name, rule in ROWS.items():
        scores = []
        for seed in range(seeds):
            torch.manual_seed(seed)
            net = linear(8, 10)
            made = rule(net, torch.optim.Adam(net.parameters(), 1e-2))
            trained(made, x, y, epochs, 1)
            scores.append(100 * (made.predict(x_test).argmax(1) == y_test).float().mean().item())
        report(name, scores)


def recall(seeds: int, epochs: int) -> None:
    """Delayed recall: the loss and the accuracy are of the last three steps."""
    data = delayed_recall(steps=20, classes=4, cue=3, recall=3, count=512)
    assert data.collate is not None
    x, y, mask = data.collate([data.train[i] for i in range(len(data.train))])
    x_test, y_test, _ = data.collate([data.test[i] for i in range(len(data.test))])
    for name in ("BPTT", "SLTT", "OTTT", "OTTT, exact=True", "EProp, random", "OTPE, approximate"):
        scores = []
        for seed in range(seeds):
            torch.manual_seed(seed)
            net = linear(x.shape[-1], 4)
            made = ROWS[name](net, torch.optim.Adam(net.parameters(), 1e-2), per_step_targets=True)
            trained(made, x, y, epochs, 1, mask)
            scores.append(
                100 * (made.predict(x_test, "none")[-3:].mean(0).argmax(1) == y_test[-1]).float().mean().item()
            )
        report(name, scores)


def cases() -> list[tuple[str, dict[str, Any], Callable[[], nn.Module], tuple[int, ...]]]:
    return [
        ("convolutions 32-64-64 at 16x16", COST, partial(convolutions, 32, 16), (16, 1, 16, 16)),
        ("linear 64-64-64", LINEAR_COST, partial(linear, 64, 10), (64, 64)),
    ]


def memory(*_: int) -> None:
    """The peak of what is saved for backward, MB at T = 2, 8, 32, and of what the rules keep besides."""
    for what, rules, network, shape in cases():
        print(f"{what}, batch {shape[0]}: MB saved for backward at T = 2 / 8 / 32")
        for name, rule in rules.items():
            peaks = []
            for steps in (2, 8, 32):
                torch.manual_seed(0)
                net = network()
                x, y = torch.rand(shape), torch.randint(10, shape[:1])
                made = rule(net, torch.optim.SGD(net.parameters(), 1e-3), num_steps=steps)
                with SavedBytes(exclude=[*net.parameters(), x]) as saved:
                    made.train_step(x, y)
                peaks.append(f"{saved.peak / 1e6:.2f}")
            print(f"  {name:26} {' / '.join(peaks)}")


def timing(*_: int, rounds: int = 8) -> None:
    """A training step of eight steps, the minimum of the processor's time."""
    torch.set_num_threads(1)
    for what, rules, network, shape in cases():
        torch.manual_seed(0)
        x, y = torch.rand(shape), torch.randint(10, shape[:1])
        nets = {name: network() for name in rules}
        steps = {
            name: partial(rules[name](net, torch.optim.SGD(net.parameters(), 1e-3), num_steps=8).train_step, x, y)
            for name, net in nets.items()
        }
        best = dict.fromkeys(rules, float("inf"))
        for turn in range(rounds + 2):
            for name, step in steps.items():
                start = time.process_time()
                step()
                best[name] = min(best[name], time.process_time() - start) if turn > 1 else float("inf")
        print(f"{what}, batch {shape[0]}, T=8: time of a training step in units of SLTT's")
        for name, value in best.items():
            print(f"  {name:26} {value / best['SLTT']:.2f}")


def report(name: str, scores: list[float]) -> None:
    spread = f" +- {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    print(f"  {name:26} {statistics.mean(scores):.1f}{spread}  ({', '.join(f'{s:.1f}' for s in scores)})", flush=True)


PARTS = {"digits": digits, "rows": rows, "recall": recall, "memory": memory, "time": timing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=25)
    arguments = parser.parse_args()
    for part in arguments.parts or PARTS:
        print(part)
        PARTS[part](arguments.seeds, arguments.epochs)


if __name__ == "__main__":
    main()
