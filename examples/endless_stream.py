"""Learn from a stream without end: nothing is reset, an update where there is a target, memory flat however long.

python examples/endless_stream.py

The task: a noisy wave goes round a ring of 16 sensors, and the network tells its direction, which turns at random. A
target comes at every tenth step only.
"""

import argparse
import resource

import torch
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import nn

from sj_online.trainer import OTTT

parser = argparse.ArgumentParser(description="A stream without end")
parser.add_argument("-T", default=20_000, type=int, help="time-steps to run, none of which is kept")
parser.add_argument("-b", default=16, type=int, help="streams side by side")
parser.add_argument("-lr", default=3e-3, type=float, help="learning rate")
parser.add_argument("--smoke", action="store_true", help="400 steps")
args = parser.parse_args()
T = 400 if args.smoke else args.T
SENSORS = 16

torch.manual_seed(0)
torch.set_num_threads(1)


def waves():
    """x_t [N, SENSORS] and y_t [N], or None: endless."""
    ring = torch.arange(SENSORS) * 2 * torch.pi / SENSORS
    phase, direction, t = torch.zeros(args.b), torch.ones(args.b), 0
    while True:
        turns = torch.rand(args.b) < 0.01
        direction = torch.where(turns, -direction, direction)
        phase = phase + 0.5 * direction
        x = torch.cos(ring - phase[:, None]) + 0.3 * torch.randn(args.b, SENSORS)
        t += 1
        yield x, (direction > 0).long() if t % 10 == 0 else None


net = nn.Sequential(
    layer.Linear(SENSORS, 128),
    neuron.LIFNode(tau=2.0, decay_input=False, surrogate_function=surrogate.ATan(), detach_reset=True),
    layer.Linear(128, 128),
    neuron.LIFNode(tau=4.0, decay_input=False, surrogate_function=surrogate.ATan(), detach_reset=True),
    layer.Linear(128, 2),
)
rule = OTTT(net, torch.optim.Adam(net.parameters(), lr=args.lr), trace_input=True, trace_readout=False)

losses = []
for t, result in enumerate(rule.stream(waves()), 1):
    if t % 10 == 0:
        losses.append(result.loss.item())
    if t % (T // 10) == 0:
        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"step {t:6d}  loss {sum(losses) / len(losses):.3f}  peak memory {kib / 1024:.0f} MiB")
        losses.clear()
    if t == T:
        break
