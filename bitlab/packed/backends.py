"""What computes: the C kernel where there is a compiler, else torch's int8 products, and float ones off the CPU.

`BITLAB_KERNEL` forces one. Unset, the kernel is chosen for each call, by the processor, the bits and the tokens:

    tiles      AMX tiles, weights opened to bytes in the cache
    bytes      dot products of bytes: AVX-512 VNNI, NEON's, or what the compiler finds
    popcount   XOR or AND and popcount on bits
    lookup     sums of four codes, looked up by four bits of weights; codes of 8 bits by bytes
    int8       torch._int_mm, layer by layer
    float      float products, layer by layer: the reference

All give equal results, bit by bit: sums of small integers are exact in each, and the float operations around them are
those of the float model.
"""

import contextlib
import ctypes
import functools
import mmap
import os
import threading
import warnings
from contextvars import ContextVar

import torch
from torch import Tensor

from bitlab.errors import BitlabError
from bitlab.packed import kernel

VARIABLE = "BITLAB_KERNEL"
COMPILED = ("tiles", "bytes", "popcount", "lookup")  # numbered as in kernel.c
NAMES = ("c", *COMPILED, "int8", "float")
FEW_TOKENS = 16  # up to so many (of b bits, a b-th of them), opening weights for tiles costs more than it saves
NO_NUMBER = 1
LARGE_PAGE = 1 << 21  # bytes, on most processors
_memory = threading.local()


class Kernel:
    """The compiled kernel. `name` is one of COMPILED, or "" to choose for each call."""

    def __init__(self, library: ctypes.CDLL, name: str = ""):
        self.library, self.name = library, name
        self.found = [name for i, name in enumerate(COMPILED) if library.bitlab_has_kernel(i)]
        self.planes = library.bitlab_planes()  # the most bits that popcount is best at

    def number(self, bits: int, tokens: int) -> int:
        """Which kernel multiplies codes of so many bits, for so many tokens."""
        if self.name:
            return COMPILED.index("bytes" if self.name == "lookup" and bits > 4 else self.name)
        if "tiles" in self.found and tokens * bits > FEW_TOKENS:
            return COMPILED.index("tiles")
        if bits <= self.planes:
            return COMPILED.index("popcount")
        return COMPILED.index("lookup" if "lookup" in self.found and bits <= 4 else "bytes")

    def sizes(self, bits: int, tokens: int, **others) -> kernel.Sizes:
        """What every entry point is told; `others` as in the C structure."""
        here = {"kernel": self.number(bits, tokens), "threads": torch.get_num_threads()}
        here |= {"lanes": softmax_lanes(), "rounds_once": rounds_once()}
        return kernel.Sizes(**{"batch": 1, "heads": 1, "bits": bits} | here | others)

    def encoder(self, layers, count: int, sizes: kernel.Sizes, x: Tensor, mask: Tensor | None) -> bool:
        """All layers over x, in place; see `check` for the result."""
        arguments = layers, count, ctypes.byref(sizes), x.data_ptr(), None if mask is None else mask.data_ptr()
        return self.check(self.library.bitlab_encoder(*arguments, *self.room(sizes, encoder=True)))

    def linear(self, linear, sizes: kernel.Sizes, signed: bool, x: Tensor, y: Tensor) -> bool:
        """One linear layer from x to y; see `check` for the result."""
        arguments = linear, ctypes.byref(sizes), signed, x.data_ptr(), y.data_ptr()
        return self.check(self.library.bitlab_linear(*arguments, *self.room(sizes, encoder=False)))

    def room(self, sizes: kernel.Sizes, encoder: bool) -> tuple[int, int]:
        """(address, bytes) of this thread's memory for a call. It grows to the greatest call and is kept."""
        needed = self.library.bitlab_room(ctypes.byref(sizes), encoder)
        found = getattr(_memory, "room", None)
        if found is None or found.numel() < needed:
            _memory.room = found = large_pages(max(needed, 0))
        return found.data_ptr(), found.numel()

    def check(self, code: int) -> bool:
        """Whether there is a result; False if some number was none, which codes can't say."""
        if code not in (0, NO_NUMBER):
            raise BitlabError("the packed kernel was given sizes that make no sense")
        return code == 0


def large_pages(size: int) -> Tensor:
    """`size` bytes (uint8) that begin a large page, where there are such: their addresses are looked up faster."""
    block = mmap.mmap(-1, size + LARGE_PAGE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a system without them
            block.madvise(mmap.MADV_HUGEPAGE)
    found = torch.frombuffer(block, dtype=torch.uint8)
    return found[-found.data_ptr() % LARGE_PAGE :][:size]


def affine(bias: Tensor | None, dot: Tensor, scale: Tensor) -> Tensor:
    """`bias + scale * dot`, by the very operation of the float model (`BinaryLinear.forward`)."""
    return dot * scale if bias is None else torch.addcmul(bias, dot, scale)


@functools.cache
def rounds_once() -> bool:
    """Whether torch.addcmul is a fused multiply-add here. The C epilogue does as it does, so that both agree."""
    generator = torch.Generator().manual_seed(0)
    bias, dot = torch.randn(64, generator=generator), torch.randint(-768, 768, (64,), generator=generator).float()
    scale = torch.tensor(0.0123)
    return bool((affine(bias, dot, scale) != bias + dot * scale).any())


@functools.cache
def softmax_lanes() -> int:
    """In how many lanes torch's softmax adds up."""
    if os.uname().machine in ("aarch64", "arm64"):
        return 4
    return 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8


_forced: ContextVar[str | None] = ContextVar("backend", default=None)


@contextlib.contextmanager
def use(name: str):
    """Run what is inside on this backend, in this thread, whatever BITLAB_KERNEL says."""
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def compiled_for(x: Tensor) -> Kernel | None:
    """The kernel for this tensor; None where torch has to compute."""
    if x.device.type != "cpu" or type(x) not in (Tensor, torch.nn.Parameter):
        return None
    wanted = _wanted()
    return None if wanted in ("int8", "float") else _choose(wanted)[0]


def product_type(x: Tensor) -> torch.dtype:
    """The type that torch multiplies codes in."""
    return torch.float32 if x.device.type != "cpu" or _wanted() == "float" else torch.int8


def available() -> list[str]:
    """The backends that can be forced here."""
    found = _compiled()[0]
    return [*(found.found if found else ()), "int8", "float"]


def backend_status() -> tuple[str, str]:
    """(name of the backend in use, why), for `bitlab doctor`."""
    wanted = _wanted()
    if wanted in ("int8", "float"):
        return wanted, f"{VARIABLE}={wanted}"
    found, why = _choose(wanted, warn=False)
    if found is None:
        return "int8", why
    if found.name:
        return found.name, f"{VARIABLE}={wanted}"
    if "tiles" in found.found:
        return "tiles", f"AMX, and others up to {FEW_TOKENS} tokens; {why}"
    few, many = (COMPILED[found.number(bits, FEW_TOKENS)] for bits in (1, 4))
    if few == many:
        return few, f"at 4 bits or fewer, else bytes; {why}"
    return few, f"at {found.planes} bits or fewer, else {many}; {why}"


def _wanted() -> str:
    value = _forced.get() or os.environ.get(VARIABLE, "").strip().lower()
    if value not in ("", *NAMES):
        raise BitlabError(f"{VARIABLE} is {value!r}: set it to {', '.join(NAMES[:-1])} or float, or leave it unset")
    return value


def _choose(wanted: str, warn: bool = True) -> tuple[Kernel | None, str]:
    found, why = _compiled()
    if found is None and wanted:
        raise BitlabError(f"{VARIABLE}={wanted}, but {why}")
    if found is None and warn:
        _warn_once(why)
    if found is None or wanted in ("", "c"):
        return found, why
    return _named(wanted), why


@functools.cache
def _named(name: str) -> Kernel:
    found = _compiled()[0]
    if name not in found.found:
        raise BitlabError(f"{VARIABLE}={name}, but this processor or system has no {name}: leave it unset")
    return Kernel(found.library, name)


@functools.cache
def _compiled() -> tuple[Kernel | None, str]:
    try:
        return Kernel(kernel.load()), f"built with {os.path.basename(kernel.compiler())}"
    except BitlabError as error:
        return None, str(error)


@functools.cache
def _warn_once(why: str) -> None:
    warnings.warn(f"bitlab: packed models run on int8 matrix products, for {why}", RuntimeWarning, stacklevel=2)
