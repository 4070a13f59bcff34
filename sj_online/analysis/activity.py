"""What the neurons of a network do: firing rates, potentials, what they have learnt; and accuracy over the steps."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sj_online import host
from sj_online.neuron.leak import is_neuron, of_neuron
from sj_online.prediction import predict
from sj_online.state import replaying

LEARNT = ("decay", "threshold", "mu_d", "mu_s", "lambda_s", "lambda_d")
BINS = 41
SAMPLES = 1 << 14
"""Potentials of a layer and step that a histogram looks at, at most; evenly spaced among all."""


@dataclass(frozen=True)
class LayerActivity:
    """Of one neuron layer; see :func:`activity`.

    Attributes:
        layer: its name.
        neurons: how many there are, without the batch.
        rate: of each step, the share of outputs that are not zero.
        dead: share of neurons that fire for no sample at no step.
        always: share of neurons that fire for every sample at every step.
        edges: of the bins of the histogram; empty for neurons without a potential.
        counts: potentials after a step, in each bin.
    """

    layer: str
    neurons: int
    rate: list[float]
    dead: float
    always: float
    edges: list[float]
    counts: list[int]


@dataclass
class _Record:
    """What a layer has done so far."""

    calls: list[float] = field(default_factory=list)
    fired: Tensor | None = None
    rows: int = 0
    potentials: list[Tensor] = field(default_factory=list)

    def add(self, node: Any, output: Tensor) -> None:
        steps = (output if node.step_mode == "m" else output[None]).detach() != 0
        self.calls += steps.flatten(1).float().mean(1).tolist()
        counts = steps.flatten(0, 1).sum(0)
        self.fired = counts if self.fired is None else self.fired + counts
        self.rows += steps.shape[0] * steps.shape[1]
        v = getattr(node, "v", None)
        if isinstance(v, Tensor) and not getattr(node, "parallel", False):
            values = v.detach().flatten()
            self.potentials.append(values[:: math.ceil(values.numel() / SAMPLES)].float().cpu())


def activity(net: nn.Module, x: Tensor, num_steps: int | None = None) -> list[LayerActivity]:
    """Firing rates per layer and step, dead and always-firing neurons, histograms of the potentials (OTTT, Fig. 4).

    In eval mode, as :func:`sj_online.predict`. A potential is the one that a step leaves, after the reset; of a network
    that runs all steps at once, the last step's alone.

    Args:
        net: the network; its state is reset.
        x: ``[T, N, ...]``, or with ``num_steps`` one static input ``[N, ...]``.
        num_steps: T of a static input.

    Returns:
        The layers in the order of their calls. A neuron that is called several times a step has one rate a step, the
        mean.

    Example:
        >>> from spikingjelly.activation_based import neuron
        >>> (layer,) = activity(nn.Sequential(neuron.IFNode()), torch.tensor([[0.0, 0.6, 1.0]]), num_steps=2)
        >>> layer.rate, round(layer.dead, 2), round(layer.always, 2)
        ([0.3333333432674408, 0.6666666865348816], 0.33, 0.33)
    """
    records: dict[str, _Record] = {}

    def watch(name: str, module: nn.Module) -> Any:
        def add(node: nn.Module, _: Any, output: Tensor) -> None:
            if not replaying():  # predict may first try on a few steps whether they are independent
                records.setdefault(name, _Record()).add(node, output)

        return module.register_forward_hook(add)

    hooks = [watch(host.shown(name), module) for name, module in net.named_modules() if is_neuron(module)]
    try:
        with torch.compiler.set_stance("force_eager"):  # a compiled network calls no hooks
            predict(net, x, num_steps)
    finally:
        for hook in hooks:
            hook.remove()
        host.reset(net)
    return [_layer(name, record, num_steps or len(x)) for name, record in records.items()]


def _layer(name: str, record: _Record, steps: int) -> LayerActivity:
    assert record.fired is not None
    calls = torch.tensor(record.calls)
    rate = calls.view(steps, -1).mean(1) if len(calls) % steps == 0 else calls
    edges, counts = _histogram(torch.cat(record.potentials)) if record.potentials else ([], [])
    return LayerActivity(
        layer=name,
        neurons=record.fired.numel(),
        rate=rate.tolist(),
        dead=(record.fired == 0).float().mean().item(),
        always=(record.fired == record.rows).float().mean().item(),
        edges=edges,
        counts=counts,
    )


def _histogram(values: Tensor) -> tuple[list[float], list[int]]:
    """Edges and counts; the bins span all values."""
    low, high = values.min().item(), values.max().item()
    pad = 0.0 if high > low else 0.5
    counts, edges = torch.histogram(values, BINS, range=(low - pad, high + pad))
    return edges.tolist(), counts.int().tolist()


def learnt(net: nn.Module) -> dict[str, dict[str, list[float]]]:
    """What the neurons of each layer have learnt, in natural units: one number, or one per step (LM-H, Fig. S1).

    EM-PF and HD-LIF have decay and threshold, LM-H four factors mu and lambda; of others that learn, their leak.

    Example:
        >>> from sj_online.neuron import EMPFNode
        >>> learnt(nn.Sequential(EMPFNode(2, decay=0.5, threshold=0.25)))
        {'0': {'decay': [0.5, 0.5], 'threshold': [0.25, 0.25]}}
    """
    found: dict[str, dict[str, list[float]]] = {}
    for name, node in net.named_modules():
        if not is_neuron(node) or not any(p.requires_grad for p in node.parameters(recurse=False)):
            continue
        values = {each: getattr(node, each) for each in LEARNT if isinstance(getattr(type(node), each, None), property)}
        if getattr(node, "parallel", False):
            del values["decay"]
        if not values and (leak := of_neuron(node, 0)) is not None:
            values = {"leak": leak}
        if values:
            found[host.shown(name)] = {
                each: torch.as_tensor(v).detach().flatten().tolist() for each, v in values.items()
            }
    return found


def accuracy_by_steps(
    net: nn.Module, batches: Iterable[tuple[Tensor, ...]], num_steps: int | None = None
) -> list[float]:
    """The accuracy after 1, 2, ... T steps, by the mean of the outputs so far.

    Args:
        net: the network.
        batches: of (x, y), with labels ``[N]``.
        num_steps: T of static inputs.

    Raises:
        ValueError: no batch at all.

    Example:
        >>> x = torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]]])  # two steps of one sample
        >>> accuracy_by_steps(nn.Identity(), [(x, torch.tensor([1]))])
        [0.0, 1.0]
    """
    right: Tensor | None = None
    total = 0
    for x, y, *_ in batches:
        hits = (predict(net, x, num_steps, "running").argmax(-1) == y).sum(1)
        right = hits if right is None else right + hits
        total += len(y)
    if right is None:
        raise ValueError("batches=[] holds no batch to measure accuracy on")
    return (right / total).tolist()
