"""DVS128 Gesture, trained online: SpikingJelly's classify_dvsg.py, its changed lines marked.

Memory does not grow with T.

python examples/classify_dvsg_online.py -data-dir DIR -T 16 -device cuda:0
"""

import argparse

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, neuron, surrogate
from spikingjelly.activation_based.model.parametric_lif_net import DVSGestureNet
from torch.utils.data import DataLoader, TensorDataset

from sj_online import predict  # online
from sj_online.trainer import OTTT  # online

parser = argparse.ArgumentParser(description="Classify DVS Gesture, online")
parser.add_argument("-T", default=16, type=int, help="simulating time-steps")
parser.add_argument("-device", default="cuda:0", help="device")
parser.add_argument("-b", default=16, type=int, help="batch size")
parser.add_argument("-epochs", default=64, type=int, help="number of total epochs to run")
parser.add_argument("-j", default=4, type=int, help="number of data loading workers")
parser.add_argument("-data-dir", help="root dir of the DVS Gesture dataset")
parser.add_argument("-resume", help="resume from the checkpoint path")
parser.add_argument("-amp", action="store_true", help="automatic mixed precision training (bfloat16)")
parser.add_argument("-cupy", action="store_true", help="set the neurons to use the cupy backend")
parser.add_argument("-opt", choices=["sgd", "adam"], default="adam")
parser.add_argument("-momentum", default=0.9, type=float, help="momentum for SGD")
parser.add_argument("-lr", default=1e-3, type=float, help="learning rate")
parser.add_argument("-channels", default=128, type=int, help="channels of the network")
parser.add_argument("--smoke", action="store_true", help="two batches of made frames")
args = parser.parse_args()

if args.smoke:
    args.T, args.b, args.channels, args.epochs, args.device, args.j = 2, 1, 4, 1, "cpu", 0
    frames = torch.randint(3, (2 * args.b, args.T, 2, 128, 128)).float()
    train_set = test_set = TensorDataset(frames, torch.randint(11, (len(frames),)))
else:
    from spikingjelly.datasets.dvs128_gesture import DVS128Gesture

    how = {"data_type": "frame", "frames_number": args.T, "split_by": "number"}
    train_set = DVS128Gesture(args.data_dir, train=True, **how)
    test_set = DVS128Gesture(args.data_dir, train=False, **how)
train_loader = DataLoader(train_set, args.b, shuffle=True, drop_last=True, num_workers=args.j)
test_loader = DataLoader(test_set, args.b, num_workers=args.j)

net = DVSGestureNet(args.channels, neuron.LIFNode, surrogate_function=surrogate.ATan(), detach_reset=True)
net.to(args.device)
functional.set_step_mode(net, "m")
if args.cupy:
    functional.set_backend(net, "cupy", neuron.LIFNode)
if args.opt == "sgd":
    optimizer = torch.optim.SGD(net.parameters(), lr=args.lr, momentum=args.momentum)
else:
    optimizer = torch.optim.Adam(net.parameters(), lr=args.lr)
lr_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
rule = OTTT(net, optimizer, loss_fn=F.mse_loss)  # online

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
    for frame, label in train_loader:
        frame = frame.to(args.device).transpose(0, 1)  # [N, T, C, H, W] -> [T, N, C, H, W]
        label = label.to(args.device)
        with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.amp):
            result = rule.train_step(frame, F.one_hot(label, 11).float())  # online
        train_loss += result.loss.item() / len(train_loader)
        train_acc += (result.output.argmax(1) == label).float().mean().item() / len(train_loader)
    lr_scheduler.step()

    correct = 0
    for frame, label in test_loader:
        output = predict(net, frame.to(args.device).transpose(0, 1))  # online
        correct += (output.argmax(1).cpu() == label).sum().item()
    print(
        f"epoch {epoch}: train_loss {train_loss:.4f}, train_acc {train_acc:.4f}, test_acc {correct / len(test_set):.4f}"
    )
    if not args.smoke:
        checkpoint = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        torch.save(checkpoint | {"lr_scheduler": lr_scheduler.state_dict()}, "checkpoint_latest.pth")
