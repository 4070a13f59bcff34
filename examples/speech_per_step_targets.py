"""A target at every step, sequences of different length: what is spoken now, from spikes of 700 channels of a cochlea.

python examples/speech_per_step_targets.py -data-dir DIR     # shd_train.h5 and shd_test.h5

Spiking Heidelberg Digits (Cramer et al. 2020). The label is the target at each step of a word; the mask leaves out what
lies behind its end, so that silence teaches nothing.
"""

import argparse

import torch
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import nn
from torch.utils.data import DataLoader

from sj_online import predict
from sj_online.data.base import stack_sequences
from sj_online.data.sequences import shd
from sj_online.trainer import OTTT

parser = argparse.ArgumentParser(description="Spoken digits, a target at every step")
parser.add_argument("-T", default=100, type=int, help="simulating time-steps")
parser.add_argument("-device", default="cpu", help="device")
parser.add_argument("-b", default=64, type=int, help="batch size")
parser.add_argument("-epochs", default=20, type=int, help="number of total epochs to run")
parser.add_argument("-data-dir", help="folder of shd_train.h5 and shd_test.h5")
parser.add_argument("-lr", default=1e-3, type=float, help="learning rate")
parser.add_argument("--smoke", action="store_true", help="two batches of made sequences")
args = parser.parse_args()

if args.smoke:
    args.T, args.b, args.epochs, args.device = 10, 4, 1, "cpu"
    train_set = test_set = [(torch.randint(2, (args.T, 700)).float(), n % 20) for n in range(2 * args.b)]
else:
    data = shd(args.data_dir, steps=args.T, validation=0)
    train_set, test_set = data.train, data.test
train_loader = DataLoader(train_set, args.b, shuffle=True, drop_last=True, collate_fn=stack_sequences)
test_loader = DataLoader(test_set, args.b, collate_fn=stack_sequences)


def spoken(x):
    """[T, N], true up to the last spike of each sample."""
    return x.sum(-1).flip(0).cumsum(0).flip(0) > 0


options = {"tau": 10.0, "decay_input": False, "surrogate_function": surrogate.ATan(), "detach_reset": True}
net = nn.Sequential(
    layer.Linear(700, 256),
    neuron.LIFNode(**options),
    layer.Linear(256, 256),
    neuron.LIFNode(**options),
    layer.Linear(256, 20),
).to(args.device)
optimizer = torch.optim.Adam(net.parameters(), lr=args.lr)
rule = OTTT(net, optimizer, trace_input=True, trace_readout=False, per_step_targets=True)

for epoch in range(args.epochs):
    net.train()
    train_loss = 0.0
    for x, label in train_loader:  # [T, N, 700], [N]
        x, label = x.to(args.device), label.to(args.device)
        train_loss += rule.train_step(x, label.expand(args.T, -1), mask=spoken(x)).loss.item() / len(train_loader)

    correct = 0
    for x, label in test_loader:
        each_step = predict(net, x.to(args.device), reduce="none")  # [T, N, 20]
        output = (each_step * spoken(x).to(args.device)[..., None]).sum(0)
        correct += (output.argmax(1).cpu() == label).sum().item()
    print(f"epoch {epoch}: train_loss {train_loss:.4f}, test_acc {correct / len(test_set):.4f}")
