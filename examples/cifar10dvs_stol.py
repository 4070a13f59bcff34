"""CIFAR10-DVS by STOL: a VGG of two steps in one graph, an update at every step, whatever T.

python examples/cifar10dvs_stol.py -data-dir DIR -T 10 -device cuda:0
"""

import argparse

import torch
from spikingjelly.activation_based import functional, layer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sj_online import predict
from sj_online.neuron import stol_lif
from sj_online.optim import param_groups
from sj_online.trainer import STOL

parser = argparse.ArgumentParser(description="CIFAR10-DVS by STOL")
parser.add_argument("-T", default=10, type=int, help="simulating time-steps")
parser.add_argument("-device", default="cuda:0", help="device")
parser.add_argument("-b", default=32, type=int, help="batch size")
parser.add_argument("-epochs", default=100, type=int, help="number of total epochs to run")
parser.add_argument("-j", default=4, type=int, help="number of data loading workers")
parser.add_argument("-data-dir", help="root dir of the CIFAR10-DVS dataset")
parser.add_argument("-amp", action="store_true", help="automatic mixed precision training (bfloat16)")
parser.add_argument("-lr", default=0.05, type=float, help="learning rate")
parser.add_argument("-channels", default=64, type=int, help="channels behind the first convolution")
parser.add_argument("--smoke", action="store_true", help="two batches of made frames")
args = parser.parse_args()

if args.smoke:
    args.T, args.b, args.channels, args.epochs, args.device, args.j = 3, 2, 4, 1, "cpu", 0
    frames = torch.randint(3, (2 * args.b, args.T, 2, 128, 128)).float()
    train_set = test_set = TensorDataset(frames, torch.randint(10, (len(frames),)))
else:
    from spikingjelly.datasets.cifar10_dvs import CIFAR10DVS

    frames = CIFAR10DVS(args.data_dir, data_type="frame", frames_number=args.T, split_by="number")
    split = torch.Generator().manual_seed(0)
    train_set, test_set = torch.utils.data.random_split(frames, [0.9, 0.1], generator=split)
train_loader = DataLoader(train_set, args.b, shuffle=True, drop_last=True, num_workers=args.j)
test_loader = DataLoader(test_set, args.b, num_workers=args.j)


def block(channels, out_channels):
    conv = layer.Conv2d(channels, out_channels, 3, padding=1, bias=False)
    return [conv, layer.BatchNorm2d(out_channels), stol_lif(), layer.AvgPool2d(2)]


C = args.channels
net = nn.Sequential(
    layer.AvgPool2d(2),  # 128 x 128 -> 64 x 64
    *block(2, C),
    *block(C, 2 * C),
    *block(2 * C, 4 * C),
    *block(4 * C, 8 * C),
    layer.Flatten(),
    layer.Linear(8 * C * 4 * 4, 10),
).to(args.device)
functional.set_step_mode(net, "s")
optimizer = torch.optim.SGD(param_groups(net, weight_decay=5e-4), lr=args.lr, momentum=0.9)
lr_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
rule = STOL(net, optimizer, horizon=2)

for epoch in range(args.epochs):
    net.train()
    train_loss = 0.0
    for frame, label in train_loader:
        with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.amp):
            result = rule.train_step(frame.to(args.device).transpose(0, 1), label.to(args.device))
        train_loss += result.loss.item() / len(train_loader)
    lr_scheduler.step()

    correct = 0
    for frame, label in test_loader:
        output = predict(net, frame.to(args.device).transpose(0, 1))  # [T, N, C, H, W] -> [N, classes]
        correct += (output.argmax(1).cpu() == label).sum().item()
    print(f"epoch {epoch}: train_loss {train_loss:.4f}, test_acc {correct / len(test_set):.4f}")
