"""Hybrid and sparse training on real digits: what fine-tuning brings back, and what zeros cost."""

import copy
import math
from functools import partial

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from sj_online import predict
from sj_online.convert import qcfs_to_lmh
from sj_online.neuron import QCFS, LMHNode
from sj_online.optim import param_groups
from sj_online.sparse import sparsify, sparsity
from sj_online.trainer import BPTT

L = 4
POINT = 0.01


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16, torch.from_numpy(labels)
    return (x[:704] - 0.5, y[:704]), (x[1347:] - 0.5, y[1347:])


def network(activation, width):
    torch.manual_seed(1)
    net, channels = nn.Sequential(), 1
    for out in (width, 2 * width, 4 * width):
        net.extend([nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), activation()])
        net.append(nn.AvgPool2d(2))
        channels = out
    return net.extend([nn.Flatten(), nn.Linear(channels, 10)])


def train(net, data, epochs, lr, T, decay=5e-4, before=lambda: None):
    x, y = data
    batches = len(x) // 64
    optimizer = torch.optim.SGD(param_groups(net, decay), lr=lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    rule = BPTT(net.train(), optimizer, num_steps=T)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64)[:batches]:
            before()
            rule.train_step(x[batch], y[batch])
            schedule.step()


def accuracies(net, data, T):
    """After 1 ... T steps."""
    says = predict(net, data[0], num_steps=T, reduce="running").argmax(-1)
    return says, (says == data[1]).double().mean(1).tolist()


def test_fine_tuning_brings_a_converted_network_back_to_its_ann(digits):
    training, test = digits
    net = network(partial(QCFS, L, 2.0), 8)
    train(net, training, 15, 0.1, 1)
    ann, (accuracy,) = accuracies(net, test, 1)
    qcfs_to_lmh(net)
    says, converted = accuracies(net, test, 8 * L)
    agreement = [(says[T - 1] == ann[0]).double().mean().item() for T in (L, 2 * L, 8 * L)]
    assert accuracy > 0.9 and min(agreement) > 0.9 and not math.isclose(min(agreement), 1.0)
    for T in (2, L):
        tuned = copy.deepcopy(net)
        train(tuned, training, 8, 0.05, T)
        after = accuracies(tuned, test, T)[1][-1]
        assert after > converted[T - 1]
    assert after >= accuracy - POINT


def test_four_fifths_of_the_weights_may_go(digits):
    training, test = digits
    found = []
    for D in (0.0, 0.08):
        net = network(LMHNode, 16)
        schedule = sparsify(net, D, 12 * 11)
        train(net, training, 12, 0.1, 2, before=schedule.step)
        found.append((sparsity(net), accuracies(net, test, 2)[1][-1]))
    (none, dense), (share, sparse) = found
    assert none == 0 and share >= 0.8 and dense > 0.9
    assert sparse >= dense - POINT
