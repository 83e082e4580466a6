"""Packed inference: a checkpoint that is really 1 bit on disk, and a forward that really runs on XNOR and popcount."""

from bitlab.packed.backends import backend_status
from bitlab.packed.checkpoint import is_fused, load_packed, pack, save_packed

__all__ = ["backend_status", "is_fused", "load_packed", "pack", "save_packed"]
