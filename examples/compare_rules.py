"""The same network and data under several rules: loss, accuracy, memory and time, side by side.

python examples/compare_rules.py

Handwritten digits row by row, 8 rows of 8 pixels, so that time matters.
"""

import argparse
import time

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import nn

from sj_online import predict
from sj_online.analysis import SavedBytes
from sj_online.trainer import BPTT, FPTT, NDOT, OTTT, SLTT, STOL, RandomBP, TimeSlicing

parser = argparse.ArgumentParser(description="Rules side by side")
parser.add_argument("-b", default=64, type=int, help="batch size")
parser.add_argument("-epochs", default=20, type=int, help="number of total epochs to run")
parser.add_argument("-lr", default=5e-3, type=float, help="learning rate")
parser.add_argument("--smoke", action="store_true", help="two batches")
args = parser.parse_args()

RULES = {
    "BPTT": (BPTT, {}),
    "slices of 4": (TimeSlicing, {"k": 4}),
    "STOL": (STOL, {}),
    "OTTT": (OTTT, {}),
    "OTTT, exact flags": (OTTT, {"trace_input": True, "trace_readout": False}),
    "NDOT": (NDOT, {}),
    "SLTT": (SLTT, {}),
    "SLTT, update per step": (SLTT, {"update": "step", "step_scale": "sum"}),
    "random BP": (RandomBP, {"k": 1}),
    "FPTT": (FPTT, {}),
}

torch.set_num_threads(1)
digits = load_digits()
rows = torch.from_numpy(digits.images).float().div(16).transpose(0, 1)  # [T, N, 8]
labels = torch.from_numpy(digits.target).long()
train, test = train_test_split(range(len(labels)), test_size=0.25, stratify=labels, random_state=0)
train, test = torch.tensor(train), torch.tensor(test)
if args.smoke:
    args.epochs, train = 1, train[: 2 * args.b]


def network():
    options = {"decay_input": False, "surrogate_function": surrogate.ATan(), "detach_reset": True}
    return nn.Sequential(
        layer.Linear(8, 64),
        neuron.LIFNode(tau=4.0, **options),
        layer.Linear(64, 64),
        neuron.LIFNode(tau=4.0, **options),
        layer.Linear(64, 10),
    )


print(f"{'rule':<24}{'loss':>8}{'test accuracy':>16}{'kB saved':>12}{'s an epoch':>12}")
for name, (rule_class, options) in RULES.items():
    torch.manual_seed(0)
    net = network()
    rule = rule_class(net, torch.optim.Adam(net.parameters(), lr=args.lr), **options)
    start = time.perf_counter()
    with SavedBytes(net.parameters()) as saved:
        for _ in range(args.epochs):
            losses = [
                rule.train_step(rows[:, n], labels[n]).loss for n in train[torch.randperm(len(train))].split(args.b)
            ]
    seconds = (time.perf_counter() - start) / args.epochs
    accuracy = (predict(net, rows[:, test]).argmax(1) == labels[test]).float().mean()
    loss = torch.stack(losses).mean()
    print(f"{name:<24}{loss:8.3f}{accuracy:16.4f}{saved.peak / 1e3:12.1f}{seconds:12.2f}", flush=True)
    rule.close()
