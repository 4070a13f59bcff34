"""ANNs into spiking networks: ReLU to QCFS by calibration, and QCFS to LM-H, the start of LM-H's hybrid training."""

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from .. import check, unroll
from ..neuron import QCFS, LMHNode
from . import rates
from .neurons import Swap, replace_in

RELUS = (nn.ReLU, nn.ReLU6)
SIZE = 1 << 24
"""Numbers that torch.quantile takes at once."""


def qcfs_to_lmh(net: nn.Module, num_steps: int | None = None, **kwargs: Any) -> list[Swap]:
    """Replace every QCFS activation of an ANN by an LM-H neuron, in place: the start of LM-H's hybrid training.

    The weights stay. The trained threshold becomes the neuron's constant one, the soma starts at half of it, and the
    factors are those of an IF neuron (LM-H, Algorithm 1). For a constant input over as many steps T = L as QCFS has
    levels, each neuron's mean output is what QCFS gave. From the second layer on the input is not constant, so the
    network as a whole is only near the ANN: nearest at about T = L, as more steps tend to a clipped ReLU instead.

    Args:
        net: an ANN with :class:`sj_online.neuron.QCFS` activations, behind which everything is linear: convolutions,
            linear layers, batch norms, average pools, dropout, sums, residual ones too. Its forward is traced.
        num_steps: of :class:`sj_online.neuron.LMHNode`.
        kwargs: other arguments of :class:`sj_online.neuron.LMHNode`; the step mode is that of the network.

    Returns:
        One row per replaced activation.

    Raises:
        ValueError: no QCFS in net; a layer that cannot be converted, such as a softmax, attention, a max pool behind a
            QCFS or a QCFS that is called twice; a threshold that has become 0 or less. Nothing is changed then.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 4), QCFS(levels=4, threshold=2.0))
        >>> qcfs_to_lmh(net)
        [Swap(name='1', old='QCFS', new='LMHNode', carried_over={'v_threshold': 2.0})]
    """
    found = {name: module for name, module in net.named_modules() if isinstance(module, QCFS)}
    if found:
        rates.check(net, (QCFS,), "LMHNode")
    kwargs.setdefault("step_mode", unroll.step_mode(net))
    replacements: dict[nn.Module, nn.Module] = {}
    rows = []
    for name, old in found.items():
        threshold = old.threshold.item()
        if not threshold > 0:
            raise ValueError(f"{name!r} (QCFS) cannot be converted: its threshold has become {threshold:.4g}")
        replacements[old] = LMHNode(num_steps, v_threshold=threshold, **kwargs).train(old.training)
        rows.append(Swap(name, "QCFS", "LMHNode", {"v_threshold": threshold}))
    replace_in(net, replacements)
    return rows


def relu_to_qcfs(
    net: nn.Module, data: Tensor | Iterable[Tensor] | None, levels: int = 8, *, mode: str | float = "99.9%"
) -> list[Swap]:
    """Replace every ReLU of a trained ANN by a QCFS activation with a calibrated threshold, in place.

    The threshold is a high quantile of what the ReLU gives, observed by SpikingJelly's ``VoltageHook``, as its own
    conversion does. Some training gets back what quantisation has cost; :func:`qcfs_to_lmh` goes on from there.

    Args:
        net: an ANN as :func:`qcfs_to_lmh` takes it, with ``nn.ReLU`` or ``nn.ReLU6`` modules for QCFS.
        data: training data: a batch ``[N, ...]`` or several. None leaves the thresholds at 1, for a network
            whose trained ones are loaded afterwards.
        levels: of each QCFS, L.
        mode: of the host's observer: a quantile in percent, ``'max'``, or a factor in (0, 1] of the maximum.

    Returns:
        One row per replaced activation.

    Raises:
        ValueError: no ReLU module in net; a layer that cannot be converted, see :func:`qcfs_to_lmh`, a ReLU that is
            called twice or as a function among them; or a ReLU that is silent on the data. Nothing is changed then.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
        >>> [row.new for row in relu_to_qcfs(net, torch.rand(16, 8), levels=4, mode="max")]
        ['QCFS']
    """
    check.at_least("levels", levels)
    found: dict[str, nn.Module] = {name: module for name, module in net.named_modules() if isinstance(module, RELUS)}
    rates.check(net, RELUS, "QCFS", modules_only=True)
    thresholds = dict.fromkeys(found, 1.0)
    if data is not None:
        batches = [data] if isinstance(data, Tensor) else data
        thresholds = _calibrated(net, found, batches, mode)
    replacements: dict[nn.Module, nn.Module] = {}
    rows = []
    for name, old in found.items():
        replacements[old] = QCFS(levels, thresholds[name]).train(old.training)
        rows.append(Swap(name, type(old).__name__, "QCFS", {"threshold": thresholds[name]}))
    replace_in(net, replacements)
    return rows


def _calibrated(
    net: nn.Module, found: dict[str, nn.Module], batches: Iterable[Tensor], mode: str | float
) -> dict[str, float]:
    """What the host's observers say of the activations; in eval mode, as in use."""
    from spikingjelly.activation_based.ann2snn.modules import VoltageHook  # which imports matplotlib

    observers = {name: VoltageHook(mode=mode).train() for name in found}

    def watching(observer: VoltageHook) -> Any:
        def observe(_: nn.Module, __: Any, output: Tensor) -> None:
            observer(output.flatten()[:: -(-output.numel() // SIZE)])

        return observe

    with ExitStack() as stack, torch.no_grad(), unroll.evaluating(net):
        for name, module in found.items():
            hook = module.register_forward_hook(watching(observers[name]))
            stack.callback(hook.remove)
        for batch in batches:
            net(batch)
    thresholds = {name: float(observer.scale) for name, observer in observers.items()}
    for name, threshold in thresholds.items():
        if not threshold > 0 or not observers[name].num_batches_tracked:
            raise ValueError(f"{name!r} ({type(found[name]).__name__}) has given nothing above 0: give other data")
    return thresholds
