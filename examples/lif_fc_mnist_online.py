"""LIF neurons behind a linear layer on MNIST, trained online: SpikingJelly's lif_fc_mnist.py, its changed lines marked.

python examples/lif_fc_mnist_online.py -data-dir DIR -device cpu
"""

import argparse

import torch
import torch.nn.functional as F
import torchvision
from spikingjelly.activation_based import encoding, layer, neuron, surrogate
from torch import nn
from torchvision.transforms import ToTensor

from sj_online import predict  # online
from sj_online.trainer import SLTT  # online

parser = argparse.ArgumentParser(description="LIF MNIST, online")
parser.add_argument("-T", default=100, type=int, help="simulating time-steps")
parser.add_argument("-device", default="cuda:0", help="device")
parser.add_argument("-b", default=64, type=int, help="batch size")
parser.add_argument("-epochs", default=100, type=int, help="number of total epochs to run")
parser.add_argument("-j", default=4, type=int, help="number of data loading workers")
parser.add_argument("-data-dir", default="data", help="root dir of the MNIST dataset, downloaded to it")
parser.add_argument("-resume", help="resume from the checkpoint path")
parser.add_argument("-amp", action="store_true", help="automatic mixed precision training (bfloat16)")
parser.add_argument("-opt", choices=["sgd", "adam"], default="adam")
parser.add_argument("-momentum", default=0.9, type=float, help="momentum for SGD")
parser.add_argument("-lr", default=1e-3, type=float, help="learning rate")
parser.add_argument("-tau", default=2.0, type=float, help="parameter tau of LIF neuron")
parser.add_argument("--smoke", action="store_true", help="two batches of made images")
args = parser.parse_args()

if args.smoke:
    train_set = test_set = torchvision.datasets.FakeData(2 * args.b, (1, 28, 28), 10, ToTensor())
    args.T, args.epochs, args.device, args.j = 5, 1, "cpu", 0
else:
    train_set = torchvision.datasets.MNIST(args.data_dir, train=True, transform=ToTensor(), download=True)
    test_set = torchvision.datasets.MNIST(args.data_dir, train=False, transform=ToTensor(), download=True)
train_loader = torch.utils.data.DataLoader(train_set, args.b, shuffle=True, drop_last=True, num_workers=args.j)
test_loader = torch.utils.data.DataLoader(test_set, args.b, num_workers=args.j)

net = nn.Sequential(
    layer.Flatten(),
    layer.Linear(28 * 28, 10, bias=False),
    neuron.LIFNode(tau=args.tau, surrogate_function=surrogate.ATan()),
).to(args.device)
encoder = encoding.PoissonEncoder()
if args.opt == "sgd":
    optimizer = torch.optim.SGD(net.parameters(), lr=args.lr, momentum=args.momentum)
else:
    optimizer = torch.optim.Adam(net.parameters(), lr=args.lr)
rule = SLTT(net, optimizer, loss_fn=F.mse_loss)  # online: of each step's spikes, not of the firing rate

start_epoch = 0
if args.resume:
    checkpoint = torch.load(args.resume, map_location="cpu")
    net.load_state_dict(checkpoint["net"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    start_epoch = checkpoint["epoch"] + 1

for epoch in range(start_epoch, args.epochs):
    net.train()
    train_loss, train_acc = 0.0, 0.0
    for img, label in train_loader:
        img, label = img.to(args.device), label.to(args.device)
        spikes = torch.stack([encoder(img) for _ in range(args.T)])  # [T, N, 1, 28, 28]
        with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.amp):
            result = rule.train_step(spikes, F.one_hot(label, 10).float())  # online: resets, steps, memory of one step
        train_loss += result.loss.item() / len(train_loader)
        train_acc += (result.output.argmax(1) == label).float().mean().item() / len(train_loader)

    correct = 0
    for img, label in test_loader:
        spikes = torch.stack([encoder(img.to(args.device)) for _ in range(args.T)])
        correct += (predict(net, spikes).argmax(1).cpu() == label).sum().item()  # online: the firing rate, no graph
    print(
        f"epoch {epoch}: train_loss {train_loss:.4f}, train_acc {train_acc:.4f}, test_acc {correct / len(test_set):.4f}"
    )
    if not args.smoke:
        checkpoint = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        torch.save(checkpoint, "checkpoint_latest.pth")
