"""All that is to be measured on a GPU, with the machine and the date above it: paste its output into README.

    python examples/bench_gpu.py
    python examples/bench_gpu.py --dry-run    # no GPU: says what would run, and tries the rest on tiny networks

In turn: the tests marked gpu; the kernels against 80 % of copy bandwidth and beside the host's LIF; memopt's levels 1
to 4 and checkpointing beside our rules, time and peak memory over T; inference with parallel neurons. It exits with 1
if a part of it fails.
"""

import argparse
import datetime
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from spikingjelly.activation_based import layer
from torch import nn

from sj_online import registry
from sj_online.analysis.rivals import LEVELS, multi_step_bptt
from sj_online.analysis.training_cost import Made, training_cost
from sj_online.neuron import ottt_lif

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "tests marked gpu": ["-m", "pytest", "-q", "-m", "gpu", "tests"],
    "kernels": ["examples/bench_kernels.py"],
    "inference with parallel neurons": ["examples/bench_inference.py"],
}
RULES = ("sltt", "ottt", "stol", "bptt")


def network(width):
    """Three convolutions without a norm, so that multi-step and step by step are one network, and a readout."""
    torch.manual_seed(0)
    layers = []
    for before, after in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [layer.Conv2d(before, after, 3, padding=1), ottt_lif(), layer.AvgPool2d(2)]
    return nn.Sequential(*layers, layer.Flatten(), layer.Linear(4 * width * 16, 10))


def by_rule(name, width, x, y, T):
    net = network(width).to(x.device)
    rule = registry.get("trainers", name)(net, torch.optim.SGD(net.parameters(), lr=1e-3), num_steps=T)
    return Made(partial(rule.train_step, x, y), net, x)


def by_rival(options, width, x, y, T):
    net, step = multi_step_bptt(network(width).to(x.device), x, y, T, **options)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)

    def train():
        optimizer.zero_grad()
        step()
        optimizer.step()

    return Made(train, net, x)


def memory(device, width, batch, steps, levels, rounds):
    """Time and memory of our rules and of the rivals, as lines of a table."""
    x, y = torch.rand(batch, 3, 32, 32, device=device), torch.randint(10, (batch,), device=device)
    makers = {name.upper(): partial(by_rule, name, width, x, y) for name in RULES}
    makers |= {"SLTT again": makers["SLTT"], "host BPTT": partial(by_rival, {}, width, x, y)}
    makers |= {f"memopt {level}": partial(by_rival, {"memopt_level": level}, width, x, y) for level in levels}
    makers |= {"checkpointing": partial(by_rival, {"checkpointed": True}, width, x, y)}
    for name, make in list(makers.items()):
        try:
            make(steps[0]).step()
        except (RuntimeError, ValueError) as error:
            del makers[name]
            yield f"{name} is left out: {' '.join(str(error).split())[:200]}"
    yield f"| width {width}, batch {batch} | T | ms | ratio (quartiles) | saved, MB | live, MB |"
    yield "|---|---|---|---|---|---|"
    for row in training_cost(makers, steps, rounds=rounds):
        spread = f"{row.ratio:.2f} ({row.ratio_low:.2f} to {row.ratio_high:.2f})"
        sizes = f"{row.saved_bytes / 1e6:.1f} | {row.peak_bytes / 1e6:.1f}"
        yield f"| {row.name} | {row.steps} | {1e3 * row.seconds:.1f} | {spread} | {sizes} |"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true")
    dry = parser.parse_args(argv).dry_run
    if not dry and not torch.cuda.is_available():
        sys.exit("no CUDA device: --dry-run shows what would run")
    machine = "a dry run on a CPU: not measured" if dry else torch.cuda.get_device_name()
    print(f"{machine}, torch {torch.__version__}, {datetime.date.today()}", flush=True)
    failed = []
    for title, command in COMMANDS.items():
        print(f"\n## {title}: python {' '.join(command)}", flush=True)
        if not dry and subprocess.run([sys.executable, *command], cwd=ROOT).returncode:
            failed.append(title)
    print("\n## memopt, levels 1 to 4, beside the rules", flush=True)
    sizes = ("cpu", 2, 2, (2, 4), LEVELS[:1], 1) if dry else ("cuda", 64, 64, (4, 16), LEVELS, 20)
    for line in memory(*sizes):
        print(line, flush=True)
    print(f"\nfailed: {', '.join(failed) or 'nothing'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
