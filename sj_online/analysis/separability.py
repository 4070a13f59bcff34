"""Whether the temporal gradient of a neuron separates: Theorem 4.2 of EM-PF and HD-LIF, counted and measured."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sj_online import host
from sj_online.neuron import EMPFNode
from sj_online.neuron.leak import is_neuron
from sj_online.prediction import predict
from sj_online.state import replaying


@dataclass(frozen=True)
class Separability:
    r"""Of one neuron layer; see :func:`separability`.

    Attributes:
        layer: its name.
        neurons: share of neurons and samples that fire at every step, or at none: Theorem 4.2 of EM-PF.
        steps: share of neurons, samples and steps with :math:`\epsilon[i, t] = 0` for all i > t: those that fire at
            t, and those that do not fire from t on.
        equal: share in which the online gradient, as autograd gives it, is STBP's.
        ratio: mean of the online gradient over STBP's, where that is not zero; nan if it is zero everywhere.
    """

    layer: str
    neurons: float
    steps: float
    equal: float
    ratio: float


def separability(net: nn.Module, x: Tensor, num_steps: int | None = None) -> list[Separability]:
    r"""How separable the gradients of each neuron layer are on an input, in eval mode.

    Every neuron is run again on the currents that it had, with the same gradient from above at each step, which is the
    premise of Definition 4.1; so the ratio is that of the neuron, not of the layers above. With
    :math:`\chi[t] = 1` where it fires, HD-LIF's Theorem 4.2 says

    .. math::
        \frac{online}{STBP} = \frac{\chi[t]}{\chi[t] + \sum_{i>t} \chi[i] \prod_{t<j\le i} \lambda_j (1 - \chi[j-1])}.

    ``neurons`` and ``steps`` are the theorem's, so nan for other neurons than EM-PF and HD-LIF; the two measured shares
    are there for all that run in step mode 's'.

    Args:
        net: the network; its state is reset.
        x: ``[T, N, ...]``, or with ``num_steps`` one static input ``[N, ...]``.
        num_steps: T of a static input.

    Example:
        >>> from sj_online.neuron import EMPFNode
        >>> net = nn.Sequential(EMPFNode(threshold=0.5, decay=0.5))
        >>> x = torch.tensor([[[0.9, 0.1, 0.4]], [[0.9, 0.1, 0.4]]])  # fires always, never, at the second step
        >>> (row,) = separability(net, x)
        >>> [round(value, 2) for value in (row.neurons, row.steps, row.equal, row.ratio)]
        [0.67, 0.83, 0.83, 0.75]
    """
    currents: dict[str, list[Tensor]] = {}
    nodes = {name: module for name, module in net.named_modules() if is_neuron(module)}
    hooks = [node.register_forward_pre_hook(_recorder(currents, name)) for name, node in nodes.items()]
    try:
        with torch.compiler.set_stance("force_eager"):  # a compiled network calls no hooks
            predict(net, x, num_steps)
    finally:
        for hook in hooks:
            hook.remove()
    host.reset(net)
    return [
        _of_neuron(host.shown(name), nodes[name], torch.cat(kept))
        for name, kept in currents.items()
        if "s" in nodes[name].supported_step_mode()
    ]


def _recorder(currents: dict[str, list[Tensor]], name: str) -> Callable[..., None]:
    def record(node: Any, args: tuple[Tensor, ...]) -> None:
        if replaying():  # predict may first try on a few steps whether they are independent
            return
        current = args[0].detach().clone()
        currents.setdefault(name, []).append(current if node.step_mode == "m" else current[None])

    return record


def _of_neuron(name: str, node: Any, currents: Tensor) -> Separability:
    """Of a neuron and its currents ``[T, N, ...]``."""
    online, exact, fired = _run_again(node, currents)
    shares = (math.nan, math.nan)
    if isinstance(node, EMPFNode):
        shares = (1.0, 1.0) if node.parallel else _shares(fired)
    reached = exact != 0
    ratio = (online[reached] / exact[reached]).mean().item() if reached.any() else math.nan
    return Separability(name, *shares, torch.isclose(online, exact).float().mean().item(), ratio)


def _shares(fired: Tensor) -> tuple[float, float]:
    """Of the neurons, and of the neurons and steps, that are separable; ``fired`` is ``[T, N, ...]``."""
    ever_from = fired.flip(0).cummax(0).values.flip(0)
    neurons = fired.all(0) | ~fired.any(0)
    return neurons.float().mean().item(), (fired | ~ever_from).float().mean().item()


@torch.enable_grad()
def _run_again(node: Any, currents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The online and the exact gradient of all spikes with respect to each current, and where it fired."""
    twin = copy.deepcopy(node).eval()
    twin.step_mode = "s"
    if hasattr(twin, "temporal_grad"):
        twin.temporal_grad = True
    host.reset(twin)
    inputs = [current.clone().requires_grad_() for current in currents]
    spikes, fired = [], []
    for t, current in enumerate(inputs):
        spikes.append(twin(current))
        if isinstance(twin, EMPFNode):
            threshold = twin.threshold[0 if twin.num_steps is None else t]
            fired.append(twin.v.detach() >= threshold.detach())  # EM-PF resets to the threshold exactly
    online = [torch.autograd.grad(s.sum(), x, retain_graph=True)[0] for s, x in zip(spikes, inputs, strict=True)]
    exact = torch.autograd.grad(torch.stack(spikes).sum(), inputs)
    return torch.stack(online), torch.stack(exact), torch.stack(fired) if fired else torch.empty(0)
