"""How many bytes the parts of a network take, in float32 and packed."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from sj_online.deploy.pack import packed_size
from sj_online.deploy.runtime import Packed
from sj_online.layer.quantized import Quantized

_FLOAT = 4


@dataclass(frozen=True)
class Row:
    """A layer: its name and class, the bits of its weights, and its bytes in float32 and in the packed file."""

    name: str
    kind: str
    bits: int
    float_bytes: int
    packed_bytes: int


@dataclass
class Sizes:
    """What :func:`size_report` gives; printed, it is a table."""

    rows: list[Row] = field(default_factory=list)

    @property
    def float_bytes(self) -> int:
        """Of all tensors, with 4 bytes for a number."""
        return sum(row.float_bytes for row in self.rows)

    @property
    def packed_bytes(self) -> int:
        """Of all tensors as the packed file holds them; its header is not counted."""
        return sum(row.packed_bytes for row in self.rows)

    @property
    def ratio(self) -> float:
        """How many times smaller."""
        return self.float_bytes / self.packed_bytes

    def __str__(self) -> str:
        rows = [("layer", "kind", "bits", "float32", "packed", "ratio")]
        for r in self.rows:
            ratio = f"{r.float_bytes / r.packed_bytes:.1f}"
            rows.append((r.name, r.kind, str(r.bits), f"{r.float_bytes:,}", f"{r.packed_bytes:,}", ratio))
        rows.append(("all", "", "", f"{self.float_bytes:,}", f"{self.packed_bytes:,}", f"{self.ratio:.1f}"))
        widths = [max(len(row[i]) for row in rows) for i in range(6)]
        return "\n".join("  ".join(_aligned(row, widths)).rstrip() for row in rows)


def _aligned(row: tuple[str, ...], widths: list[int]) -> list[str]:
    return [
        cell.ljust(width) if i < 2 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def size_report(net: nn.Module) -> Sizes:
    """Bytes of each layer that has tensors of its own: parameters and what else its ``state_dict`` holds.

    Args:
        net: a network with latent weights, or a loaded one; it may live on the meta device.

    Example:
        >>> from sj_online.layer import BinaryLinear
        >>> print(size_report(nn.Sequential(BinaryLinear(64, 8), nn.Linear(8, 2))))
        layer  kind          bits  float32  packed  ratio
        0      BinaryLinear     1    2,048      96   21.3
        1      Linear          32       72      72    1.0
        all                          2,120     168   12.6
    """
    sizes = Sizes()
    for name, module in net.named_modules():
        row = _row(name, module)
        if row.float_bytes:
            sizes.rows.append(row)
    return sizes


def _row(name: str, module: Any) -> Row:
    kind = type(module).__name__
    tensors = dict(module._parameters) | {
        key: tensor for key, tensor in module._buffers.items() if key not in module._non_persistent_buffers_set
    }
    held = {key: tensor for key, tensor in tensors.items() if tensor is not None}
    quantised = isinstance(module, Packed | Quantized)
    weight = held.pop("weight", None) if isinstance(module, Quantized) else None
    shape = module.shape if isinstance(module, Packed) else None if weight is None else weight.shape
    for key in ("packed", "scale") if isinstance(module, Packed) else ():
        del held[key]
    rest = sum(tensor.nbytes for tensor in held.values())
    if not quantised or shape is None:
        return Row(name, kind, 8 * _FLOAT, rest, rest)
    scales = module.scale.numel() if isinstance(module, Packed) else shape[0] if module.bits == 1 else 1
    packed = packed_size(shape.numel(), module.bits) + _FLOAT * scales
    return Row(name, kind, module.bits, _FLOAT * shape.numel() + rest, packed + rest)
