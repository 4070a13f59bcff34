"""The learning signals of neurons: what stands for the gradient that would come back through the layers above."""

from collections.abc import Callable, Mapping
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from sj_online import check, host
from sj_online.neuron.leak import is_neuron
from sj_online.trainer import parallel
from sj_online.tree import tensors, tree_map


class Feedback:
    r"""Signals straight from the network's output, :math:`\partial L / \partial s := B^T \partial L / \partial o`.

    Direct feedback alignment (Nokland 2016); the learning signals of e-prop (Bellec et al. 2020, Eq. 4), whose B is the
    transposed one here. What the signal is made of is the gradient that the loss has at the output, so that its scale
    follows the loss, the batch and the steps.

    Args:
        net: the network.
        matrices: B of neurons by name, ``[outputs, units]`` as the weight of a linear readout has it; None: each neuron
            gets one that is drawn, with a standard deviation of ``units ** -0.5``, when its size is known.
        generator: of the draws; None: one seeded by the place of the neuron.

    Raises:
        ValueError: names that are no neurons, matrices that do not fit, a network that memopt has treated.
    """

    def __init__(
        self, net: nn.Module, matrices: Mapping[str, Tensor] | None = None, generator: torch.Generator | None = None
    ) -> None:
        neurons = [name for name, module in net.named_modules() if is_neuron(module)]
        for name in matrices or {}:
            if name not in neurons:
                raise ValueError(f"feedback names {name!r}, which is none of the neurons {', '.join(neurons)}")
        self.net = net
        self.drawn = matrices is None
        self.matrices = {name: B.detach() for name, B in (matrices or {}).items()}
        self.generator = generator
        self.gain = 1.0
        self.gradients: dict[int, Tensor] = {}
        self.seen: dict[str, int] = {}

    def has(self, name: str) -> bool:
        """Whether a neuron gets a signal."""
        return self.drawn or name in self.matrices

    def around(self, forwards: Mapping[nn.Module, Callable[..., Any]]) -> dict[nn.Module, Callable[..., Any]]:
        """The forwards, and around those of the neurons the signals."""
        for inner in host.checkpointed(self.net).values():
            names = {module: host.shown(name) for name, module in self.net.named_modules()}
            raise ValueError(f"{names[inner]!r} is run again in backward (memopt), where no feedback can reach it")
        nodes = {name: module for name, module in self.net.named_modules() if is_neuron(module)}
        named = {name: node for name, node in nodes.items() if self.has(name)}
        return {
            **forwards,
            **{node: self._of(name, forwards.get(node, node.forward)) for name, node in named.items()},
        }

    def _of(self, name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            s = inner(*args, **kwargs)
            if not s.requires_grad:
                return s
            self.seen[name] = s.numel()
            return _Signal.apply(s, self, name)

        return forward

    def caught(self, outputs: Any) -> Any:
        """The outputs ``[1, N, ...]`` of a step, whose gradients the neurons of that step will get."""
        parts = list(tensors(outputs))
        N = parts[0].shape[1]
        total, self.gradients = sum(part[0, 0].numel() for part in parts), {}
        for name, size in self.seen.items():
            shape = (total, size // N)
            if name not in self.matrices:
                drawn = torch.randn(shape, **source(self.net, name, self.generator)) / shape[1] ** 0.5
                self.matrices[name] = parallel.from_first(drawn).to(parts[0])
            elif (given := tuple(self.matrices[name].shape)) != shape:
                raise ValueError(f"feedback[{name!r}] has the shape {given}, but is to be [outputs, units] = {shape}")
        self.seen = {}
        places = {id(part): i for i, part in enumerate(parts)}
        self.sizes = [part[0, 0].numel() for part in parts]
        return tree_map(lambda part: _Caught.apply(part, self.gradients, places[id(part)]), outputs)

    def signal(self, name: str) -> Tensor:
        """Of a neuron in this step, ``[N, units]``."""
        some = next(iter(self.gradients.values()))
        zeros = (some.new_zeros(some.shape[1], size) for size in self.sizes)
        parts = [self.gradients[i].flatten(2)[0] if i in self.gradients else zero for i, zero in enumerate(zeros)]
        B = self.matrices[name] = self.matrices[name].to(device=some.device)
        return self.gain * torch.cat(parts, 1) @ B.to(some.dtype)


class _Caught(torch.autograd.Function):
    """An output, whose gradient is kept on its way back."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, gradients: dict[int, Tensor], place: int) -> Tensor:
        ctx.gradients, ctx.place = gradients, place
        return output.view_as(output)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:  # of rules whose traces are tangents
        return tangent.view_as(tangent)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.gradients[ctx.place] = gradient
        return gradient, None, None


class _Signal(torch.autograd.Function):
    """The spikes of a neuron, whose gradient is its signal: the output's comes first in a backward pass."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, feedback: Feedback, name: str) -> Tensor:
        ctx.feedback, ctx.name = feedback, name
        return s.view_as(s)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return tangent.view_as(tangent)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.feedback.signal(ctx.name).view_as(gradient).to(gradient.dtype), None, None


def source(net: nn.Module, name: str, generator: torch.Generator | None) -> dict[str, Any]:
    """Generator and device of what is drawn for a neuron; without a generator, one seeded by the neuron's place.

    By its place, not its name, which wrapping a network changes.
    """
    if generator is None:
        place = [each for each, module in net.named_modules() if is_neuron(module)].index(name)
        generator = torch.Generator().manual_seed(crc32(bytes([place % 256, place // 256])))
    return {"generator": generator, "device": generator.device}


def of(net: nn.Module, asked: str | Mapping[str, Tensor], generator: torch.Generator | None) -> Feedback | None:
    """What ``feedback=`` asks for; None: the gradient itself."""
    if isinstance(asked, Mapping):
        return Feedback(net, asked, generator)
    check.one_of("feedback", asked, ("symmetric", "random"))
    return Feedback(net, None, generator) if asked == "random" else None
