"""Bits in bytes and in words: the layouts of the file and of the backends, as plain tensor functions."""

import torch
from torch import Tensor

WORD = 32


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


def pad_heads(values: Tensor, heads: tuple[int, int], dim: int, fill=0) -> Tensor:
    """Widen each head along `dim` to whole words of 32: (..., heads * width, ...) -> (..., heads * words * 32, ...)."""
    count, width = heads
    extra = -width % WORD
    if not extra:
        return values
    split = values.unflatten(dim, (count, width))
    shape = list(split.shape)
    shape[dim + 1] = extra
    return torch.cat([split, split.new_full(shape, fill)], dim + 1).flatten(dim, dim + 1)
