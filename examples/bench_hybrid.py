"""LM-H's hybrid training: an ANN, what conversion leaves of it, and what a few epochs of fine-tuning bring back.

    python examples/bench_hybrid.py [--data DIR] [--images 6000] [--tests 2000]
        [--seeds 0 1 2] [--parts hybrid direct host sparse]

Without --data the digits of scikit-learn, with it Fashion-MNIST. Accuracies are of the test data, in percent, mean and
standard deviation over the seeds; agreement is the share of test images of which a network says what the ANN says.
Seconds are of the process, on one thread; memory is the peak of the bytes saved for backward by a batch.
"""

import argparse
import copy
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from statistics import fmean, pstdev
from typing import Any

import torch
from spikingjelly.activation_based import ann2snn
from torch import Tensor, nn

from sj_online import predict, registry
from sj_online.analysis.memory import SavedBytes
from sj_online.convert import qcfs_to_lmh, relu_to_qcfs
from sj_online.neuron import QCFS, LMHNode
from sj_online.optim import param_groups
from sj_online.sparse import sparsify, sparsity
from sj_online.trainer import BPTT

L, BATCH, WIDTH = 4, 64, 8
LR, TUNE_LR, DECAY = 0.1, 0.05, 5e-4
EPOCHS = {"digits": (20, 15), "fashion_mnist": (8, 4)}  # of the ANN, and of fine-tuning
DEPTHS = (0.1, 0.2, 0.3)  # of the sparse networks, the threshold at the end

Data = tuple[Tensor, Tensor]
Results = dict[str, list[float]]


def load(name: str, root: str | None, images: int, tests: int) -> tuple[Data, Data]:
    data = registry.get("data", name)(root)
    training, test = range(min(images, len(data.train))), range(min(tests, len(data.test)))
    return data.collate([data.train[i] for i in training]), data.collate([data.test[i] for i in test])


def network(seed: int, activation: Callable[[], nn.Module], side: int) -> nn.Sequential:
    """Three convolutions of torch's own modules; ``side`` = H = W of the images."""
    torch.manual_seed(seed)
    net, channels = nn.Sequential(), 1
    for out in (WIDTH, 2 * WIDTH, 4 * WIDTH):
        net.extend([nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), activation()])
        net.append(nn.AvgPool2d(2))
        channels, side = out, side // 2
    return net.extend([nn.Flatten(), nn.Linear(channels * side**2, 10)])


def train(
    net: nn.Module, data: Data, epochs: int, lr: float, T: int, before: Callable[[], object] = lambda: None
) -> Iterator[tuple[float, int]]:
    """Train, and give the seconds of the process and the bytes saved for backward so far after each epoch."""
    x, y = data
    optimizer = torch.optim.SGD(param_groups(net, DECAY), lr=lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (len(x) // BATCH))
    rule = BPTT(net, optimizer, num_steps=T)
    seconds = 0.0
    probe = copy.deepcopy(net)
    with SavedBytes([*probe.parameters(), x]) as saved:
        next(BPTT(probe, torch.optim.SGD(probe.parameters(), lr=lr), num_steps=T).gradients(x[:BATCH], y[:BATCH]))
    for _ in range(epochs):
        net.train()
        start = time.process_time()
        for batch in torch.randperm(len(x)).split(BATCH)[: len(x) // BATCH]:
            before()
            rule.train_step(x[batch], y[batch])
            schedule.step()
        seconds += time.process_time() - start
        yield seconds, saved.peak


def run(*args: Any, **kwargs: Any) -> tuple[float, int]:
    return list(train(*args, **kwargs))[-1]


@torch.no_grad()
def says(net: nn.Module, x: Tensor, T: int) -> Tensor:
    """Classes [T, N] after 1 ... T steps."""
    return torch.cat([predict(net, part, num_steps=T, reduce="running").argmax(-1) for part in x.split(500)], 1)


def accuracy(net: nn.Module, data: Data, T: int) -> float:
    return 100 * float((says(net, data[0], T)[-1] == data[1]).double().mean())


def hybrid(seed: int, training: Data, test: Data, epochs: tuple[int, int], rows: Results) -> None:
    net = network(seed, partial(QCFS, L, 2.0), training[0].shape[-1])
    seconds, saved = run(net, training, epochs[0], LR, 1)
    ann = says(net, test[0], 1)[0]
    rows["ANN, QCFS, L=4"].append(100 * float((ann == test[1]).double().mean()))
    rows["ANN: seconds"].append(seconds)
    rows["ANN: MB saved"].append(saved / 1e6)
    qcfs_to_lmh(net)
    steps = says(net, test[0], 8 * L)
    for T in (2, L, 2 * L, 8 * L):
        rows[f"converted, T={T}"].append(100 * float((steps[T - 1] == test[1]).double().mean()))
        rows[f"converted, T={T}: agreement with the ANN"].append(100 * float((steps[T - 1] == ann).double().mean()))
    for T in (2, L):
        tuned = copy.deepcopy(net)
        seconds, saved = run(tuned, training, epochs[1], TUNE_LR, T)
        rows[f"fine-tuned, T={T}"].append(accuracy(tuned, test, T))
        rows[f"fine-tuned, T={T}: seconds"].append(seconds)
        rows[f"fine-tuned, T={T}: MB saved"].append(saved / 1e6)


def host(seed: int, training: Data, test: Data, epochs: tuple[int, int], rows: Results) -> None:
    net = network(seed, nn.ReLU, training[0].shape[-1])
    run(net, training, epochs[0], LR, 1)
    rows["ANN, ReLU"].append(accuracy(net, test, 1))
    x = training[0][:512]
    theirs = ann2snn.FXConverter(ann2snn.RateCodingRecipe([x], mode="99.9%"), "cpu").convert(copy.deepcopy(net))
    for levels in (L, 2 * L):
        ours = copy.deepcopy(net)
        relu_to_qcfs(ours, x, levels)
        rows[f"relu_to_qcfs, L={levels}"].append(accuracy(ours, test, 1))
    qcfs_to_lmh(ours)
    for T in (2, L, 2 * L, 8 * L):
        rows[f"SpikingJelly's ann2snn, T={T}"].append(accuracy(theirs, test, T))
        rows[f"relu_to_qcfs, qcfs_to_lmh, T={T}"].append(accuracy(ours, test, T))
    run(ours, training, epochs[1], TUNE_LR, L)
    rows[f"relu_to_qcfs, qcfs_to_lmh, fine-tuned, T={L}"].append(accuracy(ours, test, L))


def direct(seed: int, training: Data, test: Data, epochs: tuple[int, int], rows: Results) -> None:
    """From scratch over as many epochs as the hybrid has, and what it took to reach the hybrid's accuracy."""
    net, goal = network(seed, LMHNode, training[0].shape[-1]), rows[f"fine-tuned, T={L}"][-1]
    spent = [(accuracy(net, test, L), *cost) for cost in train(net, training, sum(epochs), LR, L)]
    first = next((epoch for epoch, (reached, *_) in enumerate(spent) if reached >= goal), len(spent) - 1)
    rows["direct: accuracy, last epoch"].append(spent[-1][0])
    rows["direct: accuracy, best epoch"].append(max(reached for reached, *_ in spent))
    rows["direct: epochs until the hybrid's accuracy (all if not reached)"].append(first + 1)
    rows["direct: seconds until then"].append(spent[first][1])
    rows["direct: seconds of all epochs"].append(spent[-1][1])
    rows["direct: MB saved"].append(spent[-1][2] / 1e6)


def sparse(seed: int, training: Data, test: Data, epochs: tuple[int, int], rows: Results) -> None:
    for depth in (0.0, *DEPTHS):
        net = network(seed, LMHNode, training[0].shape[-1])
        total = epochs[0] * (len(training[0]) // BATCH)
        schedule = sparsify(net, depth, total)
        run(net, training, epochs[0], LR, L, schedule.step)
        rows[f"D={depth}: % zeros"].append(100 * sparsity(net))
        rows[f"D={depth}: accuracy"].append(accuracy(net, test, L))


PARTS = {"hybrid": hybrid, "direct": direct, "host": host, "sparse": sparse}  # direct compares with hybrid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of Fashion-MNIST; without it the digits")
    parser.add_argument("--images", type=int, default=6000, help="so many of the training images")
    parser.add_argument("--tests", type=int, default=2000, help="so many of the test images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    name = "fashion_mnist" if args.data else "digits"
    training, test = load(name, args.data, args.images, args.tests)
    sizes = f"{len(training[0])} training images, {len(test[0])} test images"
    print(f"{name}: {sizes}, seeds {args.seeds}, epochs {EPOCHS[name]}")
    rows: Results = defaultdict(list)
    for seed in args.seeds:
        for part in args.parts:
            PARTS[part](seed, training, test, EPOCHS[name], rows)
    for label, values in rows.items():
        print(f"{label:<72} {fmean(values):8.2f} +- {pstdev(values):.2f}")


if __name__ == "__main__":
    main()
