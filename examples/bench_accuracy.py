"""Rules beside each other as a sceptic would ask for: accuracy against memory against time, three tasks, three seeds.

    python examples/bench_accuracy.py --data DIR [--tasks images rows recall_100 recall_1000] [--rules BPTT SLTT ...]
    python examples/bench_accuracy.py --table                  # README's table, from the CSV alone
    python examples/bench_accuracy.py --figure pareto.png

Every rule trains the same network with Adam and a cosine. Its learning rate is chosen among three, with one seed on a
third of the budget, by validation accuracy; then come three seeds on the whole budget, and the test data. Every run is
a line in the CSV, so a benchmark that was stopped goes on where it was. A run that would take longer than --limit
seconds is made shorter, and the table says so. Time is that of the process, on one thread.
"""

import argparse
import csv
import statistics
from pathlib import Path

import torch
from accuracy_tasks import ALL, TASKS, accuracy, memory, tensors, train

from sj_online import registry
from sj_online.files import replacing

CSV = Path(__file__).with_suffix(".csv")
COLUMNS = [
    *("task", "rule", "stage", "lr", "seed", "batches", "planned", "accuracy", "samples", "seconds", "saved", "live")
]
LEARNING_RATES = (5e-4, 2e-3, 8e-3)
SEEDS = (0, 1, 2)
NOTES = """\
Weak points: 12,000 images and a few epochs, so accuracies are those of a short training, not the best ones; networks of
6,000 to 25,000 weights on one CPU core; one optimizer, three learning rates from one seed; three seeds, so differences
below two spreads say nothing; the made recall flatters rules that carry a trace. BPTT + memopt runs multi-step, where
batch normalisation sees all steps together. Not shown: a GPU, larger networks, event data."""


def rows_in(path, **values):
    """What is measured already, of these values."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if all(row[key] == str(value) for key, value in values.items())]


def append(path, row):
    """Add a line; who is stopped while it is written leaves the file as it was."""
    rows = [*rows_in(path), row]
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def runs(path, task, rule, epochs):
    """Stage, learning rate, seed and epochs of the runs that are not there yet, in their order."""
    for lr in LEARNING_RATES:
        if not rows_in(path, task=task, rule=rule, stage="choose", lr=lr):
            yield "choose", lr, SEEDS[0], epochs / 3
    best = max(rows_in(path, task=task, rule=rule, stage="choose"), key=lambda row: float(row["accuracy"]))
    for seed in SEEDS:
        if not rows_in(path, task=task, rule=rule, stage="final", seed=seed):
            yield "final", float(best["lr"]), seed, epochs


def bench(args):
    """Run what is not in the CSV yet."""
    torch.set_num_threads(1)
    for task_name in args.tasks:
        task, parts = TASKS[task_name], {}
        for name in [each for each in task.rules if not args.rules or each in args.rules]:
            if task.rules[name][0] not in registry.names("trainers"):
                print(f"{name} is left out: no rule {task.rules[name][0]} is registered", flush=True)
                continue
            for stage, lr, seed, epochs in runs(args.csv, task_name, name, task.epochs):
                if not parts:
                    data, sizes = task.data(args.data), {"train": task.train, "validation": 2000, "test": task.test}
                    parts = {part: tensors(data, part, size) for part, size in sizes.items()}
                there = rows_in(args.csv, task=task_name, rule=name)
                held = (
                    {key: there[0][key] for key in ("saved", "live")} if there else memory(task, name, *parts["train"])
                )
                row = {"task": task_name, "rule": name, "stage": stage, "lr": lr, "seed": seed} | held
                net, *counts = train(task, name, lr, seed, *parts["train"], epochs, args.limit)
                row |= dict(zip(("batches", "planned", "seconds"), counts, strict=True))
                whole, axis = parts["validation" if stage == "choose" else "test"]
                row |= {"accuracy": accuracy(task, net, whole, axis), "samples": whole[0].shape[axis]}
                append(args.csv, row)
                print(
                    f"{task_name:12} {name:14} {stage:6} lr {lr:<6g} seed {seed}: {100 * row['accuracy']:.2f} % of"
                    f" {row['samples']}, {row['seconds']:.0f} s",
                    flush=True,
                )


def summary(path):
    """By task and rule: mean and spread over the seeds, memory and time."""
    found = {}
    for row in rows_in(path, stage="final"):
        found.setdefault((row["task"], row["rule"]), []).append(row)
    for (task, rule), rows in found.items():
        values = [float(row["accuracy"]) for row in rows]
        yield {
            "task": task,
            "rule": rule,
            "accuracy": statistics.fmean(values),
            "spread": statistics.stdev(values) if len(values) > 1 else 0.0,
            "seeds": len(values),
            "lr": float(rows[0]["lr"]),
            "samples": int(rows[0]["samples"]),
            "saved_bytes": float(rows[0]["saved"]),
            "peak_bytes": float(rows[0]["live"]),
            "seconds": statistics.fmean(float(row["seconds"]) for row in rows),
            "share": statistics.fmean(int(row["batches"]) / int(row["planned"]) for row in rows),
        }


def table(path):
    """README's table."""
    print("| task | rule | test accuracy, % | saved, MB | live, MB | s a run | learning rate | |")
    print("|---|---|---|---|---|---|---|---|")
    for row in summary(path):
        shorter = "" if row["share"] == 1 else f"made shorter: {100 * row['share']:.0f} % of the batches"
        fewer = "" if row["seeds"] == len(SEEDS) else f"{row['seeds']} seeds"
        print(
            f"| {row['task']} | {row['rule']} | {100 * row['accuracy']:.2f} ± {100 * row['spread']:.2f} "
            f"| {row['saved_bytes'] / 1e6:.2f} | {row['peak_bytes'] / 1e6:.2f} | {row['seconds']:.0f} | {row['lr']:g} "
            f"| {' '.join(filter(None, (shorter, fewer)))} |"
        )
    print(f"\n{NOTES}")


def figure(path, to):
    """Accuracy against memory and against time."""
    from sj_online.analysis import figures, look

    points = {}
    for row in summary(path):
        points.setdefault(row["task"], []).append(row)
    look.save_png(figures.pareto(points), to)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder that holds FashionMNIST/raw")
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rules", nargs="*", choices=ALL, metavar="RULE", help=f"of {list(ALL)}")
    parser.add_argument("--limit", type=float, default=600, help="seconds that a run may take")
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--table", action="store_true", help="print the table and stop")
    parser.add_argument("--figure", type=Path, help="draw the figure and stop")
    args = parser.parse_args(argv)
    if args.table:
        table(args.csv)
    elif args.figure:
        figure(args.csv, args.figure)
    else:
        bench(args)


if __name__ == "__main__":
    main()
