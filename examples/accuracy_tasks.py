"""What bench_accuracy.py compares: three tasks, their networks, and a training run on tensors in memory."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from spikingjelly.activation_based import functional, layer, memopt
from torch import nn

from sj_online import predict, registry
from sj_online.analysis import SavedBytes
from sj_online.analysis.live import peak_live_bytes
from sj_online.analysis.rivals import Block, in_blocks
from sj_online.model import small_vgg
from sj_online.neuron import ottt_lif

WARMUP, TIMED = 5, 5
ALL = {
    "BPTT": ("bptt", {}),
    "BPTT + memopt": ("bptt", {}),
    "SLTT": ("sltt", {}),
    "OTTT": ("ottt", {}),
    "NDOT": ("ndot", {}),
    "STOL": ("stol", {}),
    "time slicing": ("time_slicing", {"k": 2}),
    "random BP": ("random_bp", {"k": 1}),
    "FPTT": ("fptt", {}),
    "rate BP": ("rate_bp", {}),
    "e-prop": ("eprop", {}),
    "DECOLLE": ("decolle", {}),
}
LONG = {name: ALL[name] for name in ("BPTT", "SLTT", "OTTT", "e-prop")} | {"time slicing": ("time_slicing", {"k": 10})}


@dataclass(frozen=True)
class Task:
    """A task: where its data are from, the network, T of static inputs, and the budget."""

    data: Callable
    net: Callable
    steps: int | None
    rules: dict
    epochs: int
    train: int = 12_000
    test: int = 10_000
    batch: int = 128
    per_step_targets: bool = False


def fully_connected(inputs, hidden, classes, tau):
    """Two hidden layers of LIF; a leak of 1 - 1 / tau."""
    return nn.Sequential(
        layer.Linear(inputs, hidden),
        ottt_lif(tau=tau),
        layer.Linear(hidden, hidden),
        ottt_lif(tau=tau),
        layer.Linear(hidden, classes),
    )


def slow(tau):
    """64 LIF as slow as the sequence is long: no bias, which they would integrate, and weights that a cue shows in."""
    net = nn.Sequential(layer.Linear(6, 64, bias=False), ottt_lif(tau=tau), layer.Linear(64, 4))
    nn.init.normal_(net[0].weight, 0, 0.5)
    return net


def convolutional():
    """Three convolutions, each with a batch norm and LIF neurons."""
    return small_vgg(width=8, neuron="ottt_lif", synapse="float")


def fashion(rows):
    return lambda folder: registry.get("data", "fashion_mnist")(folder, rows=rows)


def recall(steps):
    """Ten spikes of noise a sequence, however long it is."""
    return lambda _: registry.get("data", "delayed_recall")(steps=steps, count=4000, noise=min(1.0, 10 / steps))


TASKS = {
    "images": Task(fashion(False), convolutional, 4, ALL, 4),
    "rows": Task(fashion(True), lambda: fully_connected(28, 128, 10, 10.0), None, ALL, 6),
    "recall_100": Task(recall(100), lambda: slow(100.0), None, LONG, 9, 4000, 2000, 100, True),
    "recall_1000": Task(recall(1000), lambda: slow(1000.0), None, LONG, 4, 4000, 2000, 100, True),
}


def tensors(data, part, count):
    """The first items of a part as one batch: x, y and, with a target at every step, a mask; and the axis of items."""
    items = getattr(data, part)
    return data.collate([items[i] for i in range(min(count, len(items)))]), 0 if data.steps is None else 1


def chosen(whole, places, axis):
    """Items of one batch; labels of a whole sequence have them first."""
    x, y, *mask = whole
    return x.index_select(axis, places), *(each.index_select(each.dim() - 1, places) for each in (y, *mask))


def make_rule(task, name, lr, x):
    """The network and its rule."""
    registered, options = task.rules[name]
    net = task.net()
    if "memopt" in name:
        functional.set_step_mode(net, "m")
        in_blocks(net)
        frames = x if task.steps is None else x.expand(task.steps, *x.shape)
        memopt.optimize_memory(net, Block, example_forward=lambda net: net(frames), level=1)
        functional.reset_net(net)
    adam = torch.optim.Adam(net.parameters(), lr)
    return registry.get("trainers", registered)(
        net, adam, num_steps=task.steps, per_step_targets=task.per_step_targets, **options
    )


def memory(task, name, training, axis):
    """Bytes saved for backward, and all that is live at once, in a training step."""
    batch = chosen(training, torch.arange(task.batch), axis)
    rule = make_rule(task, name, 1e-3, batch[0])
    for _ in range(3):
        rule.train_step(*batch)
    with SavedBytes([batch[0], *rule.net.parameters()]) as saved:
        rule.train_step(*batch)
    return {"saved": saved.peak, "live": peak_live_bytes(lambda: rule.train_step(*batch))}


def train(task, name, lr, seed, training, axis, epochs, limit):
    """Train; returns the network, the batches seen and planned, and the seconds."""
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    count = training[0].shape[axis]
    each = count // task.batch
    planned = total = max(1, round(epochs * each))
    began, rule, done = time.process_time(), None, 0
    while done < total:
        for places in torch.randperm(count, generator=order)[: each * task.batch].split(task.batch)[: total - done]:
            batch = chosen(training, places, axis)
            rule = rule or make_rule(task, name, lr, batch[0])
            for group in rule.optimizer.param_groups:
                group["lr"] = lr * (1 + math.cos(math.pi * done / total)) / 2
            rule.train_step(*batch)
            done += 1
            if done == WARMUP:
                warm = time.process_time()
            if done == WARMUP + TIMED:
                total = min(total, max(done, int(limit * TIMED / (time.process_time() - warm))))
            if done >= total:
                break
    return rule.net, done, planned, time.process_time() - began


def accuracy(task, net, whole, axis):
    """The share that is classified right, of the steps that count where each has a target."""
    right = of = 0
    for places in torch.arange(whole[0].shape[axis]).split(250):
        x, y, *mask = chosen(whole, places, axis)
        hits = predict(net, x, task.steps, "none" if mask else "mean").argmax(-1) == y
        hits = hits[mask[0]] if mask else hits
        right, of = right + hits.sum().item(), of + hits.numel()
    return right / of
