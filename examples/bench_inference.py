"""Speed of parallel neurons against sequential ones: inference, and training with random back-propagation.

python examples/bench_inference.py

HD-LIF ResNet-18 for CIFAR-100 at T=4. Every ratio is sequential time over time, in one run; the first row is the
sequential network against itself. On a GPU the papers' figures are 1.15 with half of the neurons parallel and 1.3 with
all of them; for training, random back-propagation with half of them parallel reaches 1.94.
"""

import platform

import torch
from spikingjelly.activation_based import functional

from sj_online.analysis.timing import interleaved
from sj_online.model import hdlif_resnet18
from sj_online.trainer import SLTT, RandomBP

T = 4
BATCHES = (1, 64)
TRAINING_BATCH = 8
ROUNDS = 20
CLASSES = 100
BACKEND = "torch"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def network(parallel, synapse):
    torch.manual_seed(0)
    options = {"backend": BACKEND}
    net = hdlif_resnet18(CLASSES, num_steps=T, parallel=parallel, synapse=synapse, neuron_options=options)
    return net.to(DEVICE)


@torch.no_grad()
def infer(net, x, step_mode):
    functional.reset_net(net)
    functional.set_step_mode(net, step_mode)
    return net(x) if step_mode == "m" else torch.stack([net(x_t) for x_t in x])


def report(title, seconds):
    print(f"\n{title}")
    baseline = seconds["sequential"]
    for name, value in seconds.items():
        print(f"  {name:<28}{1e3 * value:10.2f} ms   ratio {baseline / value:5.2f}")


def inference(batch, step_mode):
    # Float synapses: in inference the levels of a weight are not looked for at every step.
    nets = {name: network(name, "float").eval() for name in ("none", "half", "all")}
    x = torch.rand(batch, 3, 32, 32, device=DEVICE).expand(T, -1, -1, -1, -1)
    for net in nets.values():  # steps and sequence agree, or no speed is worth printing
        torch.testing.assert_close(infer(net, x, "s"), infer(net, x, "m"), rtol=1e-3, atol=1e-3)
    labels = {"sequential again": "none", "sequential": "none", "half parallel": "half", "all parallel": "all"}
    runs = {label: lambda net=nets[name]: infer(net, x, step_mode) for label, name in labels.items()}
    how = "step by step" if step_mode == "s" else "all steps in one pass"
    report(f"inference, batch {batch}, {how}", interleaved(runs, ROUNDS))


def training():
    x = torch.rand(TRAINING_BATCH, 3, 32, 32, device=DEVICE)
    y = torch.randint(CLASSES, (TRAINING_BATCH,), device=DEVICE)

    def run(rule, parallel):
        net = network(parallel, "binary")
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
        step = rule(net, optimizer, num_steps=T, update="step", step_scale="sum")
        return lambda: step.train_step(x, y)

    every_step = run(SLTT, "none")
    runs = {
        "sequential again": every_step,
        "sequential": every_step,
        "random BP": run(RandomBP, "none"),
        "random BP, half parallel": run(RandomBP, "half"),
    }
    report(f"training, batch {TRAINING_BATCH}, against an update at every step", interleaved(runs, ROUNDS))


if __name__ == "__main__":
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else f"{platform.processor() or 'CPU'}"
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, neurons on {BACKEND}, T={T}")
    for batch in BATCHES:
        for step_mode in ("s", "m"):
            inference(batch, step_mode)
    training()
