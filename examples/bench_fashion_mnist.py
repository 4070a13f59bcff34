"""Rules and binary weights on Fashion-MNIST: accuracy over three seeds, memory, and time of a batch.

python examples/bench_fashion_mnist.py --data DIR --out runs/fashion_mnist [--download]

BPTT, SLTT and OTTT train one float network of LIF neurons for one epoch (recipe fashion_mnist_rules), and EM-PF a
wider one with binary weights online for twelve (recipe fashion_mnist). Each run is a directory in --out; runs that are
there already are resumed or read. Two hours on one core. It exits with 1 if the binary network stays below
90.5 % on average, or if loading is less than three times as fast as training.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch

from sj_online.analysis.timing import interleaved
from sj_online.app import batches, reader
from sj_online.app.build import build
from sj_online.app.cli import main as sj_online
from sj_online.app.rehearse import samples

ROWS = {
    "BPTT": ("fashion_mnist_rules", "bptt"),
    "SLTT": ("fashion_mnist_rules", "sltt"),
    "OTTT": ("fashion_mnist_rules", "ottt"),
    "EM-PF, binary, online": ("fashion_mnist", "sltt"),
}
BOUND = 0.905
SEEDS = (0, 1, 2)
ROUNDS = 5


def train(recipe, rule, seed, args):
    """One run, or what is left of it; returns its directory."""
    out = args.out / f"{recipe}_{rule}_{seed}"
    if not (out / "summary.json").exists():
        command = ["train", "--recipe", recipe, "--train.rule", rule, "--seed", str(seed), "--out", str(out)]
        command += ["--data", str(args.data)] if args.data else []
        command += ["--resume"] if (out / "last.ckpt").exists() else []
        command += ["--download"] if args.download else []
        if status := sj_online(command):
            sys.exit(status)
    return out


def measured(out):
    """Of a run: test accuracy, bytes saved for backward, how many times faster it loads than it trains."""
    summary = json.loads((out / "summary.json").read_text())
    epochs = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    waiting = statistics.median(epoch["waiting"] for epoch in epochs)
    return summary["test_accuracy"], summary["saved_bytes"], (1 - waiting) / waiting


def a_batch(recipe, rule):
    """A function that trains on one batch of random images."""
    parts = build(reader.build(reader.source(recipe), [{"train": {"rule": {"name": rule}}}]), rehearsal=True)
    parts.net.train()
    batch = samples(parts, parts.recipe.train.batch_size)
    return lambda: batches.train_batch(parts, batch)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder that holds, or will hold, FashionMNIST/raw")
    parser.add_argument("--out", type=Path, default=Path("runs/fashion_mnist"))
    parser.add_argument("--download", action="store_true")
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS), metavar="ROW", help=f"of {list(ROWS)}")
    args = parser.parse_args()
    runs = {row: [measured(train(*ROWS[row], seed, args)) for seed in SEEDS] for row in args.rows}
    torch.set_num_threads(1)
    seconds = interleaved({row: a_batch(*ROWS[row]) for row in args.rows}, ROUNDS)
    print(f"\n{'':24}{'test accuracy, %':>22}{'MB saved':>12}{'s a batch':>12}{'loading / training':>22}")
    good = True
    for row, found in runs.items():
        accuracies, saved, loading = zip(*found, strict=True)
        mean, spread = statistics.mean(accuracies), statistics.stdev(accuracies)
        print(
            f"{row:24}{100 * mean:14.2f} +- {100 * spread:4.2f}{saved[0] / 1e6:12.1f}{seconds[row]:12.3f}"
            f"{min(loading):22.1f}"
        )
        good &= min(loading) >= 3 and (mean >= BOUND or "binary" not in row)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
