"""Layers with packed weights: what `BinaryLinear` and `BinaryEmbedding` become, with the same results."""

import ctypes

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitlab.binarizers import codes_forward, weight_forward
from bitlab.errors import BitlabError
from bitlab.layers import BinaryEmbedding, BinaryLinear
from bitlab.packed import backends
from bitlab.packed.bits import pack_bits, unpack_signs
from bitlab.products import int8_product_takes
from bitlab.upstream import int8_product

# Where a tensor that the kernel reads is found (a module's dictionary, its name there), its type and how many numbers.
Source = tuple[dict, str, torch.dtype, int]


class PackedLinear(nn.Module):
    """A linear layer whose weights are bits: `y = (a m) (codes(x) codes(W)^T) + bias`, as `BinaryLinear` computes it.

    Attributes: `weight` uint8 (out_features, ceil(in_features / 8)), bit i of byte j is input 8 j + i, 1 means +1;
    `weight_scale` m; `bias`; `input_binarizer`.
    Shape: (..., in_features) -> (..., out_features).
    """

    def __init__(self, linear: BinaryLinear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.input_binarizer = linear.input_binarizer
        self.register_parameter("bias", linear.bias)
        signs, scale = weight_forward(linear.weight.detach())
        self.register_buffer("weight", pack_bits(signs > 0))
        self.register_buffer("weight_scale", scale.clone())
        self.opened = Opened()

    def scale(self) -> Tensor:
        """a m, one number."""
        return self.input_binarizer.scale() * self.weight_scale

    def sources(self) -> list[Source]:
        """What the kernel's `Linear` points to."""
        binarizer, floats = self.input_binarizer, torch.float32
        return [
            (self._buffers, "weight", torch.uint8, self.out_features * -(-self.in_features // 8)),
            (self._buffers, "weight_scale", floats, 1),
            (self._parameters, "bias", floats, self.out_features),
            (binarizer._parameters, "alpha", floats, 1),
            (binarizer._parameters, "beta", floats, self.in_features),
        ]

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        check_input(x)
        rows = x.reshape(-1, self.in_features)
        y = self._by_kernel(rows)
        return (self._by_torch(rows) if y is None else y).view(*x.shape[:-1], self.out_features)

    @torch.compiler.disable
    def _by_kernel(self, x: Tensor) -> Tensor | None:
        kernel = backends.compiled_for(x)
        found = point(self.sources()) if kernel else None
        if found is None:
            return None
        pointers, _held = found
        x, y = x.contiguous(), torch.empty(x.shape[0], self.out_features)
        sizes = kernel.sizes(
            self.input_binarizer.bits, len(x), length=len(x), width=self.in_features, inner=self.out_features
        )
        signed = self.input_binarizer.signed
        return y if kernel.linear(pointers, sizes, signed, x, y) else None

    def _by_torch(self, x: Tensor) -> Tensor:
        binarizer = self.input_binarizer
        codes = codes_forward(x, binarizer.alpha, binarizer.beta, binarizer.bits, binarizer.signed)
        weight = self.opened.get(self.weight, self.in_features, backends.product_type(x))
        fits = binarizer.bits < 8 or binarizer.signed
        if weight.dtype is torch.int8 and fits and int8_product_takes(codes, weight) and not codes.isnan().any():
            dot = int8_product(codes.to(torch.int8), weight).float()
        else:
            dot = codes @ weight.float()
        return backends.affine(self.bias, dot, self.scale())

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class Opened:
    """A layer's bits as a matrix for torch, and the bits that it was made of: those are compared at every use, so
    that no change of them goes unnoticed. Copies and pickles of a layer start without."""

    def __init__(self):
        self._made: tuple[Tensor, Tensor] | None = None

    def get(self, bits: Tensor, width: int, dtype: torch.dtype) -> Tensor:
        """(outputs, ceil(width / 8)) uint8 -> (width, outputs) of -1 and +1."""
        if dtype is not torch.int8:
            return unpack_signs(bits, width, dtype).t()
        made = self._made
        if made is None or not torch.equal(made[0], bits):
            self._made = made = bits.clone(), unpack_signs(bits, width, dtype).t()
        return made[1]

    def __deepcopy__(self, memo):
        return Opened()

    def __reduce__(self):
        return Opened, ()


class PackedEmbedding(nn.Module):
    """A word embedding whose rows are bits times one scale a row, as `BinaryEmbedding` computes it.

    Attributes: `weight` uint8 (num_embeddings, ceil(embedding_dim / 8)), `weight_scale` (num_embeddings,).
    Shape: (...) of integers -> (..., embedding_dim). Ids that the table has not raise IndexError, as in torch.
    """

    def __init__(self, embedding: BinaryEmbedding):
        super().__init__()
        self.num_embeddings, self.embedding_dim = embedding.weight.shape
        self.padding_idx = embedding.padding_idx
        signs, scale = weight_forward(embedding.weight.detach(), None, True)
        self.register_buffer("weight", pack_bits(signs > 0))
        self.register_buffer("weight_scale", scale[:, 0].clone())

    def forward(self, ids: Tensor) -> Tensor:
        check_input(self.weight_scale)
        rows = self._by_kernel(ids)
        if rows is None:
            signs = unpack_signs(F.embedding(ids, self.weight).flatten(0, -2), self.embedding_dim)
            rows = F.embedding(ids.reshape(-1), self.weight_scale[:, None]) * signs
        return rows.view(*ids.shape, self.embedding_dim)

    @torch.compiler.disable
    def _by_kernel(self, ids: Tensor) -> Tensor | None:
        kernel = backends.compiled_for(ids) if ids.dtype is torch.int64 else None
        sources = [
            (self._buffers, "weight", torch.uint8, self.num_embeddings * -(-self.embedding_dim // 8)),
            (self._buffers, "weight_scale", torch.float32, self.num_embeddings),
        ]
        found = point(sources) if kernel else None
        if found is None:
            return None
        pointers, _held = found
        ids, rows = ids.contiguous(), torch.empty(ids.numel(), self.embedding_dim)
        sizes = (self.num_embeddings, self.embedding_dim, rows.data_ptr())
        code = kernel.library.bitlab_rows(ids.data_ptr(), ids.numel(), *pointers, *sizes)
        return rows if code == 0 else None  # torch says what is wrong with the ids

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


def point(sources: list[Source]) -> tuple[ctypes.Array, list[Tensor | None]] | None:
    """Addresses of tensors for the kernel, 0 for None, and the tensors, to be held during a call, whatever another
    thread does to the model meanwhile. None if the kernel can't read one of them as it lies now."""
    tensors = [places[name] for places, name, _, _ in sources]
    for tensor, (_, _, dtype, count) in zip(tensors, sources):
        if tensor is not None and not (
            tensor.numel() == count and tensor.dtype is dtype and tensor.is_cpu and tensor.is_contiguous()
        ):
            return None
    return (ctypes.c_void_p * len(tensors))(*[None if t is None else t.data_ptr() for t in tensors]), tensors


def check_input(x: Tensor) -> None:
    """A packed layer computes in float32, as the scales of its file are; and only where it is run, not exported or
    traced: its kernel is no part of a graph, which would hold the answers to its example for ever."""
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        raise BitlabError("a packed model can't be exported: export the latent model that it was made of")
    if x.dtype != torch.float32:
        raise BitlabError(f"a packed model computes in float32, not in {x.dtype}: load it again")
