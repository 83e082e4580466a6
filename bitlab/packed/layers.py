"""Layers with packed weights: what `BinaryLinear` and `BinaryEmbedding` become, with the same results."""

import torch
from torch import Tensor, nn

from bitlab.binarizers import codes_forward, sign, weight_codes, weight_scale
from bitlab.errors import BitlabError
from bitlab.layers import BinaryEmbedding, BinaryLinear
from bitlab.packed import backends
from bitlab.packed.bits import pack_bits, unpack_signs


class Prepared:
    """What a backend made of a module's weights on a device: computed once for each, and left out of copies."""

    def __init__(self):
        self._made = {}

    def get(self, backend, device: torch.device, make):
        key = backend.name, device
        found = self._made.get(key)
        if found is None:  # two threads may both make it: the same thing twice
            found = self._made[key] = make()
        return found

    def clear(self) -> None:
        """Forget what was made: the weights are others now."""
        self._made = {}

    def __deepcopy__(self, memo):
        return Prepared()

    def __reduce__(self):
        return Prepared, ()


class Prepares:
    """In front of a module's class: what was prepared of its weights goes when a state dict is loaded."""

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self.prepared.clear()


class PackedLinear(Prepares, nn.Module):
    """A linear layer whose weights are bits: `y = (a m) (codes(x) codes(W)^T) + bias`, as `BinaryLinear` computes it.

    Attributes: `weight` uint8 (out_features, ceil(in_features / 8)), bit i of byte j is input 8 j + i, 1 means +1;
    `weight_scale` m; `bias`; `input_binarizer`.
    Shape: (..., in_features) -> (..., out_features).
    """

    def __init__(self, linear: BinaryLinear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.input_binarizer = linear.input_binarizer
        self.bias = linear.bias
        like = linear.weight.device
        size = (self.out_features, -(-self.in_features // 8))
        self.register_buffer("weight", torch.empty(size, dtype=torch.uint8, device=like))
        self.register_buffer("weight_scale", torch.empty((), device=like))
        self.prepared = Prepared()
        if not linear.weight.is_meta:
            with torch.no_grad():
                signs, scale = weight_codes(linear.weight)
            self.weight, self.weight_scale = pack_bits(signs > 0), scale.clone()

    def scale(self) -> Tensor:
        """a m, 0-d."""
        return self.input_binarizer.scale() * self.weight_scale

    def spec(self, **options) -> backends.Linear:
        """This layer for a backend; options as in `backends.Linear`."""
        signed = self.input_binarizer.signed
        return backends.Linear(self.weight, self.in_features, signed, self.scale().item(), self.bias, **options)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        check_input(x)
        backend = backends.backend(x.device)
        prepared = self.prepared.get(backend, x.device, lambda: backend.prepare(self.spec()))
        dot = backend.dot(prepared, self.codes(backend, x.reshape(-1, self.in_features)))
        return backends.affine(self.bias, dot, self.scale()).view(*x.shape[:-1], self.out_features)

    def codes(self, backend, x: Tensor):
        """(tokens, in_features) floats as a backend's codes."""
        binarizer = self.input_binarizer
        bits, signed, beta = binarizer.bits, binarizer.signed, binarizer.beta
        if bits == 1 and signed:
            return backend.signs(x, beta[None])[0]
        return backend.integers(codes_forward(x, binarizer.alpha, beta, bits, signed), bits, signed)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class PackedEmbedding(nn.Module):
    """A word embedding whose rows are bits times one scale a row, as `BinaryEmbedding` computes it.

    Attributes: `weight` uint8 (num_embeddings, ceil(embedding_dim / 8)), `weight_scale` (num_embeddings,).
    Shape: (...) of integers -> (..., embedding_dim).
    """

    def __init__(self, embedding: BinaryEmbedding):
        super().__init__()
        self.num_embeddings, self.embedding_dim = embedding.weight.shape
        self.padding_idx, like = embedding.padding_idx, embedding.weight.device
        size = (self.num_embeddings, -(-self.embedding_dim // 8))
        self.register_buffer("weight", torch.empty(size, dtype=torch.uint8, device=like))
        self.register_buffer("weight_scale", torch.empty(self.num_embeddings, device=like))
        if not embedding.weight.is_meta:
            latent = embedding.weight.detach()
            self.weight = pack_bits(sign(latent - latent.mean()) > 0)
            self.weight_scale = weight_scale(latent, per_row=True)[:, 0].clone()

    def forward(self, ids: Tensor) -> Tensor:
        check_input(self.weight_scale)
        flat = ids.reshape(-1)
        signs = unpack_signs(self.weight[flat], self.embedding_dim)
        return (self.weight_scale[flat, None] * signs).view(*ids.shape, self.embedding_dim)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


def check_input(x: Tensor) -> None:
    """A packed layer computes in float32, as the thresholds and scales of its file are."""
    if x.dtype != torch.float32:
        raise BitlabError(f"a packed model computes in float32, not in {x.dtype}: load it again")
