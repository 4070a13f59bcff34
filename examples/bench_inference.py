"""Speed of parallel neurons against sequential ones: inference, and training with random back-propagation.

python examples/bench_inference.py

HD-LIF ResNet-18 for CIFAR-100 at T=4. Every ratio is sequential time over time, in one run; the first row is the
sequential network against itself. It exits with 1 if a figure of the papers is missed: inference step by step, on a GPU
only, 1.15 with half of the neurons parallel and 1.3 with all of them; training 1.94 with random back-propagation and
half of them parallel. On two CPU cores it takes about ten minutes.
"""

import sys

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
INFERENCE = {"half parallel": 1.15, "all parallel": 1.3} if DEVICE == "cuda" else {}
TRAINING = {"random BP, half parallel": 1.94}


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


def report(title, runs, bounds):
    """Measure and print; returns whether all ratios are within their bounds."""
    print(f"\n{title}", flush=True)
    seconds = interleaved(runs, ROUNDS)
    ratios = {name: seconds["sequential"] / value for name, value in seconds.items()}
    for name, ratio in ratios.items():
        bound = f"  (at least {bounds[name]})" if name in bounds else ""
        missed = "  MISSED" if ratio < bounds.get(name, 0) else ""
        print(f"  {name:<26}{1e3 * seconds[name]:10.2f} ms   ratio {ratio:5.2f}{bound}{missed}", flush=True)
    return all(ratios[name] >= bound for name, bound in bounds.items())


def inference(batch, step_mode):
    # Float synapses: in inference the levels of a weight are not looked for at every step.
    nets = {name: network(name, "float").eval() for name in ("none", "half", "all")}
    x = torch.rand(batch, 3, 32, 32, device=DEVICE).expand(T, -1, -1, -1, -1)
    for net in nets.values():  # steps and sequence agree, or no speed is worth printing
        torch.testing.assert_close(infer(net, x, "s"), infer(net, x, "m"), rtol=1e-3, atol=1e-3)
    labels = {"sequential again": "none", "sequential": "none", "half parallel": "half", "all parallel": "all"}
    runs = {label: lambda net=nets[name]: infer(net, x, step_mode) for label, name in labels.items()}
    how = "step by step" if step_mode == "s" else "all steps in one pass"
    return report(f"inference, batch {batch}, {how}", runs, INFERENCE if step_mode == "s" else {})


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
    return report(f"training, batch {TRAINING_BATCH}, against an update at every step", runs, TRAINING)


if __name__ == "__main__":
    machine = torch.cuda.get_device_name() if DEVICE == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"torch {torch.__version__}, {machine}, neurons on {BACKEND}, T={T}, minimum of {ROUNDS} rounds")
    good = [inference(batch, step_mode) for batch in BATCHES for step_mode in ("s", "m")]
    sys.exit(0 if training() and all(good) else 1)
