"""Bits in bytes: the layout of the file, as plain tensor functions."""

import torch
from torch import Tensor


def pack_bits(bits: Tensor) -> Tensor:
    """(rows, n) of truth values -> (rows, ceil(n / 8)) uint8, bit i of byte j is element 8 j + i; the rest is 0."""
    rows, n = bits.shape
    padded = torch.zeros(rows, -(-n // 8) * 8, dtype=torch.uint8, device=bits.device)
    padded[:, :n] = bits
    places = 2 ** torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (padded.view(rows, -(-n // 8), 8) * places).sum(-1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, n: int) -> Tensor:
    """The inverse of `pack_bits`: (rows, ceil(n / 8)) uint8 -> (rows, n) bool."""
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[:, :, None] >> places) & 1).flatten(1)[:, :n].bool()


def unpack_signs(packed: Tensor, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """As `unpack_bits`, with -1 and +1 of the given type."""
    return unpack_bits(packed, n).to(dtype) * 2 - 1
