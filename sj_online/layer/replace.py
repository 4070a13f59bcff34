"""Quantised synapses in the place of float ones, in any network."""

from collections.abc import Collection

import torch
from spikingjelly.activation_based import functional, layer
from torch import nn

from sj_online.layer.quant import (
    BinaryConv2d,
    BinaryLinear,
    QuantConv2d,
    QuantLinear,
    TernaryConv2d,
    TernaryLinear,
)

_CONV = {"binary": BinaryConv2d, "ternary": TernaryConv2d}
_LINEAR = {"binary": BinaryLinear, "ternary": TernaryLinear}
KINDS = tuple(_CONV)


def quantized(synapse: nn.Conv2d | nn.Linear, kind: str) -> QuantConv2d | QuantLinear:
    """The quantised counterpart of a synapse; it takes over the weight, as latent weight, and the bias.

    Args:
        synapse: a 2-D convolution or linear layer of torch or of the host.
        kind: ``'binary'`` or ``'ternary'``.

    Raises:
        ValueError: an unknown kind.

    Example:
        >>> linear = nn.Linear(4, 2)
        >>> quantized(linear, "binary").weight is linear.weight
        True
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not one of {', '.join(map(repr, KINDS))}")
    with torch.device("meta"):  # the weights made here are replaced below
        if isinstance(synapse, nn.Linear):
            twin: QuantConv2d | QuantLinear = _LINEAR[kind](synapse.in_features, synapse.out_features)
        else:
            twin = _CONV[kind](
                synapse.in_channels,
                synapse.out_channels,
                synapse.kernel_size,  # type: ignore[arg-type]
                synapse.stride,  # type: ignore[arg-type]
                synapse.padding,  # type: ignore[arg-type]
                synapse.dilation,  # type: ignore[arg-type]
                synapse.groups,
                padding_mode=synapse.padding_mode,
            )
    twin.weight, twin.bias = synapse.weight, synapse.bias
    twin.step_mode = getattr(synapse, "step_mode", "s")
    return twin.train(synapse.training)


def quantize_synapses(net: nn.Module, kind: str, keep: str | Collection[str] = ("first", "last")) -> list[str]:
    """Replace the 2-D convolutions and linear layers of torch and of the host by binary or ternary ones, in place.

    The weights stay the same parameters, now latent, so an optimizer that holds them goes on. Subclasses that make
    their weight themselves, as weight standardisation does, are left alone.

    Args:
        net: any SpikingJelly network.
        kind: ``'binary'`` or ``'ternary'``.
        keep: names of synapses to leave; ``'first'`` and ``'last'`` stand for those, in the order of registration.

    Returns:
        The names of the replaced synapses.

    Raises:
        ValueError: an unknown kind, ``keep`` names no synapse of the network, or the network is itself a synapse.

    Example:
        >>> net = nn.Sequential(layer.Conv2d(1, 2, 3), layer.Conv2d(2, 2, 3), layer.Flatten(), layer.Linear(32, 2))
        >>> quantize_synapses(net, "binary")
        ['1']
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not one of {', '.join(map(repr, KINDS))}")
    types = (nn.Conv2d, nn.Linear, layer.Conv2d, layer.Linear)
    if type(net) in types:
        raise ValueError(f"net={type(net).__name__}: nothing inside it to replace")
    keep = (keep,) if isinstance(keep, str) else keep
    names = [name for name, module in net.named_modules() if type(module) in types]
    kept = {"first": names[:1], "last": names[-1:]} | {name: [name] for name in names}
    unknown = sorted(set(keep) - kept.keys())
    if unknown:
        raise ValueError(f"keep names {', '.join(map(repr, unknown))}, but the synapses are {', '.join(names)}")
    left = {name for word in keep for name in kept[word]}
    names = [name for name in names if name not in left]
    twins = {module: quantized(module, kind) for module in map(net.get_submodule, names)}  # type: ignore[arg-type]
    for parent in list(net.modules()):
        for name, child in list(parent._modules.items()):  # a module that is used twice is replaced twice
            if child in twins:
                parent.register_module(name, twins[child])
    functional.invalidate_reset_cache(net)
    return names
