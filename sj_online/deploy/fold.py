"""Fold batch normalisation away, for inference: into the convolution before it, and out of the neurons' membranes."""

from itertools import pairwise

import torch
from spikingjelly.activation_based import functional, layer
from torch import nn
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
        net: a network in eval mode; latent weights (``BinaryConv2d``) and standardised ones are left alone.

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
    for module in list(net.modules()):
        if isinstance(module, nn.Sequential):
            for (_, conv), (name, norm) in pairwise(list(module.named_children())):
                if isinstance(conv, FOLDABLE) and type(conv) in FOLDABLE and isinstance(norm, NORMS):
                    _fold_into(conv, norm)
                    module.register_module(name, nn.Identity())
        for name, child in list(module.named_children()):
            if isinstance(child, EMPFNode) and child.membrane_norm:
                module.register_module(name, fold_membrane_norm(child).eval())
    functional.invalidate_reset_cache(net)
    return net


def _fold_into(conv: nn.Conv1d | nn.Conv2d, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    # A packed weight is scale * levels: the norm goes into the scale, one per channel from here on.
    per_channel = (conv.out_channels, *[1] * (1 + len(conv.kernel_size)))
    part = conv.scale.expand(per_channel) if isinstance(conv, PACKED) else conv.weight
    part, conv.bias = fuse_conv_bn_weights(
        part,
        conv.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    if isinstance(conv, PACKED):
        conv.scale = part.detach()
    else:
        conv.weight = nn.Parameter(part, requires_grad=False)
