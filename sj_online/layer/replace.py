"""Quantised synapses in the place of float ones, in any network."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from spikingjelly.activation_based import functional, layer
from torch import nn

from sj_online.layer import quant
from sj_online.layer.quantized import Quantized

Synapse = nn.Conv1d | nn.Conv2d | nn.Linear
_TWINS = {
    "binary": {nn.Conv1d: quant.BinaryConv1d, nn.Conv2d: quant.BinaryConv2d, nn.Linear: quant.BinaryLinear},
    "ternary": {nn.Conv1d: quant.TernaryConv1d, nn.Conv2d: quant.TernaryConv2d, nn.Linear: quant.TernaryLinear},
}
_TYPES = (nn.Conv1d, nn.Conv2d, nn.Linear, layer.Conv1d, layer.Conv2d, layer.Linear)
KINDS = tuple(_TWINS)


def quantized(synapse: Synapse, kind: str) -> Quantized:
    """The quantised counterpart of a synapse; it takes over the weight, as latent weight, and the bias.

    Args:
        synapse: a 1-D or 2-D convolution or linear layer of torch or of the host.
        kind: ``'binary'`` or ``'ternary'``.

    Raises:
        ValueError: an unknown kind or another layer.

    Example:
        >>> linear = nn.Linear(4, 2)
        >>> quantized(linear, "binary").weight is linear.weight
        True
    """
    _check_kind(kind)
    if type(synapse) not in _TYPES:
        raise ValueError(f"synapse={type(synapse).__name__} is none of {', '.join(t.__name__ for t in _TWINS[kind])}")
    make: Any = next(twin for base, twin in _TWINS[kind].items() if isinstance(synapse, base))
    with torch.device("meta"):  # the weights made here are replaced below
        if isinstance(synapse, nn.Linear):
            twin = make(synapse.in_features, synapse.out_features)
        else:
            twin = make(
                synapse.in_channels,
                synapse.out_channels,
                synapse.kernel_size,
                synapse.stride,
                synapse.padding,
                synapse.dilation,
                synapse.groups,
                padding_mode=synapse.padding_mode,
            )
    twin.weight, twin.bias = synapse.weight, synapse.bias
    twin.step_mode = getattr(synapse, "step_mode", "s")
    return twin.train(synapse.training)


def quantize_synapses(net: nn.Module, kind: str, keep: str | Collection[str] = ("first", "last")) -> list[str]:
    """Replace 1-D and 2-D convolutions and linear layers, torch's and the host's, by binary or ternary ones, in place.

    The weights stay the same parameters, now latent, so an optimizer that holds them goes on. Subclasses that make
    their weight themselves, as weight standardisation does, are left alone, and so are 3-D and transposed convolutions.

    Args:
        net: any SpikingJelly network.
        kind: ``'binary'`` or ``'ternary'``.
        keep: names of synapses to leave; ``'first'`` and ``'last'`` stand for those, in the order of registration.

    Returns:
        The names of the replaced synapses.

    Raises:
        ValueError: an unknown kind, ``keep`` names no synapse of the network, or nothing in it is left to replace.

    Example:
        >>> net = nn.Sequential(layer.Conv2d(1, 2, 3), layer.Conv2d(2, 2, 3), layer.Flatten(), layer.Linear(32, 2))
        >>> quantize_synapses(net, "binary")
        ['1']
    """
    _check_kind(kind)
    keep = (keep,) if isinstance(keep, str) else keep
    names = [name for name, module in net.named_modules() if type(module) in _TYPES]
    kept = {name: [name] for name in names} | {"first": names[:1], "last": names[-1:]}
    unknown = sorted(set(keep) - kept.keys())
    if unknown:
        raise ValueError(f"keep names {', '.join(map(repr, unknown))}, but the synapses are {', '.join(names)}")
    left = {name for word in keep for name in kept[word]}
    names = [name for name in names if name not in left]
    synapses = [net.get_submodule(name) for name in names]
    replace_modules(net, {synapse: quantized(synapse, kind) for synapse in synapses})  # type: ignore[arg-type]
    return names


def replace_modules(net: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Replace modules inside a network, in place, wherever they are used.

    Raises:
        ValueError: there is nothing to replace, or the network itself is to be.
    """
    if net in replacements or not replacements:
        raise ValueError(f"net={type(net).__name__}: nothing inside it to replace")
    for parent in list(net.modules()):
        for name, child in parent._modules.items():  # named_children() would leave out one that is used twice
            if child is not None and child in replacements:
                parent._modules[name] = replacements[child]
    functional.invalidate_reset_cache(net)


def out_of_reach(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that a network holds in plain lists, tuples and dicts: torch does not know them, nor what is in them.

    A module that is registered as well is among them: :func:`replace_modules` changes it there, not in the list.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2))
        >>> net.heads = [nn.ReLU(), net[0]]
        >>> list(out_of_reach(net))
        [('heads[0]', ReLU()), ('heads[1]', Linear(in_features=2, out_features=2, bias=True))]
    """
    registered = set(net.modules())
    for name, module in net.named_modules():
        for attribute, value in vars(module).items():
            if attribute != "_modules":
                yield from _held(f"{name}.{attribute}".lstrip("."), value, registered)


def _held(name: str, value: Any, registered: set[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(value, nn.Module):
        yield name, value
        if value not in registered:
            for inner, module in value.named_modules(prefix=name):
                if module is not value:
                    yield inner, module
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _held(f"{name}[{key!r}]", item, registered)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _held(f"{name}[{index}]", item, registered)


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not one of {', '.join(map(repr, KINDS))}")
