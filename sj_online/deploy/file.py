"""The packed file: a safetensors file whose metadata says how to rebuild the network.

The tensors are the network's ``state_dict`` with the latent weight of each quantised synapse replaced by ``packed``
(uint8) and ``scale``. Nothing is pickled. The metadata hold one JSON object::

    {"format": 1, "model": NAME | null, "kwargs": {...}, "metadata": {...},
     "packed": {SYNAPSE: {"bits": 1 | 2, "shape": [...]}}}
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sj_online import registry
from sj_online.deploy.pack import pack, packed_size
from sj_online.deploy.runtime import check_packable, pack_synapse
from sj_online.files import replacing
from sj_online.layer.quant import Quantized

FORMAT = 1
_KEY = "sj_online"
_FIELDS = {"format": int, "model": str | None, "kwargs": dict, "metadata": dict, "packed": dict}


def export(
    net: nn.Module,
    path: str | Path,
    *,
    model: str | None = None,
    kwargs: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Write ``net`` to a packed ``.safetensors`` file; ``net`` is left as it is.

    The file appears under its name when it is complete: it is written beside it and renamed.

    Args:
        net: a network; its binary and ternary layers are packed, all else is kept as in its ``state_dict``.
        path: the file to write.
        model: registered name of the factory that built ``net``; without it :func:`load` must be given a network.
        kwargs: the arguments the factory was called with, JSON values only.
        metadata: anything else worth keeping, JSON values only.

    Raises:
        ValueError: ``model`` is not registered, ``kwargs`` or ``metadata`` are not JSON, or a quantised synapse has
            two names.

    Example:
        >>> import tempfile
        >>> from sj_online.layer import BinaryLinear
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export(nn.Sequential(BinaryLinear(4, 2)), f"{folder}/net.safetensors")
        ...     load(f"{folder}/net.safetensors", nn.Sequential(BinaryLinear(4, 2)))
        Sequential(
          (0): PackedLinear(in_features=4, out_features=2, bias=False)
        )
    """
    if model is not None and model not in registry.names("models"):
        raise ValueError(f"model={model!r} is not registered; known: {', '.join(registry.names('models'))}")
    header: dict[str, Any] = {"format": FORMAT, "model": model, "kwargs": kwargs or {}, "metadata": metadata or {}}
    packed = header["packed"] = {}
    tensors = {name: tensor.detach() for name, tensor in net.state_dict().items()}
    synapses: dict[nn.Module, str] = {}
    for name, module in net.named_modules(remove_duplicate=False):
        if isinstance(module, Quantized):
            if synapses.setdefault(module, name) != name:
                raise ValueError(f"synapse {name!r} is {synapses[module]!r} again; a packed file holds each once")
            weight = tensors.pop(_join(name, "weight"))
            levels, scale = module.levels(weight)
            tensors |= {_join(name, "packed"): pack(levels, module.bits), _join(name, "scale"): scale}
            packed[name] = {"bits": module.bits, "shape": list(weight.shape)}
    try:
        text = json.dumps(header, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"kwargs and metadata must be JSON values: {error}") from error
    # Cloned: safetensors refuses tensors that share memory, such as tied weights.
    content = save({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, {_KEY: text})
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(content)


def load(path: str | Path, net: nn.Module | None = None) -> nn.Module:
    """Read a packed file into a network in eval mode, with the logits of the network that was exported.

    Args:
        path: a file that :func:`export` wrote.
        net: the network to fill, in place; by default the registered model that the file names is built.

    Raises:
        ValueError: one line that names the file and what is wrong: unreadable, truncated, foreign, another format,
            or header, tensors and network do not match.

    Example:
        See :func:`export`.
    """
    header, tensors = _read(Path(path))
    try:
        if net is None:
            if header["model"] is None:
                raise ValueError("it names no model; give the network to fill: load(path, net)")
            net = registry.get("models", header["model"])(**header["kwargs"])
        _fill(net, header["packed"], tensors)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: {error}") from error
    return net.requires_grad_(False).eval()


def read_header(path: str | Path) -> dict[str, Any]:
    """The header of a packed file, checked: format, model, kwargs, metadata and the packed synapses.

    Raises:
        ValueError: as :func:`load`.
    """
    return _read(Path(path))[0]


def _join(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: not a readable packed file: {error}") from error
    if text is None:
        raise ValueError(f"{path}: a safetensors file, but not one of sj_online")
    try:
        header = json.loads(text)
        _check(header, tensors)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged header: {error}") from error
    return header, tensors


def _check(header: Any, tensors: dict[str, Tensor]) -> None:
    """Header against tensors; nothing is allocated by what the header says."""
    if not isinstance(header, dict) or set(header) != set(_FIELDS):
        raise ValueError(f"its fields must be {', '.join(_FIELDS)}")
    for field, kind in _FIELDS.items():
        if not isinstance(header[field], kind):
            raise ValueError(f"{field}={header[field]!r} has the wrong type")
    if header["format"] != FORMAT:
        raise ValueError(f"format={header['format']} is not {FORMAT}, the one that this version reads")
    for name, entry in header["packed"].items():
        match entry:
            case {"bits": 1 | 2, "shape": [_, _, *_] as shape} if all(isinstance(n, int) and n > 0 for n in shape):
                parts = _parts(entry)
            case _:
                raise ValueError(f"synapse {name!r} is described by {entry!r}")
        for part, shape in parts.items():
            tensor = tensors.get(_join(name, part))
            if (
                tensor is None
                or list(tensor.shape) != shape
                or tensor.is_floating_point() != (part == "scale")
                or (part == "packed") != (tensor.dtype == torch.uint8)
            ):
                raise ValueError(f"tensor {_join(name, part)!r} is not there with its type and the shape {shape}")
        packed = tensors[_join(name, "packed")]
        if entry["bits"] == 2 and bool((packed & packed >> 1 & 0x55).any()):
            raise ValueError(f"tensor {_join(name, 'packed')!r} holds a code that is not ternary")


def _parts(entry: dict[str, Any]) -> dict[str, list[int]]:
    """The shapes of the tensors that stand for one quantised weight."""
    bits, shape = int(entry["bits"]), entry["shape"]
    return {
        "packed": [packed_size(math.prod(shape), bits)],
        "scale": [shape[0]] + [1] * (len(shape) - 1) if bits == 1 else [],
    }


def _fill(net: nn.Module, packed: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Check first, so that a network that does not fit is left as it was."""
    state = net.state_dict()
    shapes = {name: list(tensor.shape) for name, tensor in state.items()}
    for name, entry in packed.items():
        if shapes.pop(_join(name, "weight"), None) != entry["shape"]:
            raise ValueError(f"the network has no synapse {name!r} with a weight of shape {entry['shape']}")
        check_packable(net.get_submodule(name), entry["bits"])
        shapes |= {_join(name, part): shape for part, shape in _parts(entry).items()}
    if shapes.keys() != tensors.keys():
        unmatched = ", ".join(sorted(shapes.keys() ^ tensors.keys()))
        raise ValueError(f"tensors that only the file or only the network has: {unmatched}")
    for name, tensor in tensors.items():
        if list(tensor.shape) != shapes[name]:
            raise ValueError(f"tensor {name!r} has the shape {list(tensor.shape)}, in the network {shapes[name]}")
        if name in state and tensor.is_floating_point() != state[name].is_floating_point():
            raise ValueError(f"tensor {name!r} has the type {tensor.dtype}, in the network {state[name].dtype}")
    for name, entry in packed.items():
        pack_synapse(net.get_submodule(name), entry["bits"])
    devices = {name: tensor.device for name, tensor in net.state_dict().items()}
    net.load_state_dict({name: tensor.to(devices[name]) for name, tensor in tensors.items()}, assign=True)
