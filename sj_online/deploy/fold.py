"""Fold batch normalisation away, for inference: into the synapse before it, and out of the neurons' membranes."""

import copy
import warnings
from collections import Counter
from typing import Any, cast

import torch
from spikingjelly.activation_based import functional, layer
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from sj_online.deploy.flow import Recorder, is_plain, sequential_pairs, tensors
from sj_online.deploy.runtime import Packed, PackedConv1d, PackedConv2d, PackedLinear
from sj_online.layer import StepBatchNorm2d
from sj_online.neuron import EMPFNode, HDLIFNode, fold_membrane_norm

# Exact types: a subclass may have another forward.
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, layer.Conv1d, layer.Conv2d, PackedConv1d, PackedConv2d)
LINEARS = (nn.Linear, layer.Linear, PackedLinear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, layer.BatchNorm1d, layer.BatchNorm2d, StepBatchNorm2d)
NODES = (EMPFNode, HDLIFNode)

Pairs = list[tuple[str, str]]


@torch.no_grad()
def fold_norms(net: nn.Module, example_input: Any = None) -> nn.Module:
    """Fold every batch norm into the synapse that it follows in data flow, and every membrane norm, in place.

    A packed synapse stays packed: its scales and its bias take the norm in. The outputs are equal up to rounding,
    so a network is folded after :func:`~sj_online.deploy.load`, never in the file. Its memories are reset.

    Without an example, only what needs no running is folded: a convolution, given batches in its step mode, and the
    norm behind it in a plain ``nn.Sequential`` that is the network itself or stands in such ones only. With an example,
    a copy of the network (in double precision, where rounding moves no spike) runs on it once, and what follows in data
    flow is folded, in any container and with linear layers too, if the copy's outputs stay. That holds for all inputs
    that take the same path through the network; where Python reads values of tensors on the way, which may choose the
    path, a warning says so, and no more is folded than without an example.

    Args:
        net: a network in eval mode. Left alone are latent weights (``BinaryConv2d``), standardised ones, subclasses of
            the layers, modules with hooks, with two places in the network or parameters that others use, a synapse
            whose output goes anywhere else, and norms in training mode or without running statistics.
        example_input: what the network is called with, in its step mode: x [N, ...] or [T, N, ...].

    Returns:
        ``net``.

    Raises:
        ValueError: ``net`` is in training mode, cannot be copied or does not run on ``example_input``, or its outputs
            change. The network is then as it was, its memories reset.

    Example:
        >>> fold_norms(nn.Sequential(layer.Conv2d(2, 3, 3), layer.BatchNorm2d(3)).eval())[1]
        Identity()
        >>> net = nn.Sequential(layer.Linear(2, 3), layer.BatchNorm1d(3)).eval()
        >>> fold_norms(net, torch.rand(4, 2))[1]
        Identity()
    """
    if net.training:
        raise ValueError("net is in training mode; batch norm folds in eval mode only: net.eval()")
    functional.invalidate_reset_cache(net)
    functional.reset_net(net)  # a copy takes no graph, and a folded node no memory
    _fold(net, _plain_pairs(net) if example_input is None else _checked_pairs(net, example_input))
    return net


def _plain_pairs(net: nn.Module) -> Pairs:
    names = _names(net)
    return [
        (names[conv], names[norm])
        for conv, norm in sequential_pairs(net)
        if conv in names and norm in names and _is_fixed(norm) and _agree(conv, norm)
    ]


def _checked_pairs(net: nn.Module, x: Any) -> Pairs:
    try:
        trial, x, before, recorder = _watched_copy(net, x, double=True)
    except Exception:  # of any kind, where a network insists on its own precision
        try:
            trial, x, before, recorder = _watched_copy(net, x, double=False)
        except Exception as error:
            raise ValueError(f"net cannot be copied and run on example_input: {_line(error)}") from error
    if not before:
        raise ValueError("the output for example_input holds no tensor, so there is nothing to compare")
    if recorder.reads_values:
        warnings.warn(
            "the network reads values of tensors (item, bool, a mask), on which its path may depend: only norms in a"
            " plain nn.Sequential are folded",
            stacklevel=4,
        )
        pairs = _plain_pairs(trial)
    else:
        names = _names(trial)
        pairs = [(names[synapse], names[norm]) for synapse, norm in recorder.pairs()]
    try:
        _fold(trial, pairs)
        after = list(tensors(_run(trial, trial, x)))
    except Exception as error:
        raise ValueError(f"with its norms folded, net does not run on example_input: {_line(error)}") from error
    _compare(before, after)
    return pairs


def _watched_copy(net: nn.Module, x: Any, double: bool) -> tuple[nn.Module, Any, list[Tensor], Recorder]:
    """A copy of ``net``, the input in its precision, the outputs, and what was seen."""
    net = copy.deepcopy(net)
    if double:
        net.double()
        x = x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
    names = _names(net)
    synapses = [module for module in names if type(module) in CONVOLUTIONS + LINEARS and is_plain(module)]
    recorder = Recorder(synapses, [module for module in names if _is_fixed(module)])
    outputs = list(tensors(_run(net, lambda x: recorder.run(net, x), x)))
    return net, x, outputs, recorder


def _run(net: nn.Module, call: Any, x: Any) -> Any:
    """From a fresh state, with the same random numbers each time."""
    functional.reset_net(net)
    devices = {parameter.device for parameter in net.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(list(devices)):
        torch.manual_seed(0)
        return call(x.clone() if isinstance(x, Tensor) else x)


def _compare(before: list[Tensor], after: list[Tensor]) -> None:
    if [t.shape for t in before] != [t.shape for t in after]:
        raise ValueError("folding changes the shapes of the outputs for example_input; nothing is folded")
    for old, new in zip(before, after, strict=True):
        wide = torch.complex128 if old.is_complex() else torch.float64
        precision = torch.finfo(old.dtype).eps ** 0.5 if old.is_floating_point() or old.is_complex() else 0.0
        if old.numel():
            difference, scale = (new.to(wide) - old.to(wide)).abs().max(), old.to(wide).abs().max()
            if not difference <= precision * scale:  # NaN too
                raise ValueError(
                    f"folding changes the outputs for example_input by {difference:.3g} at a scale of {scale:.3g};"
                    " nothing is folded"
                )


def _fold(net: nn.Module, pairs: Pairs) -> None:
    """All is computed before anything changes."""
    fused = [(net.get_submodule(synapse), norm, _fused(net, synapse, norm)) for synapse, norm in pairs]
    nodes = {name: fold_membrane_norm(cast(EMPFNode, m)).eval() for m, name in _names(net).items() if _has_norm(m)}
    for module, norm, (part, bias) in fused:
        synapse = cast(Any, module)
        synapse.bias = nn.Parameter(bias, requires_grad=False)
        if isinstance(synapse, Packed):
            synapse.scale = part
        else:
            synapse.weight = nn.Parameter(part, requires_grad=False)
        net.set_submodule(norm, nn.Identity())
    for name, node in nodes.items():
        net.set_submodule(name, node)
    functional.invalidate_reset_cache(net)


def _fused(net: nn.Module, synapse_name: str, norm_name: str) -> tuple[Tensor, Tensor]:
    synapse, norm = cast(Any, net.get_submodule(synapse_name)), cast(Any, net.get_submodule(norm_name))
    if isinstance(synapse, Packed):  # its weight is scale * levels: the norm goes into the scale, now one per channel
        part = synapse.scale.expand(synapse.shape[0], *[1] * (len(synapse.shape) - 1))
    else:
        part = synapse.weight
    part, bias = fuse_conv_bn_weights(
        part, synapse.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    return part.detach(), bias.detach()


def _names(net: nn.Module) -> dict[nn.Module, str]:
    """The modules inside ``net`` that have one place in it."""
    uses = Counter(module for _, module in net.named_modules(remove_duplicate=False))
    return {module: name for name, module in net.named_modules() if name and uses[module] == 1}


def _is_fixed(norm: nn.Module) -> bool:
    return type(norm) in NORMS and is_plain(norm) and not norm.training and norm.running_mean is not None


def _agree(conv: Any, norm: Any) -> bool:
    """Whether axis 1 of what the convolution makes is the one that the norm takes, from what they say themselves."""
    base = nn.BatchNorm1d if isinstance(conv, nn.Conv1d) else nn.BatchNorm2d
    same_mode = getattr(conv, "step_mode", "s") == getattr(norm, "step_mode", "s")
    plain = type(conv) in CONVOLUTIONS and is_plain(conv)
    return plain and same_mode and isinstance(norm, base) and conv.out_channels == norm.num_features


def _has_norm(node: Any) -> bool:
    plain = type(node) in NODES and all(is_plain(module) and not module.training for module in node.modules())
    return plain and bool(node.membrane_norm)


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
