"""Three ways to compute the same integers: C on bits, int8 matrix products, float matrix products.

A backend turns a `Linear` and an `Attention` into what it computes with, once, and then runs them. What it calls codes
is its own affair (words of bits for C, tensors of -1, 0 and 1 for the others); all three return equal results, bit by
bit, because sums of small integers are exact in each, and the float operations around them are the same.

`BITLAB_KERNEL` chooses: c, int8 or float; unset, it is c where a C compiler works, else int8.
"""

import contextlib
import functools
import os
import warnings
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from bitlab.binarizers import int8_product_takes
from bitlab.errors import BitlabError
from bitlab.packed import kernel
from bitlab.packed.bits import WORD, pack_bits, pad_heads, unpack_bits, unpack_signs

VARIABLE = "BITLAB_KERNEL"
NEVER = 2**31 - 1  # a threshold that no dot product reaches
UNIT = 2**40  # of the exponentials' table: sums of integers do not depend on their order


@dataclass(frozen=True)
class Linear:
    """A linear layer with 1-bit weights, and what becomes of its dot products.

    weight: uint8 (outputs, ceil(width / 8)), see `bits.pack_bits`. width: inputs. signed: inputs are -1 and +1, else 0
    and 1. thresholds: int32 (outputs,): the result is codes, +1 (or 1) where dot >= threshold. Otherwise it is floats,
    `bias + scale * dot`. heads_out, heads_in: (heads, head width) where outputs or inputs are heads of an attention.
    """

    weight: Tensor
    width: int
    signed: bool = True
    scale: float = 1.0
    bias: Tensor | None = None
    thresholds: Tensor | None = None
    signed_out: bool = True
    heads_out: tuple[int, int] | None = None
    heads_in: tuple[int, int] | None = None


@dataclass(frozen=True)
class Attention:
    """Binary attention. table: int64, exp(-2 i c) in units of 2^-40 for a key that differs from the query in i bits
    more than the nearest does, see `thresholds.exponentials`; half_alpha: half the scale of the probabilities;
    thresholds: int32 (heads * head_width,), on the integers of the context."""

    heads: int
    head_width: int
    table: Tensor
    half_alpha: float
    thresholds: Tensor


class TorchBackend:
    """Codes are tensors of -1, 0 and 1; products are matrix products of `dtype`."""

    def __init__(self, name: str, dtype: torch.dtype):
        self.name, self.dtype = name, dtype

    def prepare(self, linear: Linear) -> tuple[Linear, Tensor]:
        return linear, unpack_signs(linear.weight, linear.width, self.dtype).t()

    def prepare_attention(self, attention: Attention) -> Attention:
        return attention

    def signs(self, x: Tensor, betas: Tensor) -> tuple[Tensor, ...]:
        """(tokens, width) floats against (sets, width) thresholds -> one tensor of codes a set."""
        return tuple(((x >= beta) * 2 - 1).to(self.dtype) for beta in betas)

    def integers(self, codes: Tensor, bits: int, signed: bool) -> Tensor:
        """Integer codes in a float tensor, of any width, as this backend's codes."""
        return codes if self.dtype is torch.int8 and bits == 8 and not signed else codes.to(self.dtype)

    def dot(self, prepared: tuple[Linear, Tensor], codes: Tensor) -> Tensor:
        """The integer products as floats, (tokens, outputs)."""
        weight = prepared[1]
        if codes.dtype is not torch.int8 or not int8_product_takes(codes, weight):
            return codes.float() @ weight.float()
        return torch._int_mm(codes, weight).float()

    def linear(self, prepared: tuple[Linear, Tensor], codes: Tensor, residual: Tensor | None = None) -> Tensor:
        """Codes if the layer has thresholds, else floats (tokens, outputs), `residual` added."""
        linear, dot = prepared[0], self.dot(prepared, codes)
        if linear.thresholds is not None:
            passed = dot >= linear.thresholds
            return (passed * 2 - 1 if linear.signed_out else passed).to(self.dtype)
        y = affine(linear.bias, dot, linear.scale)
        return y if residual is None else y + residual

    def attention(self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
        """Codes of q, k, v (batch * length, width), keep (batch, length) uint8 -> codes of the context."""
        shape = (*keep.shape, attention.heads, attention.head_width)
        q, k, v = (codes.float().view(shape).transpose(1, 2) for codes in (q, k, v))
        far = ((attention.head_width - q @ k.transpose(2, 3)) / 2).long()
        far.masked_fill_((keep == 0)[:, None, None, :], 2 * attention.head_width + 2)
        far.masked_fill_((keep == 0).all(-1)[:, None, None, None], 0)  # softmax over equal scores
        steps = (far - far.amin(-1, keepdim=True)).clamp_(max=attention.head_width + 1)
        weight = attention.table[steps]
        chosen = weight.double() > attention.half_alpha * weight.sum(-1, keepdim=True).double()
        context = (chosen.float() @ v).transpose(1, 2).flatten(2).flatten(0, 1)
        return ((context >= attention.thresholds) * 2 - 1).to(self.dtype)


class CBackend:
    """Codes are int32 tensors of 32 bits a number, heads padded to whole words; see kernel.c."""

    name = "c"

    def __init__(self, library):
        self.library = library

    def prepare(self, linear: Linear) -> "CLinear":
        return CLinear(self.library, linear)

    def prepare_attention(self, attention: Attention) -> Attention:
        heads = (attention.heads, attention.head_width)
        thresholds = pad_heads(attention.thresholds, heads, 0, NEVER).contiguous()
        return Attention(*heads, attention.table.contiguous(), attention.half_alpha, thresholds)

    def signs(self, x: Tensor, betas: Tensor) -> tuple[Tensor, ...]:
        x, betas = x.contiguous(), betas.contiguous()
        tokens, width = x.shape
        words = -(-width // WORD)
        out = torch.empty(betas.shape[0], tokens, words, dtype=torch.int32)
        arguments = (tokens, width, words, betas.shape[0], out.data_ptr(), torch.get_num_threads())
        self.library.bitlab_signs(x.data_ptr(), betas.data_ptr(), *arguments)
        return out.unbind()

    def integers(self, codes: Tensor, bits: int, signed: bool) -> Tensor | list[tuple[int, Tensor]]:
        """Words of bits; for several bits their planes in two's complement: (weight of the plane, its words)."""
        half = torch.full((1, codes.shape[-1]), 0.5)
        if bits == 1:
            return self.signs(codes, half)[0]
        whole = codes.to(torch.int32)
        planes = [(1 << i, self.signs(((whole >> i) & 1).float(), half)[0]) for i in range(bits)]
        if signed:
            planes[-1] = (-planes[-1][0], planes[-1][1])
        return planes

    def dot(self, prepared: "CLinear", codes: Tensor | list) -> Tensor:
        if isinstance(codes, Tensor):
            return prepared.run(codes, dots=True)
        return sum(weight * prepared.run(plane, dots=True, signed=False) for weight, plane in codes)

    def linear(self, prepared: "CLinear", codes: Tensor, residual: Tensor | None = None) -> Tensor:
        return prepared.run(codes, residual)

    def attention(self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
        words = -(-attention.head_width // WORD)
        out = torch.empty_like(q)
        pointers = (codes.data_ptr() for codes in (q, k, v, keep))
        sizes = (*keep.shape, attention.heads, words, attention.head_width)
        rest = (attention.table.data_ptr(), attention.half_alpha, attention.thresholds.data_ptr(), out.data_ptr())
        check(self.library.bitlab_attention(*pointers, *sizes, *rest, torch.get_num_threads()))
        return out


class CLinear:
    """A linear layer as the kernel wants it: weights in blocks of 32 outputs, everything padded."""

    def __init__(self, library, linear: Linear):
        weight, self.width, self.outputs = linear.weight, linear.width, linear.weight.shape[0]
        thresholds, columns = linear.thresholds, linear.width
        if linear.heads_in and linear.heads_in[1] % WORD:
            bits = pad_heads(unpack_bits(weight, columns), linear.heads_in, 1)
            weight, columns = pack_bits(bits), bits.shape[1]
        if linear.heads_out:
            weight = pad_heads(weight, linear.heads_out, 0).contiguous()
            thresholds = pad_heads(thresholds, linear.heads_out, 0, NEVER)
            self.outputs = weight.shape[0]
        self.library, self.signed, self.scale = library, linear.signed, linear.scale
        self.words, self.blocks = -(-columns // WORD), -(-self.outputs // WORD)
        self.weight = torch.empty(self.blocks, self.words, WORD, dtype=torch.int32)
        arguments = (weight.data_ptr(), *weight.shape, self.words, self.weight.data_ptr())
        library.bitlab_repack(*arguments)
        self.bias = torch.zeros(self.outputs) if linear.bias is None else linear.bias.detach().contiguous()
        self.thresholds = None
        if thresholds is not None:
            self.thresholds = torch.full((self.blocks * WORD,), NEVER, dtype=torch.int32)
            self.thresholds[: self.outputs] = thresholds

    def run(self, bits: Tensor, residual: Tensor | None = None, dots: bool = False, signed: bool | None = None):
        tokens, thresholds, out, y = bits.shape[0], None, None, None
        signed = self.signed if signed is None else signed
        if self.thresholds is not None and not dots:
            result = torch.empty(tokens, self.blocks, dtype=torch.int32)
            thresholds, out = self.thresholds.data_ptr(), result.data_ptr()
        else:
            result = torch.empty(tokens, self.outputs)
            y = result.data_ptr()
        bias = None if dots else self.bias.data_ptr()
        residual = None if residual is None else residual.contiguous()  # a name keeps it alive during the call
        extra = None if residual is None else residual.data_ptr()
        arguments = (tokens, self.words, self.width, self.outputs, not signed, thresholds, out, self.scale)
        rest = (bias, extra, y, rounds_once(), torch.get_num_threads())
        check(self.library.bitlab_linear(bits.data_ptr(), self.weight.data_ptr(), *arguments, *rest))
        return result


def check(code: int) -> None:
    if code:
        raise MemoryError("the packed kernel ran out of memory")


def affine(bias: Tensor | None, dot: Tensor, scale: float | Tensor) -> Tensor:
    """`bias + scale * dot`, by the very operation of the float model (`BinaryLinear.forward`)."""
    scale = torch.as_tensor(scale, dtype=torch.float32, device=dot.device)
    return dot * scale if bias is None else torch.addcmul(bias, dot, scale)


@functools.cache
def rounds_once() -> bool:
    """Whether torch.addcmul is a fused multiply-add here. The C epilogue does as it does, so that both agree."""
    generator = torch.Generator().manual_seed(0)
    bias, dot = torch.randn(64, generator=generator), torch.randint(-768, 768, (64,), generator=generator).float()
    return bool((affine(bias, dot, 0.0123) != bias + dot * torch.tensor(0.0123)).any())


FLOAT = TorchBackend("float", torch.float32)
INT8 = TorchBackend("int8", torch.int8)


_forced: ContextVar = ContextVar("backend", default=None)


@contextlib.contextmanager
def use(backend):
    """Run what is inside on this backend, in this thread, whatever BITLAB_KERNEL says."""
    token = _forced.set(backend)
    try:
        yield
    finally:
        _forced.reset(token)


def backend(device: torch.device | str = "cpu"):
    """The backend for tensors on `device`: what BITLAB_KERNEL says, else the fastest that works; float off the CPU."""
    if forced := _forced.get():
        return forced
    return FLOAT if torch.device(device).type != "cpu" else _choose(_wanted())[0]


def backend_status() -> tuple[str, str]:
    """(name of the backend in use, why), for `bitlab doctor`."""
    chosen, why = _choose(_wanted(), warn=False)
    return chosen.name, why


def _wanted() -> str:
    value = os.environ.get(VARIABLE, "").strip().lower()
    if value not in ("", "c", "int8", "float"):
        raise BitlabError(f"{VARIABLE} is {value!r}: set it to c, int8 or float, or leave it unset")
    return value


def _choose(wanted: str, warn: bool = True):
    if wanted in ("int8", "float"):
        return {"int8": INT8, "float": FLOAT}[wanted], f"{VARIABLE}={wanted}"
    backend, why = _compiled()
    if backend:
        return backend, f"{VARIABLE}=c" if wanted else why
    if wanted:
        raise BitlabError(f"{VARIABLE}=c, but {why}")
    if warn:
        _warn_once(why)
    return INT8, why


@functools.cache
def _compiled() -> tuple[CBackend | None, str]:
    try:
        return CBackend(kernel.load()), f"built with {os.path.basename(kernel.compiler())}"
    except BitlabError as error:
        return None, str(error)


@functools.cache
def _warn_once(why: str) -> None:
    warnings.warn(f"bitlab: packed models run on int8 matrix products, for {why}", RuntimeWarning, stacklevel=2)
