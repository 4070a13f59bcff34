"""Convolutions on Fashion-MNIST, trained online: SpikingJelly's conv_fashion_mnist.py, its changed lines marked.

python examples/conv_fashion_mnist_online.py -data-dir DIR -device cpu -channels 16 -epochs 2
"""

import argparse

import torch
import torch.nn.functional as F
import torchvision
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn
from torchvision.transforms import ToTensor

from sj_online import predict  # online
from sj_online.trainer import SLTT  # online

parser = argparse.ArgumentParser(description="Fashion-MNIST, online")
parser.add_argument("-T", default=4, type=int, help="simulating time-steps")
parser.add_argument("-device", default="cuda:0", help="device")
parser.add_argument("-b", default=128, type=int, help="batch size")
parser.add_argument("-epochs", default=64, type=int, help="number of total epochs to run")
parser.add_argument("-j", default=4, type=int, help="number of data loading workers")
parser.add_argument("-data-dir", default="data", help="root dir of the Fashion-MNIST dataset, downloaded to it")
parser.add_argument("-resume", help="resume from the checkpoint path")
parser.add_argument("-amp", action="store_true", help="automatic mixed precision training (bfloat16)")
parser.add_argument("-cupy", action="store_true", help="set the neurons to use the cupy backend")
parser.add_argument("-opt", choices=["sgd", "adam"], default="sgd")
parser.add_argument("-momentum", default=0.9, type=float, help="momentum for SGD")
parser.add_argument("-lr", default=0.1, type=float, help="learning rate")
parser.add_argument("-channels", default=128, type=int, help="channels of the network")
parser.add_argument("--smoke", action="store_true", help="two batches of made images")
args = parser.parse_args()

if args.smoke:
    args.epochs, args.device, args.j, args.b, args.channels = 1, "cpu", 0, 4, 4
    train_set = test_set = torchvision.datasets.FakeData(2 * args.b, (1, 28, 28), 10, ToTensor())
else:
    train_set = torchvision.datasets.FashionMNIST(args.data_dir, train=True, transform=ToTensor(), download=True)
    test_set = torchvision.datasets.FashionMNIST(args.data_dir, train=False, transform=ToTensor(), download=True)
train_loader = torch.utils.data.DataLoader(train_set, args.b, shuffle=True, drop_last=True, num_workers=args.j)
test_loader = torch.utils.data.DataLoader(test_set, args.b, num_workers=args.j)

C = args.channels
net = nn.Sequential(
    layer.Conv2d(1, C, 3, padding=1, bias=False),
    layer.BatchNorm2d(C),
    neuron.IFNode(surrogate_function=surrogate.ATan()),
    layer.MaxPool2d(2),
    layer.Conv2d(C, C, 3, padding=1, bias=False),
    layer.BatchNorm2d(C),
    neuron.IFNode(surrogate_function=surrogate.ATan()),
    layer.MaxPool2d(2),
    layer.Flatten(),
    layer.Linear(C * 7 * 7, C * 4 * 4, bias=False),
    neuron.IFNode(surrogate_function=surrogate.ATan()),
    layer.Linear(C * 4 * 4, 10, bias=False),
    neuron.IFNode(surrogate_function=surrogate.ATan()),
).to(args.device)
functional.set_step_mode(net, "m")
if args.cupy:
    functional.set_backend(net, "cupy", neuron.IFNode)
if args.opt == "sgd":
    optimizer = torch.optim.SGD(net.parameters(), lr=args.lr, momentum=args.momentum)
else:
    optimizer = torch.optim.Adam(net.parameters(), lr=args.lr)
lr_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
rule = SLTT(
    net, optimizer, loss_fn=F.mse_loss, num_steps=args.T
)  # online: the image at each of T steps, never repeated

start_epoch = 0
if args.resume:
    checkpoint = torch.load(args.resume, map_location="cpu")
    net.load_state_dict(checkpoint["net"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    lr_scheduler.load_state_dict(checkpoint["lr_scheduler"])
    start_epoch = checkpoint["epoch"] + 1

for epoch in range(start_epoch, args.epochs):
    net.train()
    train_loss, train_acc = 0.0, 0.0
    for img, label in train_loader:
        img, label = img.to(args.device), label.to(args.device)
        with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.amp):
            result = rule.train_step(img, F.one_hot(label, 10).float())  # online
        train_loss += result.loss.item() / len(train_loader)
        train_acc += (result.output.argmax(1) == label).float().mean().item() / len(train_loader)
    lr_scheduler.step()

    correct = 0
    for img, label in test_loader:
        output = predict(net, img.to(args.device), num_steps=args.T)  # online
        correct += (output.argmax(1).cpu() == label).sum().item()
    print(
        f"epoch {epoch}: train_loss {train_loss:.4f}, train_acc {train_acc:.4f}, test_acc {correct / len(test_set):.4f}"
    )
    if not args.smoke:
        checkpoint = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        torch.save(checkpoint | {"lr_scheduler": lr_scheduler.state_dict()}, "checkpoint_latest.pth")
