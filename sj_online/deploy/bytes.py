"""The bytes of a packed file: read whole into memory, checked before they become tensors, written as one."""

import hashlib
import json
import os
import stat
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sj_online.files import replacing

KEY = "sj_online"
CHECKSUM = "sj_online_sha256"
_LARGEST_HEADER = 1 << 21
"""Bytes; what JSON makes of them may take fifty times as many."""
_LENGTH = struct.Struct("<Q")


def read(path: Path) -> tuple[str, dict[str, Tensor]]:
    """The text under :data:`KEY` and the tensors, in memory of their own: the file may change or go afterwards.

    Raises:
        ValueError: no regular file, no safetensors file of ours, or not what was written, by its checksum.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a regular file")
        content = path.read_bytes()
        outer, data = _split(content)
        tensors = load(content)
    except (OSError, SafetensorError, ValueError, KeyError, RecursionError, OverflowError) as error:
        raise ValueError(f"{path}: not a readable packed file: {error}") from error
    texts = outer.pop("__metadata__", {})
    if KEY not in texts:
        raise ValueError(f"{path}: a safetensors file, but not one of sj_online")
    odd = sorted(texts.keys() - {KEY, CHECKSUM})
    if odd:
        raise ValueError(f"{path}: damaged header: metadata {odd[0]!r} is not known")
    if CHECKSUM in texts and texts[CHECKSUM] != _checksum(texts[KEY], outer, data):
        raise ValueError(f"{path}: damaged: its checksum is not that of its content")
    return texts[KEY], tensors


def write(path: Path, text: str, tensors: dict[str, Tensor]) -> None:
    """Write a file with its checksum; it appears when it is complete.

    A link stays one, to the file that is replaced, which keeps its mode.

    Raises:
        ValueError: ``path`` is there and is no safetensors file.
    """
    target = path.resolve()
    mode = _replaceable(path, target)
    outer, data = _split(save(tensors, {KEY: text}))
    outer.pop("__metadata__")
    # safetensors writes metadata in any order; the same network is to give the same bytes.
    texts = {KEY: text, CHECKSUM: _checksum(text, outer, data)}
    header = json.dumps({"__metadata__": texts, **outer}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _LENGTH.size)
    with replacing(target) as temporary, temporary.open("wb") as file:
        file.writelines((_LENGTH.pack(len(header)), header, data))
        if mode is not None:
            temporary.chmod(mode)


def _replaceable(path: Path, target: Path) -> int | None:
    """The mode of the file that is there; None: there is none."""
    try:
        status = os.stat(target)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is there and is not a regular file; it is not replaced")
    if status.st_size:
        with target.open("rb") as file:
            start = file.read(_LENGTH.size + 1)
        if len(start) <= _LENGTH.size or start[-1:] != b"{" or _LENGTH.unpack(start[:-1])[0] > status.st_size:
            raise ValueError(f"{path} is there and is not a safetensors file; it is not replaced")
    return stat.S_IMODE(status.st_mode)


def _split(content: bytes) -> tuple[dict[str, Any], memoryview]:
    """The file's own header, and its data."""
    if len(content) < _LENGTH.size:
        raise ValueError("it is too short")
    length = _LENGTH.unpack_from(content)[0]
    if length > min(len(content) - _LENGTH.size, _LARGEST_HEADER):
        raise ValueError(f"its header of {length} bytes is longer than the file or than {_LARGEST_HEADER}")
    outer = json.loads(content[_LENGTH.size : _LENGTH.size + length])
    if not isinstance(outer, dict) or not isinstance(outer.get("__metadata__", {}), dict):
        raise ValueError("its header is no table")
    return outer, memoryview(content)[_LENGTH.size + length :]


def _checksum(text: str, outer: dict[str, Any], data: memoryview) -> str:
    digest = hashlib.sha256(json.dumps([text, outer], sort_keys=True).encode())
    digest.update(data)
    return digest.hexdigest()


def check_values(tensors: dict[str, Tensor]) -> None:
    """Raise unless all numbers are finite, and variances not negative."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() or tensor.is_complex():
            if not bool(torch.isfinite(tensor.to(torch.float32) if tensor.itemsize == 1 else tensor).all()):
                raise ValueError(f"tensor {name!r} holds values that are not finite")
            if name.rpartition(".")[2] == "running_var" and bool((tensor < 0).any()):
                raise ValueError(f"tensor {name!r} holds a negative variance")
