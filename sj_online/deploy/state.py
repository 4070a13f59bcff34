"""What a ``state_dict`` may hold, and how it goes into a packed file and out of it."""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from sj_online.deploy.header import join


def check_unique(synapses: dict[str, nn.Module]) -> None:
    """Raise if a module has two names."""
    names: dict[nn.Module, str] = {}
    for name, module in synapses.items():
        if names.setdefault(module, name) != name:
            raise ValueError(f"synapse {name!r} is {names[module]!r} again; a packed file holds each once")


def baked_state(net: nn.Module, synapses: dict[str, nn.Module]) -> dict[str, Any]:
    """The ``state_dict``, where parametrised tensors of synapses have their values instead of what makes them."""
    lazy = [name for name, tensor in net.named_parameters() if is_lazy(tensor)]
    if lazy:
        raise ValueError(f"tensor {lazy[0]!r} is not initialised; run the network once")
    state = dict(net.state_dict())
    for name, module in synapses.items():
        if parametrize.is_parametrized(module):
            state = {key: value for key, value in state.items() if not key.startswith(join(name, "parametrizations."))}
            made: Any = copy.deepcopy(module).eval()  # in training mode, to look at a spectral norm would change it
            state |= {join(name, tensor): getattr(made, tensor) for tensor in made.parametrizations}
    return state


def stored(name: str, tensor: Tensor) -> Tensor:
    """A copy that safetensors takes: it refuses shared memory, as of tied weights, and knows no lazy conjugation."""
    try:
        if tensor.layout is not torch.strided:
            raise TypeError("it is not dense")
        save({"": torch.empty(0, dtype=tensor.dtype)})
        return tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().clone()
    except Exception as error:  # KeyError, NotImplementedError, ...: one for each kind of tensor
        kind = f"{tensor.dtype}, {tensor.layout}, {tensor.device}"
        raise ValueError(f"tensor {name!r} ({kind}) cannot be stored: {' '.join(str(error).split())}") from error


def json_value(name: str, value: Any) -> Any:
    """The value, if it comes back from JSON as it is."""
    try:
        back = json.loads(json.dumps(value, allow_nan=False))
        if back != value:
            raise ValueError(f"it would come back as {back!r}")
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{name!r} in the state_dict is a {type(value).__name__} that JSON cannot hold: {error}"
        ) from error
    return value


def check_alike(name: str, old: Any, new: Tensor | None) -> None:
    """Raise unless the file's ``new`` can stand in the place of the network's ``old``."""
    if not isinstance(old, Tensor) or new is None:
        if isinstance(old, Tensor) or new is not None:
            raise ValueError(f"{name!r} is a tensor in only one of file and network")
    elif old.shape != new.shape:
        raise ValueError(f"tensor {name!r} has the shape {list(new.shape)}, in the network {list(old.shape)}")
    elif old.dtype != new.dtype and not (old.is_floating_point() and new.is_floating_point()):
        raise ValueError(f"tensor {name!r} has the type {new.dtype}, in the network {old.dtype}")


@contextmanager
def unchanged_on_error(net: nn.Module) -> Iterator[None]:
    """Put classes, attributes, parameters and submodules back if the body raises."""
    tables = ("_parameters", "_buffers", "_modules")
    before = [(m, type(m), vars(m) | {table: dict(vars(m)[table]) for table in tables}) for m in net.modules()]
    try:
        yield
    except BaseException:
        for module, kind, members in before:
            module.__class__ = kind
            vars(module).clear()
            vars(module).update(members)
        raise
