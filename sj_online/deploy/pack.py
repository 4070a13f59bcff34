"""Levels of quantised weights to bytes and back: 1 bit for {-1, +1}, 2 bits for {-1, 0, +1}."""

import torch
from torch import Tensor


def packed_size(numel: int, bits: int) -> int:
    """Bytes of ``numel`` packed levels; the last byte of a tensor is padded.

    Example:
        >>> packed_size(9, bits=1), packed_size(9, bits=2)
        (2, 3)
    """
    return -(-numel * bits // 8)


def pack(levels: Tensor, bits: int) -> Tensor:
    """Pack levels in row-major order, the first one in the lowest bits.

    Args:
        levels: {-1, +1} for ``bits=1``, {-1, 0, +1} for ``bits=2``, of any shape.
        bits: bits per level.

    Returns:
        uint8, ``[packed_size(levels.numel(), bits)]``.

    Example:
        >>> pack(torch.tensor([-1.0, 1.0, 1.0]), bits=1).tolist()
        [6]
    """
    codes = (levels.flatten() > 0 if bits == 1 else levels.flatten() + 1).to(torch.uint8)
    per_byte = 8 // bits
    codes = torch.nn.functional.pad(codes, (0, -codes.numel() % per_byte)).view(-1, per_byte)
    return (codes << _shifts(bits, codes.device)).sum(dim=1, dtype=torch.uint8)


def unpack(packed: Tensor, shape: torch.Size, bits: int, dtype: torch.dtype) -> Tensor:
    """The levels that :func:`pack` was given.

    Example:
        >>> unpack(torch.tensor([6], dtype=torch.uint8), torch.Size([3]), 1, torch.float32).tolist()
        [-1.0, 1.0, 1.0]
    """
    codes = ((packed[:, None] >> _shifts(bits, packed.device)) & (2**bits - 1)).flatten()[: shape.numel()]
    levels = codes.to(dtype)
    return (2 * levels - 1 if bits == 1 else levels - 1).view(shape)


def _shifts(bits: int, device: torch.device) -> Tensor:
    return torch.arange(0, 8, bits, dtype=torch.uint8, device=device)
