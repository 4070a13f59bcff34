"""The header of a packed file: read, and checked against the tensors."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sj_online.deploy import bytes as content
from sj_online.deploy.pack import packed_size

FORMAT = 1
_LONGEST = 400
_FIELDS = {"format": int, "model": str | None, "kwargs": dict, "metadata": dict, "packed": dict, "extra": dict}


def one_line(error: Exception) -> str:
    """What an error says, in one line that is not too long."""
    text = " ".join(str(error).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def join(module: str, name: str) -> str:
    """The name of a tensor in the ``state_dict``."""
    return f"{module}.{name}" if module else name


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors.

    Raises:
        ValueError: one line that names the file and what is wrong with it.
    """
    text, tensors = content.read(path)
    try:
        header = json.loads(text)
        if isinstance(header, dict):
            header.setdefault("extra", {})  # files of earlier versions have none
        checked(header, tensors)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged header: {one_line(error)}") from error
    return header, tensors


def checked(header: Any, tensors: dict[str, Tensor]) -> None:
    """Header against tensors; nothing is allocated by what the header says.

    Raises:
        ValueError: they do not belong together.
    """
    if not isinstance(header, dict) or set(header) != set(_FIELDS):
        raise ValueError(f"its fields must be {', '.join(_FIELDS)}")
    for field, kind in _FIELDS.items():
        if not isinstance(header[field], kind):
            raise ValueError(f"{field}={header[field]!r} has the wrong type")
    if header["format"] != FORMAT:
        raise ValueError(f"format={header['format']} is not {FORMAT}, the one that this version reads")
    both = sorted(header["extra"].keys() & tensors.keys())
    if both:
        raise ValueError(f"{both[0]!r} is a tensor and not one")
    content.check_values(tensors)
    for name, entry in header["packed"].items():
        match entry:
            case {"bits": 1 | 2, "shape": [_, _, *_] as shape} if (
                all(type(n) is int and n > 0 for n in shape)
                and set(entry) <= {"bits", "shape", "signed"}
                and type(entry["bits"]) is int
                and entry.get("signed", True) is True
            ):
                _check_synapse(name, entry, tensors)
            case _:
                raise ValueError(f"synapse {name!r} is described by {entry!r}")


def _check_synapse(name: str, entry: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    bits, shape = entry["bits"], entry["shape"]
    packed, scale = (tensors.get(join(name, part)) for part in ("packed", "scale"))
    size, per_channel = [packed_size(math.prod(shape), bits)], [shape[0]] + [1] * (len(shape) - 1)
    if packed is None or list(packed.shape) != size or packed.dtype != torch.uint8:
        raise ValueError(f"tensor {join(name, 'packed')!r} is not there with its type and the shape {size}")
    # One scale for all channels is what ternary synapses have, until a norm is folded into them.
    shapes = [per_channel] if bits == 1 else [[], per_channel]
    if scale is None or list(scale.shape) not in shapes or not scale.is_floating_point():
        raise ValueError(f"tensor {join(name, 'scale')!r} is not there with its type and the shape {shapes[0]}")
    if bits == 2 and bool((packed & packed >> 1 & 0x55).any()):
        raise ValueError(f"tensor {join(name, 'packed')!r} holds a code that is not ternary")
    if "signed" not in entry and bool((scale < 0).any()):
        raise ValueError(f"tensor {join(name, 'scale')!r} holds a negative scale")
