"""A network run over the steps of its input, in whatever step mode it is, and which axis of its output is time."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

import torch
from spikingjelly.activation_based import base
from torch import Tensor, nn

from sj_online import host
from sj_online.frames import Frames
from sj_online.state import Structure, looked_at
from sj_online.tree import tensors, tree_map

_gives_steps: "WeakKeyDictionary[nn.Module, tuple[Structure, list[bool]]]" = WeakKeyDictionary()


class Unroll:
    """Runs a network over steps of frames; the step mode is looked up once.

    Args:
        net: a SpikingJelly network in step mode 's' or 'm'.
        frames: its input.

    Raises:
        ValueError: neurons in different step modes.

    Example:
        >>> from spikingjelly.activation_based import layer
        >>> frames = Frames(torch.rand(4, 2, 3))
        >>> Unroll(layer.Linear(3, 5), frames)(range(1, 3)).shape
        torch.Size([2, 2, 5])
    """

    def __init__(self, net: nn.Module, frames: Frames) -> None:
        self.net = net
        self.frames = frames
        self.mode = step_mode(net)

    def __call__(self, steps: range) -> Any:
        """Run the steps.

        Returns:
            The outputs ``[k, N, ...]``; where the network gives a dict, a tuple or a dataclass, that with each tensor
            ``[k, N, ...]``. A multi-step network that averages over its steps has its mean as the output of each.
        """
        if self.mode == "s":
            outputs = [self.net(self.frames[t]) for t in steps]
            for output in tensors(outputs[0]):
                self._check_batch(output, output.shape[:1] == (self.frames.N,))
            return stacked(outputs)
        outputs, places = self.net(self.frames.window(steps)), count()
        return tree_map(lambda output: self._over_time(output, len(steps), next(places)), outputs)

    def _over_time(self, output: Tensor, k: int, place: int) -> Tensor:
        """``[k, N, ...]`` as it is, ``[N, ...]`` as the mean of k steps; told apart by k and N."""
        steps = output.shape[:2] == (k, self.frames.N)
        mean = output.shape[:1] == (self.frames.N,)
        self._check_batch(output, steps or mean)
        if mean and k == self.frames.N:
            steps = self.gives_steps(k)[place]
        return output if steps else output.expand(k, *output.shape)

    def gives_steps(self, k: int) -> list[bool]:
        """Whether each output of k steps at once has a time axis, tried once with sizes that cannot be mistaken."""
        structure = Structure(self.net)
        if self.net not in _gives_steps or _gives_steps[self.net][0] != structure:
            with looked_at(self.net), evaluating(self.net), torch.no_grad():
                host.reset(self.net)
                probe = self.frames.part(k, k + 1)
                outputs = list(tensors(self.net(probe.window(range(k)))))
            per_step = [output.shape[:2] == (k, k + 1) for output in outputs]
            for output, steps in zip(outputs, per_step, strict=True):
                self._check_batch(output, steps or output.shape[:1] == (k + 1,), k + 1)
            _gives_steps[self.net] = (structure, per_step)
        return _gives_steps[self.net][1]

    def _check_batch(self, output: Tensor, fits: bool, N: int | None = None) -> None:
        if not fits:
            form = "[N, ...]" if self.mode == "s" else "[T, N, ...] or, as a mean over time, [N, ...]"
            raise ValueError(
                f"the network's output has the shape {tuple(output.shape)}, which is not {form} with the N="
                f"{N or self.frames.N} of x: let the network give that, or a dict with such tensors"
            )


def stacked(outputs: list[Any]) -> Any:
    """Outputs of steps as one, with time as the first axis of each tensor."""
    return tree_map(lambda *each: torch.stack(each), outputs[0], *outputs[1:])


def _outer_step_modules(module: nn.Module, name: str = "") -> Iterator[tuple[str, base.StepModule]]:
    if isinstance(module, base.StepModule):
        yield name, module
    if not isinstance(module, host.CONTAINERS):
        for child_name, child in module.named_children():
            yield from _outer_step_modules(child, f"{name}.{child_name}".lstrip("."))


def step_mode(net: nn.Module) -> str:
    """The step mode of a network, 's' or 'm', as its neurons have it.

    Raises:
        ValueError: its neurons disagree.
    """
    modules = list(_outer_step_modules(net))
    stateful = [(name, module) for name, module in modules if isinstance(module, base.MemoryModule)] or modules
    first_with = {module.step_mode: name for name, module in reversed(stateful)}
    if len(first_with) > 1:
        raise ValueError(
            f"{first_with['s']!r} is in step mode 's' and {first_with['m']!r} in 'm': "
            "call functional.set_step_mode(net, 's') or (net, 'm')"
        )
    return next(iter(first_with), "s")


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Eval mode, with every module's own mode restored afterwards."""
    modes = [(module, module.training) for module in net.modules()]
    try:
        if any(training for _, training in modes):  # eval() makes quantised synapses forget what they keep
            net.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
