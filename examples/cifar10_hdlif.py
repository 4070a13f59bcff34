"""HD-LIF ResNet-18 with binary weights on CIFAR-10 by random back-propagation, packed and run from the file.

python examples/cifar10_hdlif.py -data-dir DIR -device cuda:0

`sj-online train --recipe hdlif_cifar10` is the row of the paper, with its augmentation and 300 epochs.
"""

import argparse

import torch
import torch.nn.functional as F
import torchvision
from torchvision.transforms import v2

from sj_online import deploy, predict
from sj_online.model import hdlif_resnet18
from sj_online.optim import param_groups
from sj_online.trainer import RandomBP

parser = argparse.ArgumentParser(description="CIFAR-10 with one bit a weight, online")
parser.add_argument("-T", default=4, type=int, help="simulating time-steps")
parser.add_argument("-device", default="cuda:0", help="device")
parser.add_argument("-b", default=64, type=int, help="batch size")
parser.add_argument("-epochs", default=100, type=int, help="number of total epochs to run")
parser.add_argument("-j", default=4, type=int, help="number of data loading workers")
parser.add_argument("-data-dir", default="data", help="root dir of the CIFAR-10 dataset, downloaded to it")
parser.add_argument("-amp", action="store_true", help="automatic mixed precision training (bfloat16)")
parser.add_argument("-lr", default=0.01, type=float, help="learning rate")
parser.add_argument("-width", default=64, type=int, help="channels behind the first convolution")
parser.add_argument("-to", default="cifar10_hdlif.safetensors", help="the packed file")
parser.add_argument("--smoke", action="store_true", help="two batches of made images")
args = parser.parse_args()

image = [
    v2.ToImage(),
    v2.ToDtype(torch.float32, scale=True),
    v2.Normalize((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
]
augmented = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), *image])
if args.smoke:
    args.b, args.width, args.epochs, args.device, args.j = 4, 8, 1, "cpu", 0
    train_set = test_set = torchvision.datasets.FakeData(2 * args.b, (3, 32, 32), 10, augmented)
else:
    train_set = torchvision.datasets.CIFAR10(args.data_dir, train=True, transform=augmented, download=True)
    test_set = torchvision.datasets.CIFAR10(args.data_dir, train=False, transform=v2.Compose(image), download=True)
train_loader = torch.utils.data.DataLoader(train_set, args.b, shuffle=True, drop_last=True, num_workers=args.j)
test_loader = torch.utils.data.DataLoader(test_set, args.b, num_workers=args.j)


def loss_fn(output, y):
    return F.cross_entropy(output, y, label_smoothing=0.1)


net = hdlif_resnet18(num_classes=10, num_steps=args.T, width=args.width, synapse="binary").to(args.device)
optimizer = torch.optim.SGD(param_groups(net, 5e-4), lr=args.lr, momentum=0.9, nesterov=True)
lr_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
rule = RandomBP(net, optimizer, k=1, loss_fn=loss_fn, num_steps=args.T)  # one backward pass a batch


def accuracy(net):
    outputs = ((predict(net, img.to(args.device), num_steps=args.T), label) for img, label in test_loader)
    return sum((output.argmax(1).cpu() == label).sum().item() for output, label in outputs) / len(test_set)


for epoch in range(args.epochs):
    net.train()
    train_loss = 0.0
    for img, label in train_loader:
        with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.amp):
            result = rule.train_step(img.to(args.device), label.to(args.device))
        train_loss += result.loss.item() / len(train_loader)
    lr_scheduler.step()
    print(f"epoch {epoch}: train_loss {train_loss:.4f}, test_acc {accuracy(net):.4f}")

deploy.export(net, args.to)
packed = deploy.load(args.to, hdlif_resnet18(10, num_steps=args.T, width=args.width, synapse="binary"))
print(f"{args.to}: test_acc {accuracy(packed.to(args.device)):.4f}")
