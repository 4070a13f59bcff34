"""Narrow instances of the registered networks, the inputs they belong to, and their outputs in both step modes."""

import torch
from spikingjelly.activation_based import functional, layer
from torch import nn

from sj_online import registry
from sj_online.layer.quantized import Quantized

T, N = 2, 2
IMAGE, EVENTS, IMAGENET = (3, 32, 32), (2, 48, 48), (3, 64, 64)
SEQUENCES = {EVENTS}

TINY = {
    "hdlif_resnet18": ({"width": 4}, IMAGE),
    "hdlif_resnet19": ({"width": 4}, IMAGE),
    "hdlif_resnet34": ({"width": 4, "num_classes": 10}, IMAGENET),
    "hdlif_vgg13": ({"width": 4, "num_classes": 10}, IMAGENET),
    "hdlif_vgg_snn": ({"width": 4}, EVENTS),
    "lmh_ms_resnet34": ({"width": 4, "num_classes": 10}, IMAGENET),
    "lmh_resnet18": ({"width": 4}, IMAGE),
    "lmh_resnet19": ({"width": 4}, IMAGE),
    "lmh_resnet19_wide": ({"width": 8}, IMAGE),
    "lmh_resnet20": ({"width": 4}, IMAGE),
    "lmh_vgg13": ({"width": 4, "hidden": 2, "num_classes": 10}, IMAGE),
    "lmh_vgg16": ({"width": 4, "hidden": 2, "num_classes": 10}, IMAGE),
    "nf_resnet34": ({"width": 4, "num_classes": 10}, IMAGENET),
    "ottt_vgg": ({"width": 4}, IMAGE),
    "ottt_vgg_f": ({"width": 4}, IMAGE),
    "sltt_preact_resnet18": ({"width": 4}, IMAGE),
    "small_vgg": ({"width": 4, "in_channels": 3}, IMAGE),
    "stol_ms_resnet18": ({"width": 4}, IMAGE),
    "stol_sew_resnet34": ({"num_classes": 10}, IMAGENET),
    "stol_vgg11": ({"width": 4}, EVENTS),
}


def arguments(name, options):
    steps = {"num_steps": T} if name.startswith(("hdlif", "small")) else {}
    return steps | TINY[name][0] | options


def shape_of(name, options):
    if options.get("in_channels") == EVENTS[0]:
        return EVENTS
    return IMAGENET if options.get("image_size") == IMAGENET[-1] else TINY[name][1]


def wake(net):
    """Draw the parameters that start at zero, behind which nothing would be seen."""
    for name, parameter in net.named_parameters():
        if not name.endswith("bias") and not parameter.any():
            nn.init.normal_(parameter, 0, 0.1)


def build(name, options):
    torch.manual_seed(0)
    shape = shape_of(name, options)
    net = registry.get("models", name)(**arguments(name, options))
    wake(net)
    for module in net.modules():
        if isinstance(module, nn.Linear):
            module.weight.data.mul_(8)  # neurons behind it fire
        if isinstance(module, Quantized):
            nn.init.normal_(module.weight, 0, 0.5)  # signs of both kinds
        if isinstance(module, layer.WSConv2d):
            nn.init.constant_(module.gain, 3.0)  # two steps are short for a network without norms: make it fire
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # running statistics are the mean of those seen
    return net, torch.randn(T, N, *shape) if shape in SEQUENCES else torch.randn(N, *shape)


def sequence(x):
    return x if x.dim() == 5 else x.expand(T, *x.shape)


def outputs(net, x, step_mode):
    functional.reset_net(net)
    functional.set_step_mode(net, step_mode)
    with torch.no_grad():
        return net(sequence(x)) if step_mode == "m" else torch.stack([net(x_t) for x_t in sequence(x)])
