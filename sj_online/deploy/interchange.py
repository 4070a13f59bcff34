"""Networks for other runtimes: ONNX, torch.export, and what NIR cannot take.

A network goes out as it is in eval mode, either all T steps as one function or one step with its state as arguments and
results. Synapses that get bytes (``runtime='int8'``) become ``ConvInteger`` and ``MatMulInteger``; all else is float.
"""

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sj_online import host
from sj_online.deploy.portable import make_portable
from sj_online.files import replacing
from sj_online.layer.quantized import Quantized
from sj_online.neuron import OnlineNode
from sj_online.neuron.leak import is_neuron
from sj_online.unroll import step_mode

_OPSET = 17


class Step(nn.Module):
    """One step as a function: ``(x, *state) -> (y, *state)``.

    Attributes:
        names: of the states, ``neuron.memory``.
        initial: each as it is after a reset, of the shape that the example gave it.
    """

    def __init__(self, net: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.net = net
        host.reset(net)
        start = {name: value for name, _, value in _memories(net)}
        with torch.no_grad():
            net(example)
        self.places = [(node, memory) for _, (node, memory), value in _memories(net) if isinstance(value, Tensor)]
        shapes = {name: value for name, _, value in _memories(net) if isinstance(value, Tensor)}
        self.names = list(shapes)
        self.initial = [torch.full_like(value, float(start[name])) for name, value in shapes.items()]
        host.reset(net)

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Run it; nothing is kept."""
        for (node, memory), value in zip(self.places, states, strict=True):
            host.memories(node)[memory] = value
        y = self.net(x)
        return (y, *(host.memories(node)[memory] for node, memory in self.places))


class Sequence(nn.Module):
    """All steps as a function: ``[T, N, ...]``, or with ``num_steps`` a static ``[N, ...]``, to ``[T, N, classes]``."""

    def __init__(self, step: Step, num_steps: int | None) -> None:
        super().__init__()
        self.step = step
        self.num_steps = num_steps

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        host.reset(self.step.net)
        states: list[Tensor] = self.step.initial
        outputs = []
        for x_t in [x] * self.num_steps if self.num_steps else x.unbind(0):
            y, *states = self.step(x_t, *states)
            outputs.append(y)
        return torch.stack(outputs)


@torch.no_grad()
def to_onnx(
    net: nn.Module, path: str | Path, example_input: Tensor, *, num_steps: int | None = None, stateful: bool = False
) -> dict[str, Tensor]:
    """Write a network to an ONNX file, which needs the package ``onnx``; ``net`` is left as it is, its state reset.

    Inputs and outputs are ``x`` and ``y``; with ``stateful`` each state ``NAME`` comes in and goes out as ``NAME_out``.
    The shapes are those of the example.

    Args:
        net: a network in eval mode and step mode 's'; quantised synapses as :func:`~sj_online.deploy.load` gives them.
        path: the file.
        example_input: with ``stateful`` of one step ``[N, ...]``; else all of them ``[T, N, ...]``, or with
            ``num_steps`` a static input ``[N, ...]``.
        num_steps: T of a static input.
        stateful: one step with explicit state instead of all of them.

    Returns:
        With ``stateful`` the states of the first step by name, else nothing.

    Raises:
        ValueError: latent weights, another mode, parameters for each step with ``stateful``, or what ONNX cannot hold.
    """
    x_t = example_input if stateful or num_steps else example_input[0]
    step = _step(net, x_t, stateful, as_integers=True)
    names = step.names if stateful else []
    module, args = (step, (x_t, *step.initial)) if stateful else (Sequence(step, num_steps), (example_input,))
    with replacing(Path(path)) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer: the exporter that needs none wants onnxscript
        try:
            torch.onnx.export(
                module,
                args,
                str(temporary),
                dynamo=False,
                opset_version=_OPSET,
                input_names=["x", *names],
                output_names=["y", *(f"{name}_out" for name in names)],
            )
        except Exception as error:  # of any kind
            raise ValueError(f"this network cannot be written as ONNX: {' '.join(str(error).split())[:300]}") from error
    return dict(zip(names, step.initial, strict=True)) if stateful else {}


@torch.no_grad()
def to_export(net: nn.Module, example_input: Tensor) -> tuple[torch.export.ExportedProgram, dict[str, Tensor]]:
    """One step as a program of ``torch.export``, ``(x, *state) -> (y, *state)``, and the states of the first step.

    Args:
        net: see :func:`to_onnx`.
        example_input: of one step, ``[N, ...]``.

    Raises:
        ValueError: as :func:`to_onnx`.
    """
    step = _step(net, example_input, stateful=True, as_integers=False)
    program = torch.export.export(step, (example_input, *step.initial), strict=False)
    return program, dict(zip(step.names, step.initial, strict=True))


def to_nir(net: nn.Module, example_input: Tensor) -> Any:
    """The graph that the host's exporter to NIR makes, which takes the host's neurons with a hard reset alone.

    Raises:
        ValueError: another neuron; it is named.

    Example:
        >>> from sj_online.neuron import HDLIFNode
        >>> to_nir(nn.Sequential(nn.Linear(2, 2), HDLIFNode()), torch.rand(1, 2))
        Traceback (most recent call last):
        ValueError: NIR has no form for neuron '1', a HDLIFNode: it knows IF and LIF neurons with a hard reset alone
    """
    for name, module in net.named_modules():
        if is_neuron(module) and (isinstance(module, OnlineNode) or getattr(module, "v_reset", None) is None):
            soft = "" if isinstance(module, OnlineNode) else " with a soft reset (v_reset=None)"
            raise ValueError(
                f"NIR has no form for neuron {name!r}, a {type(module).__name__}{soft}: it knows IF and LIF neurons"
                " with a hard reset alone"
            )
    from spikingjelly.activation_based import nir_exchange

    return nir_exchange.export_to_nir(net, example_input)


def _step(net: nn.Module, example: Tensor, stateful: bool, as_integers: bool) -> Step:
    if net.training or step_mode(net) == "m":
        raise ValueError("net must be in eval mode and step mode 's': net.eval(), functional.set_step_mode(net, 's')")
    for name, module in net.named_modules():
        if isinstance(module, Quantized):
            raise ValueError(f"synapse {name!r} has latent weights: export the network to a packed file and load that")
        if stateful and isinstance(module, OnlineNode) and module.num_steps is not None:
            raise ValueError(
                f"neuron {name!r} has parameters for each of {module.num_steps} steps, so that one step is no function"
                " of its state: give all steps (stateful=False), or a network with num_steps=None"
            )
    host.reset(net)
    copied = copy.deepcopy(net)
    make_portable(copied, as_integers)
    return Step(copied, example)


def _memories(net: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, str], Any]]:
    for name, module in net.named_modules():
        for memory, value in host.memories(module).items():
            yield f"{name}.{memory}".lstrip("."), (module, memory), value
