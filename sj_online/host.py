"""Every touch point with what torch and SpikingJelly keep private, each with its reason.

tests/test_host.py holds each of them to what is relied on, so that a new version fails there and not in a gradient.
"""

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from spikingjelly.activation_based import base, functional, layer, neuron
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.batchnorm import _NormBase

# The identity of a tensor's memory.
Storage = StorageWeakRef
# What the host's memopt wraps modules in; it has no public name.
CHECKPOINTED = (CheckpointWrapper,)
# Every batch norm, whatever the shape of what it takes.
BATCH_NORMS = (_NormBase,)
# Calls inside it are not seen by function modes.
without_modes = torch._C.DisableTorchFunction

# What nn.Module keeps in an instance for itself; everything else in there belongs to the module.
INTERNAL = frozenset(vars(nn.Module())) | {"forward", "_compiled_call_impl", "_step_mode", "_backend"}

# Their submodules have a step mode of their own (functional.set_step_mode keeps the same list inside).
CONTAINERS = (
    layer.StepModeContainer,
    layer.MultiStepContainer,
    layer.SeqToANNContainer,
    layer.TLastMultiStepContainer,
    layer.TLastSeqToANNContainer,
    layer.ElementWiseRecurrentContainer,
    layer.LinearRecurrentContainer,
)

# Mix the steps of a sequence in training mode, which running them once in eval mode does not show; the rest of the list
# shortens the way.
MIXES_TIME = (
    layer.ThresholdDependentBatchNorm1d,
    layer.ThresholdDependentBatchNorm2d,
    layer.ThresholdDependentBatchNorm3d,
    layer.TemporalEffectiveBatchNorm1d,
    layer.TemporalEffectiveBatchNorm2d,
    layer.TemporalEffectiveBatchNorm3d,
    neuron.PSN,
    neuron.MaskedPSN,
    neuron.SlidingPSN,
    neuron.DSRIFNode,
    neuron.DSRLIFNode,
    neuron.GatedLIFNode,  # its parameters belong to the steps of one call
    neuron.NonSpikingBaseNode,
    neuron.ILCBaseNode,
    neuron.NoisyBaseNode,
    neuron.NoisyNonSpikingBaseNode,
    layer.TemporalWiseAttention,
    layer.MultiDimensionalAttention,
    layer.TemporalBinSum,
    layer.SpikeCountToBinary,
)


def reset(net: nn.Module) -> None:
    """Reset every stateful module; the host remembers which those are, and would miss those that came later."""
    functional.invalidate_reset_cache(net)
    functional.reset_net(net)


def memories(module: nn.Module) -> dict[str, Any]:
    """The recurrent values of a module of the host by name, the dict itself; an empty one for other modules."""
    return module._memories if isinstance(module, base.MemoryModule) else {}


def attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What an instance holds of its own: neither parameters, buffers, submodules nor hooks."""
    for name, value in vars(module).items():
        if name not in INTERNAL:
            yield name, value


def checkpointed(net: nn.Module) -> dict[nn.Module, nn.Module]:
    """What the host's memopt has wrapped: the modules inside by their wrappers.

    A wrapper has bound what it runs when it was made (a neuron's functional form), so that a forward put into the
    module inside is not run.
    """
    return {m: m._checkpoint_wrapped_module for m in net.modules() if isinstance(m, CHECKPOINTED)}


def shown(name: str) -> str:
    """The name of a module or parameter without what wrapping has added."""
    return ".".join(part for part in name.split(".") if part != "_checkpoint_wrapped_module")


def storage(tensor: Tensor) -> StorageWeakRef | None:
    """The identity of a tensor's memory, shared by its views; None where it has none. It keeps no memory alive."""
    try:
        return StorageWeakRef(tensor.untyped_storage())
    except (NotImplementedError, RuntimeError):  # sparse, meta or wrapped tensors
        return None


def saving_hooks() -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]] | None:
    """The hooks that are active for what autograd saves: torch applies the innermost alone, and does not tell."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False)


def transformed() -> bool:
    """Whether a transform of ``torch.func`` runs (vmap, grad), which wraps what is computed."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def uncompile(net: nn.Module) -> None:
    """Undo ``net.compile()``, for which torch has no call."""
    net._compiled_call_impl = None


def watched() -> bool:
    """Whether a mode of torch sees the calls or operators that run now: a trace, a counter, a default device."""
    return torch._C._len_torch_function_stack() + torch._C._len_torch_dispatch_stack() > 0


@cache
def opened(composite: Callable[..., Any]) -> Callable[..., Any]:
    """A function of torch that is written in Python, without the door of its own at its entry.

    Called under a function mode, such a function goes to the mode as a whole; opened, the mode sees what it calls.
    """
    doors = dict.fromkeys(("has_torch_function", "has_torch_function_unary"), lambda tensors: False)
    names = {**composite.__globals__, **doors}
    function = types.FunctionType(
        composite.__code__, names, composite.__name__, composite.__defaults__, composite.__closure__
    )
    function.__kwdefaults__ = composite.__kwdefaults__
    return function


def random_state(device: torch.device) -> list[Tensor]:
    """The states of torch's generators, the CPU's and that of the device."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def set_random_state(states: list[Tensor], device: torch.device) -> None:
    """Put back what :func:`random_state` gave."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


def watch_resets(net: nn.Module, note: Callable[[nn.Module], Any]) -> Callable[[], None]:
    """Call ``note(module)`` whenever a memory module is reset; returns what ends it.

    The host resets through the instance, so that an attribute of the instance is seen.
    """
    nodes = [
        module for module in net.modules() if isinstance(module, base.MemoryModule) and "reset" not in vars(module)
    ]

    def watched(module: base.MemoryModule) -> Callable[[], None]:
        def reset() -> None:
            note(module)
            type(module).reset(module)

        return reset

    for node in nodes:
        node.__dict__["reset"] = watched(node)

    def end() -> None:
        for node in nodes:
            node.__dict__.pop("reset", None)

    return end


@contextmanager
def unrecorded(net: nn.Module) -> Iterator[None]:
    """Without the hooks of the host's monitors, which would record what is run only to be looked at."""
    kept = []
    try:
        for module in net.modules():
            for name in ("_forward_pre_hooks", "_forward_hooks"):
                hooks = getattr(module, name)
                others = {key: hook for key, hook in hooks.items() if not _of_monitor(hook)}
                if len(others) < len(hooks):
                    kept.append((module, name, hooks))
                    setattr(module, name, type(hooks)(others))
        yield
    finally:
        for module, name, hooks in kept:
            setattr(module, name, hooks)


def _of_monitor(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("spikingjelly.")
