"""The packed file: a safetensors file whose metadata says how to rebuild the network.

The tensors are the network's ``state_dict`` with the latent weight of each quantised synapse replaced by ``packed``
(uint8) and ``scale``; what else a ``state_dict`` holds, such as extra state, is kept as JSON. Nothing is pickled. The
metadata hold one JSON object::

    {"format": 1, "model": NAME | null, "kwargs": {...}, "metadata": {...},
     "packed": {SYNAPSE: {"bits": 1 | 2, "shape": [...]}}, "extra": {KEY: VALUE}}

``"signed": true`` beside ``"bits"`` says that scales may be negative, as with a norm folded into them. A checksum of
all of it stands beside; files of earlier versions have none.
"""

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sj_online import check, registry, sparse
from sj_online.deploy import bytes as content
from sj_online.deploy.build import build
from sj_online.deploy.choose import RUNTIMES, choose, compile_network
from sj_online.deploy.header import FORMAT, checked, join, one_line, read
from sj_online.deploy.pack import pack, unpack
from sj_online.deploy.runtime import Packed, check_packable, pack_synapse
from sj_online.deploy.state import baked_state, check_alike, check_unique, json_value, stored, unchanged_on_error
from sj_online.layer.quant import BinaryConv2d, BinaryLinear
from sj_online.layer.quantized import Quantized

_EXTRA = "_extra_state"
_log = logging.getLogger(__name__)


@torch.no_grad()
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
        net: a network; its binary and ternary layers are packed, of parametrised ones the weight that they make, and
            sparse weights (:mod:`sj_online.sparse`) are stored as they are used; all else is kept as in its
            ``state_dict``, also a subclass of them with a forward of its own.
        path: the file to write.
        model: registered name of the factory that built ``net``; without it :func:`load` must be given a network.
        kwargs: the arguments the factory was called with, JSON values only.
        metadata: anything else worth keeping, JSON values only.

    Raises:
        ValueError: ``model`` is not registered, ``kwargs``, ``metadata`` or an extra state are not JSON, a tensor is
            of a kind that the file cannot hold, or a quantised synapse has two names or makes its weight in an unknown
            way. Nothing is written then.

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
    packable = {name: module for name, module in _modules(net) if _is_packable(module)}
    check_unique(packable)
    state = baked_state(net, packable | sparse.synapses(net))
    tensors = {name: stored(name, value) for name, value in state.items() if isinstance(value, Tensor)}
    header: dict[str, Any] = {"format": FORMAT, "model": model, "kwargs": kwargs or {}, "metadata": metadata or {}}
    header["packed"] = {name: _pack_into(tensors, name, module, state) for name, module in packable.items()}
    header["extra"] = {name: json_value(name, value) for name, value in state.items() if not isinstance(value, Tensor)}
    try:
        text = json.dumps(header, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"kwargs and metadata must be JSON values: {error}") from error
    checked(header, tensors)
    content.write(Path(path), text, tensors)


def load(
    path: str | Path,
    net: nn.Module | None = None,
    *,
    runtime: str = "packed",
    example_input: Tensor | None = None,
    compile: bool = False,
) -> nn.Module:
    """Read a packed file into a network in eval mode, with the logits of the network that was exported.

    How it runs, and which synapses compute with integers, is logged and told by :func:`~.choose.report`. With integers
    (on a CPU) the batch norms are folded into the synapses and the neurons take few passes: each layer is equal up to
    rounding, and a level that lies on an edge may flip, as it may between two layouts of one float network.

    Args:
        path: a file that :func:`export` wrote.
        net: the network to fill, in place; by default the registered model that the file names is built. Sparse
            weights become plain parameters.
        runtime: ``'packed'``: least memory, each weight is unpacked when it is used; ``'unpacked'``: once, here;
            ``'int8'``: synapses that see spikes or levels compute with integers, others unpacked; where the machine
            lacks that, ``'unpacked'``, with a warning that says why; ``'auto'``: what is faster, synapse by synapse.
        example_input: what the network is called with (of one step in step mode 's'), to find out about ``'int8'``;
            by default one is made up from its first synapse.
        compile: compile it with ``torch.compile``; where that fails, a warning says why and it runs as it is.

    Raises:
        ValueError: one line that names the file and what is wrong: unreadable, truncated, foreign, another format,
            or header, tensors and network do not match. ``net`` then has the layers and tensors that it had. Or there
            is no such runtime.

    Example:
        See :func:`export`.
    """
    check.one_of("runtime", runtime, RUNTIMES)
    header, tensors = read(Path(path))
    try:
        if net is None:
            if header["model"] is None:
                raise ValueError("it names no model; give the network to fill: load(path, net)")
            net = _built(header, tensors)
        with unchanged_on_error(net):
            sparse.bake(net)
            _fill(net, header["packed"], tensors, header["extra"])
    except Exception as error:  # of any kind: set_extra_state is the user's
        raise ValueError(f"{path}: {one_line(error)}") from error
    net.requires_grad_(False).eval()
    found = choose(net, runtime, example_input)
    if compile:
        compile_network(net, example_input, found)
    _log.info("%s: %s", path, found)
    return net


def read_header(path: str | Path) -> dict[str, Any]:
    """The header of a packed file, checked: format, model, kwargs, metadata, packed synapses and extra state.

    Raises:
        ValueError: as :func:`load`.
    """
    return read(Path(path))[0]


def _built(header: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    """The network that the header names, compared with the tensors before it is built."""
    elements = sum(tensor.numel() for tensor in tensors.values())
    elements += sum(math.prod(entry["shape"]) for entry in header["packed"].values())

    def check(net: nn.Module) -> None:
        _compare(net, header["packed"], tensors, header["extra"])

    return build(registry.get("models", header["model"]), header["kwargs"], len(tensors), elements, check)


def _modules(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return net.named_modules(remove_duplicate=False)


def _is_packable(module: nn.Module) -> bool:
    """Packed layers again, and quantised ones unless a subclass computes something else with the weight."""
    own = type(module)
    return isinstance(module, Packed) or (
        isinstance(module, Quantized)
        and own.forward in (BinaryConv2d.forward, BinaryLinear.forward)
        and getattr(own, "_conv_forward", BinaryConv2d._conv_forward) is BinaryConv2d._conv_forward
    )


def _pack_into(tensors: dict[str, Tensor], name: str, module: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Put bits and scale in the place of the weight, and return the header's entry."""
    if isinstance(module, Packed):
        signed = {"signed": True} if bool((module.scale < 0).any()) else {}
        return {"bits": module.bits, "shape": list(module.shape), **signed}
    check_packable(module, module.bits)
    weight = tensors.pop(join(name, "weight"), None)
    if weight is None:
        made_of = ", ".join(key for key in tensors if key.rpartition(".")[0] == name)
        raise ValueError(f"synapse {name!r} has no weight in the state_dict but {made_of}; make it a plain parameter")
    taken = sorted({join(name, "packed"), join(name, "scale")} & tensors.keys())
    if taken:
        raise ValueError(f"tensor {taken[0]!r} has a name that the packed synapse needs")
    weight = weight.to(state[join(name, "weight")].device)  # another one would round the mean otherwise
    levels, scale = module.levels(weight)
    packed = pack(levels, module.bits)
    if not torch.equal(scale * unpack(packed, weight.shape, module.bits, scale.dtype), module.quantize(weight)):
        raise ValueError(f"synapse {name!r} has weights that are not finite, or that its levels do not give back")
    tensors |= {join(name, "packed"): packed.cpu(), join(name, "scale"): scale.cpu().contiguous()}
    return {"bits": module.bits, "shape": list(weight.shape)}


def _compare(net: nn.Module, packed: dict[str, Any], tensors: dict[str, Tensor], extra: dict[str, Any]) -> None:
    """Raise unless the file holds what the network takes."""
    modules = dict(_modules(net))
    synapses = {name: modules[name] for name in packed if name in modules}
    check_unique(synapses)
    state = baked_state(net, synapses)
    for name, entry in packed.items():
        synapse: Any = synapses.get(name)
        weight = synapse if isinstance(synapse, Packed) else state.pop(join(name, "weight"), torch.empty(0))
        if synapse is None or list(weight.shape) != entry["shape"]:
            raise ValueError(f"the network has no synapse {name!r} with a weight of shape {entry['shape']}")
        check_packable(synapse, entry["bits"])
        state |= {join(name, part): tensors[join(name, part)] for part in ("packed", "scale")}
    unmatched = state.keys() ^ (tensors.keys() | extra.keys())
    if unmatched:
        raise ValueError(f"tensors that only the file or only the network has: {', '.join(sorted(unmatched))}")
    for name, old in state.items():
        if name.rpartition(".")[2] != _EXTRA:  # which the module may take in any form
            check_alike(name, old, tensors.get(name))


def _fill(net: nn.Module, packed: dict[str, Any], tensors: dict[str, Tensor], extra: dict[str, Any]) -> None:
    """Check first what can be checked. Floats keep their type if the file has one; else they take the network's."""
    _compare(net, packed, tensors, extra)
    before = {name: value for name, value in net.state_dict().items() if isinstance(value, Tensor)}
    mixed = len({tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}) > 1
    modules: dict[str, Any] = dict(_modules(net))
    for name, entry in packed.items():
        pack_synapse(modules[name], entry["bits"])
        modules[name].scale = modules[name].scale.new_ones(tensors[join(name, "scale")].shape)
    state = {name: value for name, value in net.state_dict().items() if isinstance(value, Tensor)}
    filled = {}
    for name, tensor in tensors.items():
        old = state.get(name, before.get(name))
        dtype = old.dtype if mixed and old is not None and tensor.is_floating_point() else tensor.dtype
        filled[name] = tensor.to("cpu" if old is None else old.device, dtype)
    net.load_state_dict(filled | extra, assign=True)
