"""Train a binary spiking network online on handwritten digits, and pack it: a SpikingJelly script with four changes.

python examples/train_digits.py
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from spikingjelly.activation_based import layer
from torch import nn

from sj_online import deploy
from sj_online.layer import BinaryConv2d
from sj_online.neuron import EMPFNode
from sj_online.optim import param_groups
from sj_online.trainer import SLTT

T = 4
EPOCHS = 12
BATCH = 64
LR = 0.1
WEIGHT_DECAY = 5e-4
PACKED = "digits.safetensors"

torch.manual_seed(0)
torch.set_num_threads(1)

digits = load_digits()
images = torch.from_numpy(digits.images).float().div(16).unsqueeze(1)
labels = torch.from_numpy(digits.target).long()
train, test = train_test_split(range(len(labels)), test_size=0.25, stratify=labels, random_state=0)
train, test = torch.tensor(train), torch.tensor(test)

net = nn.Sequential(
    layer.Conv2d(1, 32, 3, padding=1, bias=False),
    layer.BatchNorm2d(32),
    EMPFNode(T),
    layer.AvgPool2d(2),
    BinaryConv2d(32, 64, 3, padding=1),
    layer.BatchNorm2d(64),
    EMPFNode(T),
    layer.AvgPool2d(2),
    BinaryConv2d(64, 128, 3, padding=1),
    layer.BatchNorm2d(128),
    EMPFNode(T),
    layer.AvgPool2d(2),
    layer.Flatten(),
    layer.Linear(128, 10),
)
optimizer = torch.optim.SGD(param_groups(net, WEIGHT_DECAY), lr=LR, momentum=0.9, nesterov=True)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)


def loss_fn(output, y):
    return F.cross_entropy(output, y, label_smoothing=0.1)


# One step of the network in memory at a time: forward, loss, backward and update at each of the T steps.
rule = SLTT(net, optimizer, loss_fn=loss_fn, num_steps=T, update="step", step_scale="sum")
print(rule)


def accuracy(rule, part):
    return (rule.predict(images[part]).argmax(1) == labels[part]).float().mean().item()


for epoch in range(1, EPOCHS + 1):
    net.train()
    losses = []
    for batch in train[torch.randperm(len(train))].split(BATCH):
        top, left = torch.randint(3, (2,)).tolist()
        x = F.pad(images[batch], (1, 1, 1, 1))[:, :, top : top + 8, left : left + 8]
        losses.append(rule.train_step(x, labels[batch]).loss)
    scheduler.step()
    print(f"epoch {epoch:2d}  loss {torch.stack(losses).mean():.4f}  test accuracy {accuracy(rule, test):.4f}")

deploy.export(net, PACKED)
packed = deploy.load(PACKED, net)
print(f"packed: test accuracy {accuracy(SLTT(packed, optimizer, num_steps=T), test):.4f}")
