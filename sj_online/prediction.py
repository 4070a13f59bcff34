"""Prediction without a rule, at constant memory, and whether a network may run some steps at a time at all."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from sj_online import check, host
from sj_online.frames import Frames
from sj_online.install import replaced_forwards
from sj_online.state import Structure, looked_at
from sj_online.tree import tensors, tree_map
from sj_online.unroll import Unroll, evaluating

_in_sequence: "WeakSet[nn.Module]" = WeakSet()
_mixing: "WeakKeyDictionary[nn.Module, tuple[Structure, dict[int, str | None]]]" = WeakKeyDictionary()
Calls = tuple[list[Tensor], list[Tensor]]
LOOK = 16
"""Steps over which a network is looked at, if there are so many: what mixes them may reach far back."""


@torch.no_grad()
def predict(net: nn.Module, x: Tensor, num_steps: int | None = None, reduce: str = "mean") -> Any:
    """What a network says of an input: reset, in eval mode, without gradients, with the modules' modes put back.

    Memory does not grow with T: the network runs one step at a time. A multi-step network in which steps depend on each
    other (a GRU over the sequence, say) gets all of them in one call.

    Args:
        net: a SpikingJelly network.
        x: ``[T, N, ...]``, or with ``num_steps`` one static input ``[N, ...]``.
        num_steps: T of a static input.
        reduce: ``'mean'``: the mean over the steps; ``'none'``: the output of each step; ``'running'``: the mean over
            the steps so far.

    Returns:
        ``[N, classes]``, or ``[T, N, classes]`` for ``'none'`` and ``'running'``; of networks that give dicts, tuples
        or dataclasses, those, with every tensor reduced.

    Raises:
        ValueError: x is not of that shape.
        RuntimeError: a rule is in the middle of a sequence of this network.

    Example:
        >>> from spikingjelly.activation_based import layer, neuron
        >>> net = nn.Sequential(layer.Linear(8, 4), neuron.LIFNode(), layer.Linear(4, 3))
        >>> predict(net, torch.rand(2, 8), num_steps=6).shape
        torch.Size([2, 3])
        >>> predict(net, torch.rand(6, 2, 8), reduce="running").shape
        torch.Size([6, 2, 3])
    """
    check.one_of("reduce", reduce, ("mean", "none", "running"))
    if not _in_sequence.isdisjoint(_reset_with(net)):
        raise RuntimeError("predict() would reset the network in the middle of a sequence: finish or close that first")
    frames = Frames(x, num_steps=num_steps)
    with evaluating(net):
        whole = not _steps_are_independent(net, frames)
        host.reset(net)
        run = Unroll(net, frames)
        outputs = (run(range(frames.T)) if whole else run(range(t, t + 1)) for t in range(1 if whole else frames.T))
        return reduced(outputs, reduce, frames.T)


def reduced(outputs: Iterator[Any], reduce: str, T: int) -> Any:
    """Outputs ``[k, N, ...]`` of windows, as ``reduce`` of :func:`predict` asks for them."""
    if reduce == "mean":
        sums = tree_map(lambda output: output.sum(0), next(outputs))
        for more in outputs:
            sums = tree_map(lambda total, output: total + output.sum(0), sums, more)
        return tree_map(lambda total: total / T, sums)
    together = tree_map(lambda *parts: torch.cat(parts), *outputs)
    if reduce == "none":
        return together
    return tree_map(
        lambda o: o.cumsum(0) / torch.arange(1, T + 1, device=o.device).view(-1, *[1] * (o.dim() - 1)), together
    )


def _reset_with(net: nn.Module) -> Iterator[nn.Module]:
    """What a reset of a network touches; a module without state, a surrogate say, may be part of several networks."""
    return (module for module in net.modules() if module is net or hasattr(module, "reset"))


def check_free(net: nn.Module) -> None:
    """Raise where a sequence of a network is in progress."""
    if not _in_sequence.isdisjoint(net.modules()):
        raise RuntimeError(
            "a sequence of this network is in progress (a gradients() or stream() that was left in the middle, or a"
            " call from inside of one): finish it, or close() it"
        )


@contextmanager
def in_sequence(net: nn.Module) -> Iterator[None]:
    """While a rule is in the middle of a sequence: neither :func:`predict` nor another sequence may reset its network.

    Raises:
        RuntimeError: another sequence of this network is in progress.
    """
    check_free(net)
    modules = WeakSet(_reset_with(net))  # part of another network, or around it, too
    try:
        _in_sequence.update(modules)
        yield
    finally:
        _in_sequence.difference_update(modules)


def _steps_are_independent(net: nn.Module, frames: Frames) -> bool:
    """Whether running one step at a time gives what one call gives; tried once per network."""
    run = Unroll(net, frames)
    if run.mode == "s" or frames.T == 1:
        return True
    return not any(isinstance(module, host.MIXES_TIME) for module in net.modules()) and mixing(net, frames, 1) is None


def mixing(net: nn.Module, frames: Frames, k: int) -> str | None:
    """The name of a module that mixes the steps of a sequence, so that slices of k steps are another network; kept.

    A multi-step network is run over a few steps at once and in slices, in eval mode; what differs is confirmed in
    float64, where rounding does not decide about a spike. A network that is random in eval mode cannot be told: a
    warning says so.

    Returns:
        The name, or None where the slices are equal to the whole, or where there is nothing to tell.
    """
    if Unroll(net, frames).mode == "s" or k >= frames.T:
        return None
    structure = Structure(net)
    if net not in _mixing or _mixing[net][0] != structure:
        _mixing[net] = (structure, {})
    kept = _mixing[net][1]
    if k not in kept:
        kept[k] = _mixing_now(net, frames.part(min(frames.T, max(2 * k + 1, LOOK)), 2), k)
    return kept[k]


def _mixing_now(net: nn.Module, part: Frames, k: int) -> str | None:
    with looked_at(net), evaluating(net), torch.no_grad():
        try:
            name = _first_difference(net, part, k)
        except (
            RuntimeError,
            ValueError,
            IndexError,
        ):  # made for k steps (TEBN): no whole that slices could differ from
            return None
        if name is None:
            return None
        if _is_random(net, part):
            check.warn("the network is random in eval mode: whether it mixes the steps cannot be told")
            return None
        if part.x.is_floating_point():
            try:
                double = copy.deepcopy(net).double()
            except Exception:  # a network that cannot be copied: the difference stands as it was found
                return name
            return _first_difference(double, Frames(part.x.double(), num_steps=part.T if part.static else None), k)
        return name


def _is_random(net: nn.Module, frames: Frames) -> bool:
    outputs = []
    for _ in range(2):
        host.reset(net)
        outputs.append(list(tensors(net(frames.window(range(frames.T))))))
    return not all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


def _first_difference(net: nn.Module, frames: Frames, k: int) -> str | None:
    """The first module, in the order of the calls, whose output in slices is not its output on the whole."""
    slices = [range(t, min(t + k, frames.T)) for t in range(0, frames.T, k)]
    whole = _outputs(net, frames, [range(frames.T)])
    try:
        # An average over the steps comes as a view that repeats it.
        if all(
            _close(a[0], b.mean(0)) if a.stride(0) == 0 else _close(a, b)
            for a, b in zip(whole, _outputs(net, frames, slices), strict=True)
        ):
            return None
    except (RuntimeError, ValueError, IndexError):  # made for the whole: the calls tell which module
        pass
    calls, _ = _calls(net, frames, [range(frames.T)])
    calls_in_slices, raised = _calls(net, frames, slices)
    for name, (inputs, outputs) in calls.items():
        their_inputs, theirs = calls_in_slices.get(name, ([], []))
        # Of other inputs, it is not its own doing.
        if name and _same(inputs, their_inputs, len(slices)) and not _same(outputs, theirs, len(slices)):
            return name
    return raised[0] if raised else ""


def _same(whole: list[Tensor], in_slices: list[Tensor], slices: int) -> bool:
    """Whether the tensors of some calls are those of the calls in slices behind each other."""
    if len(in_slices) != slices * len(whole):
        return len(in_slices) == len(whole) and all(map(_close, whole, in_slices))  # calls of single steps
    joined = (torch.cat(in_slices[i :: len(whole)]) for i in range(len(whole)))
    return all(map(_close, whole, joined))


def _outputs(net: nn.Module, frames: Frames, slices: list[range]) -> list[Tensor]:
    """The outputs of all steps."""
    host.reset(net)
    parts = [list(tensors(part)) for part in map(Unroll(net, frames), slices)]
    return parts[0] if len(parts) == 1 else [torch.cat(p) for p in zip(*parts, strict=True)]


def _calls(net: nn.Module, frames: Frames, slices: list[range]) -> tuple[dict[str, Calls], list[str]]:
    """What each module got and gave, in the order in which calls end, and those that an error ended."""
    calls: dict[str, Calls] = {}
    raised: list[str] = []

    def recording(name: str, module: nn.Module) -> Any:
        inner = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            raised.append(name)
            given = [t.clone() for t in tensors((args, kwargs)) if t.dim()]
            output = inner(*args, **kwargs)
            raised.remove(name)
            inputs, outputs = calls.setdefault(name, ([], []))
            inputs += given
            outputs += [t.clone() for t in tensors(output) if t.dim()]
            return output

        return forward

    host.reset(net)
    run = Unroll(net, frames)
    forwards = {module: recording(name, module) for name, module in net.named_modules()}
    with suppress(RuntimeError, ValueError, IndexError), replaced_forwards(forwards):
        for steps in slices:
            run(steps)
    return calls, raised[::-1]


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    return torch.allclose(
        a, b, rtol=1e-4, atol=1e-5 * max(1.0, a.abs().max().item() if a.numel() else 0.0), equal_nan=True
    )
