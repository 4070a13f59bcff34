"""A spiking ResNet of SpikingJelly on ImageNet, trained online on one or several GPUs and nodes, without DDP.

torchrun --nproc-per-node=2 examples/imagenet_train_online.py -data-dir DIR -model spiking_resnet18 -T 4

DIR holds train/ and val/, a folder a class. A rule runs forward and backward at every step, which DDP does not allow;
it averages gradients over the ranks by itself. python alone, without torchrun, is one process.
"""

import argparse
import os

import torch
import torch.distributed as dist
import torchvision
from spikingjelly.activation_based import functional, neuron, surrogate
from spikingjelly.activation_based.model import spiking_resnet
from torch.utils.data import DataLoader, DistributedSampler
from torchvision.transforms import v2

from sj_online import predict  # online
from sj_online.trainer import SLTT  # online

parser = argparse.ArgumentParser(description="ImageNet, online")
parser.add_argument("-T", default=4, type=int, help="total time-steps")
parser.add_argument("-device", default="cuda", choices=["cuda", "cpu"])
parser.add_argument("-b", default=64, type=int, help="batch size of a process")
parser.add_argument("-epochs", default=90, type=int, help="number of total epochs to run")
parser.add_argument("-j", default=4, type=int, help="number of data loading workers")
parser.add_argument("-data-dir", help="root dir of ImageNet")
parser.add_argument("-resume", help="resume from the checkpoint path")
parser.add_argument("-amp", action="store_true", help="automatic mixed precision training (bfloat16)")
parser.add_argument("-cupy", action="store_true", help="set the neurons to use the cupy backend")
parser.add_argument("-lr", default=0.1, type=float, help="learning rate")
parser.add_argument("-model", default="spiking_resnet18", choices=spiking_resnet.__all__)
parser.add_argument("--smoke", action="store_true", help="two batches of made images")
args = parser.parse_args()

normal = [
    v2.ToImage(),
    v2.ToDtype(torch.float32, scale=True),
    v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
]
training = v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), *normal])
testing = v2.Compose([v2.Resize(256), v2.CenterCrop(224), *normal])
if args.smoke:
    args.T, args.b, args.epochs, args.device, args.j = 2, 1, 1, "cpu", 0
    train_set = test_set = torchvision.datasets.FakeData(2, (3, 64, 64), 1000, v2.Compose(normal))
else:
    train_set = torchvision.datasets.ImageFolder(os.path.join(args.data_dir, "train"), training)
    test_set = torchvision.datasets.ImageFolder(os.path.join(args.data_dir, "val"), testing)

rank, ranks = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
device = torch.device(args.device, rank) if args.device == "cuda" else torch.device("cpu")
if ranks > 1:
    dist.init_process_group("nccl" if args.device == "cuda" else "gloo")
first = ranks == 1 or dist.get_rank() == 0
sampler = DistributedSampler(train_set, ranks, dist.get_rank() if ranks > 1 else 0)
train_loader = DataLoader(train_set, args.b, sampler=sampler, drop_last=True, num_workers=args.j)
test_loader = DataLoader(test_set, args.b, num_workers=args.j)

options = {"surrogate_function": surrogate.ATan(), "detach_reset": True}
net = getattr(spiking_resnet, args.model)(spiking_neuron=neuron.IFNode, **options).to(device)
functional.set_step_mode(net, "m")
if args.cupy:
    functional.set_backend(net, "cupy", neuron.IFNode)
optimizer = torch.optim.SGD(net.parameters(), lr=args.lr, momentum=0.9, weight_decay=1e-4)
lr_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
rule = SLTT(net, optimizer, num_steps=args.T)  # online: in the place of DistributedDataParallel

start_epoch = 0
if args.resume:
    checkpoint = torch.load(args.resume, map_location="cpu")
    net.load_state_dict(checkpoint["net"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    lr_scheduler.load_state_dict(checkpoint["lr_scheduler"])
    start_epoch = checkpoint["epoch"] + 1

for epoch in range(start_epoch, args.epochs):
    net.train()
    sampler.set_epoch(epoch)
    train_loss = 0.0
    for img, label in train_loader:
        with torch.autocast(device.type, torch.bfloat16, enabled=args.amp):
            result = rule.train_step(img.to(device), label.to(device))  # online
        train_loss += result.loss.item() / len(train_loader)
    lr_scheduler.step()

    if first:
        correct = 0
        for img, label in test_loader:
            output = predict(net, img.to(device), num_steps=args.T)  # online
            correct += (output.argmax(1).cpu() == label).sum().item()
        print(f"epoch {epoch}: train_loss {train_loss:.4f}, test_acc {correct / len(test_set):.4f}")
    if first and not args.smoke:
        checkpoint = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        torch.save(checkpoint | {"lr_scheduler": lr_scheduler.state_dict()}, "checkpoint_latest.pth")

if ranks > 1:
    dist.destroy_process_group()
