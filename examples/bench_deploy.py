"""What a packed file costs and gives: speed by runtime, equality, size, loading, the first prediction, training.

python examples/bench_deploy.py [speed] [equality] [load] [first] [training]

HD-LIF ResNet-18 for CIFAR-10 at T=4 on one CPU thread. Speeds are ratios in one run, the two interleaved, minimum of 20
rounds; 1.0 is the network in float32 with its weights quantised once, norms not folded, channels first. It exits with 1
if a bound is missed. All of it takes about ten minutes on an idle machine.
"""

import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from spikingjelly.activation_based import functional
from torch import nn

from sj_online import deploy, registry
from sj_online.analysis.timing import interleaved
from sj_online.layer.quantized import Quantized, set_integer
from sj_online.model import hdlif_resnet18
from sj_online.trainer import SLTT, RandomBP

T = 4
ROUNDS = 20
IMAGES, AT_ONCE = 500, 20
SPEED = {1: 3.0, 16: 2.5}
RANDOM_BP, LOADING = 3.0, 1.5
NETWORKS = {
    "ResNet-18, CIFAR-100, binary": ("hdlif_resnet18", 100, 26),
    "ResNet-34, ImageNet, ternary": ("hdlif_resnet34", 1000, 11),
}
OPTIONS = {"num_classes": 10, "num_steps": T}


def shaken(net, batch=8):
    """Weights and running statistics as after some training."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, Quantized):
            nn.init.normal_(module.weight)
    for _ in range(3):
        predict(net.train(), torch.rand(batch, 3, 32, 32))
    functional.reset_net(net)
    return net.eval()


@torch.no_grad()
def predict(net, x):
    functional.reset_net(net)
    return sum(net(x) for _ in range(T)) / T


def verdict(name, value, bound, at_least=True):
    good = value >= bound if at_least else value <= bound
    words = "at least" if at_least else "at most"
    print(f"  {name}: {value:.2f}, {words} {bound}{'' if good else '  MISSED'}", flush=True)
    return good


def speed(path):
    nets = {how: deploy.load(path, runtime=how) for how in ("unpacked", "packed", "int8", "auto")}
    print(deploy.report(nets["int8"]))
    nets = {"unpacked again": nets["unpacked"], **nets}
    good = True
    for batch, bound in SPEED.items():
        x = torch.rand(batch, 3, 32, 32)
        seconds = interleaved({how: partial(predict, net, x) for how, net in nets.items()}, ROUNDS)
        print(f"\nbatch {batch}")
        for how, value in seconds.items():
            print(f"  {how:<16}{1e3 * value:10.2f} ms   {seconds['unpacked'] / value:5.2f} times as fast", flush=True)
        good &= verdict("int8", seconds["unpacked"] / seconds["int8"], bound)
    return good


def equality(path):
    """Levels that lie on an edge flip between two layouts of the float network too: no more may with integers."""
    first, integers, last = (deploy.load(path, runtime=how) for how in ("unpacked", "int8", "unpacked"))
    for module in last.modules():
        if hasattr(module, "channels_last"):
            module.channels_last = True
    last.to(memory_format=torch.channels_last)
    beyond, changed = {"int8": 0, "channels last": 0}, {"int8": 0, "channels last": 0}
    for i in range(0, IMAGES, AT_ONCE):
        x = torch.rand(AT_ONCE, 3, 32, 32, generator=torch.Generator().manual_seed(i))
        expected = predict(first, x)
        others = {"int8": predict(integers, x)}
        others["channels last"] = predict(last, x.contiguous(memory_format=torch.channels_last))
        for name, y in others.items():
            beyond[name] += int(((y - expected).abs() > 1e-5 * expected.abs().max()).sum())
            changed[name] += int((y.argmax(1) != expected.argmax(1)).sum())
    print(f"\nagainst float32 channels first, {IMAGES} random images")
    for name in beyond:
        print(f"  {name:<14}{beyond[name] / (10 * IMAGES):8.2%} of logits beyond 1e-5, {changed[name]} changed classes")
    return beyond["int8"] <= beyond["channels last"] and changed["int8"] <= changed["channels last"]


def from_floats(make, classes, path):
    make(classes).load_state_dict(load_file(path))


def load(folder):
    good = True
    packed, floats = folder / "packed", folder / "float"
    for name, (model, classes, bound) in NETWORKS.items():
        make = registry.get("models", model)
        net = make(classes)
        deploy.export(net, packed, model=model, kwargs={"num_classes": classes})
        save_file(net.state_dict(), floats)
        size = sum(tensor.nbytes for tensor in net.state_dict().values()) / packed.stat().st_size
        print(f"\n{name}: {packed.stat().st_size:,} bytes")
        good &= verdict("times smaller", size, bound)
        runs = {"packed": partial(deploy.load, packed), "float": partial(from_floats, make, classes, floats)}
        seconds = interleaved(runs, 5, 1)
        good &= verdict("times the loading of floats", seconds["packed"] / seconds["float"], LOADING, at_least=False)
    return good


def first(path):
    """In a fresh process: imports, load, one prediction."""
    code = f"""
import sys, time, resource
start = time.perf_counter()
import torch
torch.set_num_threads(1)
from sj_online import deploy, predict
imported = time.perf_counter()
net = deploy.load({str(path)!r}, runtime=sys.argv[1])
loaded = time.perf_counter()
predict(net, torch.rand(1, 3, 32, 32), {T})
end = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
times = [imported - start, loaded - imported, end - loaded]
print("imports {{:.2f}} s, load {{:.2f}} s, prediction {{:.2f}} s, peak {{:.0f}} MB".format(*times, peak))
unwanted = ("sj_online.trainer", "sj_online.app", "lightning_fabric")
others = [name for name in sys.modules if name.startswith(unwanted)]
sys.exit(f"imported besides: {{others}}" if others else 0)
"""
    print("\nfirst prediction of a fresh process")
    codes = []
    for how in ("packed", "int8"):
        print(f"  {how}: ", end="", flush=True)
        codes.append(subprocess.run([sys.executable, "-c", code, how]).returncode)
    return not any(codes)


def training():
    x, y = torch.rand(16, 3, 32, 32), torch.randint(10, (16,))

    def run(rule, integer):
        net = hdlif_resnet18(width=32, num_steps=6)
        set_integer(net, integer)
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
        step = rule(net, optimizer, num_steps=6, update="step", step_scale="sum")
        return lambda: step.train_step(x, y)

    runs = {}
    for rule in (SLTT, RandomBP):
        runs |= {f"{rule.__name__}, {how}": run(rule, how == "int8") for how in ("float", "int8")}
    seconds = interleaved({"SLTT, int8 again": runs["SLTT, int8"], **runs}, ROUNDS)
    print("\ntraining step, T=6, width 32, batch 16")
    for name, value in seconds.items():
        print(f"  {name:<20}{1e3 * value:10.2f} ms", flush=True)
    print(f"  RandomBP against SLTT in float: {seconds['SLTT, float'] / seconds['RandomBP, float']:.2f}")
    return verdict("RandomBP against SLTT, int8", seconds["SLTT, int8"] / seconds["RandomBP, int8"], RANDOM_BP)


if __name__ == "__main__":
    torch.set_num_threads(1)
    asked = sys.argv[1:] or ["speed", "equality", "load", "first", "training"]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        deploy.export(shaken(hdlif_resnet18(**OPTIONS)), folder / "net", model="hdlif_resnet18", kwargs=OPTIONS)
        parts = {
            "speed": lambda: speed(folder / "net"),
            "equality": lambda: equality(folder / "net"),
            "load": lambda: load(folder),
            "first": lambda: first(folder / "net"),
            "training": training,
        }
        good = [parts[part]() for part in asked]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\n{time.perf_counter() - began:.0f} s, peak {peak:.0f} MB")
    sys.exit(0 if all(good) else 1)
