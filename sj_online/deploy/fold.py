"""Fold batch normalisation away, for inference: into the convolution before it, and out of the neurons' membranes."""

from collections import Counter
from itertools import pairwise
from typing import Any, cast

import torch
from spikingjelly.activation_based import functional, layer
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from sj_online.deploy.runtime import PackedConv1d, PackedConv2d
from sj_online.neuron import EMPFNode, fold_membrane_norm

PACKED = (PackedConv1d, PackedConv2d)
FOLDABLE = (nn.Conv1d, nn.Conv2d, layer.Conv1d, layer.Conv2d, *PACKED)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@torch.no_grad()
def fold_norms(net: nn.Module) -> nn.Module:
    """Fold every batch norm that follows a convolution in an ``nn.Sequential``, and every membrane norm, in place.

    A packed convolution stays packed: its scales and its bias take the norm in. The outputs are equal up to rounding,
    so a network is folded after :func:`~sj_online.deploy.load`, never in the file.

    Args:
        net: a network in eval mode. Left alone are latent weights (``BinaryConv2d``), standardised ones, modules with
            two places in the network, and norms without running statistics.

    Returns:
        ``net``.

    Raises:
        ValueError: ``net`` is in training mode.

    Example:
        >>> fold_norms(nn.Sequential(layer.Conv2d(2, 3, 3), layer.BatchNorm2d(3)).eval())[1]
        Identity()
    """
    if net.training:
        raise ValueError("net is in training mode; batch norm folds in eval mode only: net.eval()")
    uses = Counter(module for _, module in net.named_modules(remove_duplicate=False))
    for module in [module for module, n in uses.items() if n == 1]:
        children = [(name, child) for name, child in module._modules.items() if child is not None]
        if isinstance(module, nn.Sequential):
            for (_, conv), (name, norm) in pairwise(children):
                if type(conv) in FOLDABLE and _is_fixed(norm) and uses[conv] == uses[norm] == 1:
                    _fold_into(cast(Any, conv), cast(Any, norm))
                    module.register_module(name, nn.Identity())
        for name, child in children:
            if isinstance(child, EMPFNode) and child.membrane_norm and uses[child] == 1:
                module.register_module(name, fold_membrane_norm(child).eval())
    functional.invalidate_reset_cache(net)
    return net


def _is_fixed(module: nn.Module) -> bool:
    return isinstance(module, NORMS) and module.running_mean is not None


def _fold_into(conv: nn.Conv1d | nn.Conv2d, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    # A packed weight is scale * levels: the norm goes into the scale, one per channel from here on.
    per_channel = (conv.out_channels, *[1] * (1 + len(conv.kernel_size)))
    part = conv.scale.expand(per_channel) if isinstance(conv, PACKED) else conv.weight
    part, conv.bias = fuse_conv_bn_weights(
        part,
        conv.bias,
        cast(Tensor, norm.running_mean),
        cast(Tensor, norm.running_var),
        norm.eps,
        norm.weight,
        norm.bias,
    )
    if isinstance(conv, PACKED):
        conv.scale = part.detach()
    else:
        conv.weight = nn.Parameter(part, requires_grad=False)
