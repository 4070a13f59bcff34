"""What quantised weights cost: binary against float synapses, and weights that are kept against weights made anew.

python examples/bench_quantised.py

HD-LIF ResNet-18 for CIFAR-100, T=4, batch 1, one thread. Every ratio is time over the time of float synapses, in one
run; the first row is that network against itself. It exits with 1 if inference with latent binary weights takes more
than 1.15 times as long as with float ones. It takes about two minutes.
"""

import sys

import torch
from spikingjelly.activation_based import functional

from sj_online.analysis.timing import interleaved
from sj_online.layer.quantized import forget
from sj_online.model import hdlif_resnet18
from sj_online.trainer import BPTT, SLTT

T = 4
ROUNDS = 20
CLASSES = 100
BOUND = 1.15
SYNAPSES = {"float": "float", "binary": "binary", "binary, made anew": "binary"}
RULES = {
    "BPTT, an update per sequence": (BPTT, {}),
    "SLTT, an update per sequence": (SLTT, {}),
    "SLTT, an update per step": (SLTT, {"update": "step"}),
}


def network(label):
    """With latent weights; 'made anew' keeps nothing, as if there were nothing to keep."""
    torch.manual_seed(0)
    net = hdlif_resnet18(CLASSES, num_steps=T, synapse=SYNAPSES[label])
    if "anew" in label:
        net.register_forward_pre_hook(lambda net, inputs: forget(net))
    return net


@torch.no_grad()
def infer(net, x):
    functional.reset_net(net)
    return [net(x_t) for x_t in x]


def report(title, run, bound=None):
    """Measure and print; returns whether binary weights are within the bound."""
    print(f"\n{title}", flush=True)
    runs = {label: run(label) for label in SYNAPSES}
    seconds = interleaved({"float again": runs["float"], **runs}, ROUNDS)
    for label, value in seconds.items():
        print(f"  {label:<20}{1e3 * value:10.2f} ms   ratio {value / seconds['float']:5.2f}", flush=True)
    ratio = seconds["binary"] / seconds["float"]
    if bound is not None:
        print(f"  binary: {ratio:.2f}, at most {bound}{'' if ratio <= bound else '  MISSED'}")
    return bound is None or ratio <= bound


def inference():
    x = torch.rand(1, 3, 32, 32).expand(T, -1, -1, -1, -1)

    def run(label):
        net = network(label).eval()
        return lambda: infer(net, x)

    return report("inference, step by step", run, BOUND)


def training(title, rule, options):
    x, y = torch.rand(1, 3, 32, 32), torch.randint(CLASSES, (1,))

    def run(label):
        net = network(label)
        step = rule(net, torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9), num_steps=T, **options)
        return lambda: step.train_step(x, y)

    report(f"training step, {title}", run)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one CPU thread, T={T}, batch 1, minimum of {ROUNDS} rounds")
    good = inference()
    for title, (rule, options) in RULES.items():
        training(title, rule, options)
    sys.exit(0 if good else 1)
