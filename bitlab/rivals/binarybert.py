"""BinaryBERT: a ternary model of half width whose every weight is split into two binary ones, then trained on.

    model = binarize(model, BitConfig(2, 4, method="binarybert"))     # half width, ternary weights
    ...distil...
    set_precision(model, "W1A4")                                      # split: the same outputs from binary weights
    ...distil on...

Width is DynaBERT's, as in the paper: heads of attention and neurons of the feed-forward. The hidden states keep
theirs, so a full-width teacher teaches them layer by layer, and its scores of those heads that are left. The half that
stays is chosen without data: the heads and neurons whose weights, in and out, have the largest norms (the paper starts
from a DynaBERT that was trained to be halved). Splitting doubles every weight, those of embedding and pooler included.

Source: BinaryBERT (Bai et al., 2021, arXiv 2012.15701). Its ternary weights are TernaryBERT's (Zhang et al., 2020,
arXiv 2009.12812), who have them from TWN (Li et al., 2016, arXiv 1605.04711). Activations: PACT (Choi et al., 2018,
arXiv 1805.06085) for 8 bits, LSQ (Esser et al., 2020, arXiv 1902.08153) for fewer.
"""

import copy
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitlab.binarizers import straight_through, weight_forward
from bitlab.encoders import LayerParts
from bitlab.errors import BitlabError
from bitlab.layers import METHOD_LAYERS, BinaryEmbedding, BinaryLinear, ElasticBinarizer, MethodLayers

THRESHOLD = 0.7  # of the mean magnitude: smaller weights are ternary zeros
CLIP = 2.5  # where PACT's clips start, on both sides
STEPS = 2**8 - 1


# ------------------------------------------------------------------------------------------------------ weights


def ternary_codes(weight: Tensor, per_row: bool = False) -> tuple[Tensor, Tensor]:
    """(codes in {-1, 0, +1} shaped like weight, scale s), both without gradient.

    A code is 0 where `|w| <= 0.7 mean|w|`, else the sign of w; s is the mean of |w| over the others, 0 if there are
    none. Mean and scale are of the tensor (0-d), or of each row ((rows, 1)) if `per_row`.
    """
    axes = {"dim": -1, "keepdim": True} if per_row else {}
    magnitude = weight.detach().abs()
    nonzero = magnitude > THRESHOLD * magnitude.mean(**axes)
    scale = (magnitude * nonzero).sum(**axes) / nonzero.sum(**axes).clamp_min(1)
    return weight.detach().sign() * nonzero, scale


def ternarize_weight(weight: Tensor, per_row: bool = False) -> Tensor:
    """`s * codes` of `ternary_codes`. Backward: identity. Shaped like weight, with three values (three a row)."""
    codes, scale = ternary_codes(weight, per_row)
    return straight_through(weight, scale * codes)


def binarize_uncentred(weight: Tensor, per_row: bool = False) -> Tensor:
    """`mean|W| sign(W)`, with sign(0) = +1; the mean over the tensor, or each row. Backward: identity."""
    codes, m = weight_forward(weight.detach(), 0.0, per_row)
    return straight_through(weight, m * codes)


def split_ternary(weight: Tensor, per_row: bool = False) -> tuple[Tensor, Tensor]:
    """Ternary weight splitting: (w1, w2) with `w1 + w2 = w` and `binary(w1) + binary(w2) = ternary(w)`.

    With s, n the ternary scale and the count of w, "z" its zero and "nz" its nonzero ternary positions:

        nz           w1 = m w,    w2 = (1 - m) w       m = (sum_nz|w| + sum_z|w2| - sum_z|w1|) / (2 sum_nz|w|)
        z, w > 0     w1 = w + c,  w2 = -c              c = (s n - sum|w|) / (2 #z)
        z, else      w1 = c,      w2 = w - c

    `binary` is `binarize_uncentred`, `ternary` is `ternarize_weight` (BinaryBERT, section 3.2).

    Args:
        weight: latent, any float type; the sums are in float64.
        per_row: every row by itself (the word embedding).

    Returns:
        Two tensors of weight's shape and type, detached.

    Raises:
        BitlabError: where no such pair exists: the small weights, nearly all of one sign, outweigh the large ones.
    """
    w = weight.detach().double()
    axes = {"dim": -1, "keepdim": True} if per_row else {}
    codes, scale = ternary_codes(w, per_row)
    zero = codes == 0
    count = torch.ones_like(w).sum(**axes)
    c = (scale * count - w.abs().sum(**axes)) / (2 * zero.sum(**axes)).clamp_min(1)
    first, second = torch.where(w > 0, w + c, c), torch.where(w > 0, -c, w - c)
    large = (w.abs() * ~zero).sum(**axes)
    surplus = ((second.abs() - first.abs()) * zero).sum(**axes)
    if not w.is_meta and (surplus.abs() >= large)[large > 0].any():
        raise BitlabError(
            "this weight has no ternary split: its small values, nearly all of one sign, outweigh the rest"
        )
    m = 0.5 + surplus / (2 * large).masked_fill(large == 0, 1)
    first, second = torch.where(zero, first, m * w), torch.where(zero, second, (1 - m) * w)
    return first.to(weight.dtype), second.to(weight.dtype)


def _quantized(weight: Tensor, bits: int, per_row: bool = False) -> Tensor:
    if bits == 32:
        return weight
    return ternarize_weight(weight, per_row) if bits == 2 else binarize_uncentred(weight, per_row)


# -------------------------------------------------------------------------------------------------- activations


def pact(x: Tensor, clip: Tensor, signed: bool = True) -> Tensor:
    """8-bit min-max quantization between learnable clips, in 255 steps from the least to the largest value of a token.

    `y = clamp(x, clip[0], clip[1])`, `q = low + step round((y - low) / step)` with `step = (max y - low) / 255` and
    `low` the least y, or 0 for a set that is not signed. The range is each token's own (the last axis), so that no
    example's result depends on padding or neighbours. Backward: that of the clamp, which is where the clips learn.

    Args:
        x: (..., channels).
        clip: (2,), the least and the largest value.
        signed: whether values below 0 are kept.

    Returns:
        A tensor of x's shape.
    """
    y = torch.clamp(x, clip[0] if signed else clip[0] * 0, clip[1])
    z = y.detach()
    low = z.amin(dim=-1, keepdim=True) if signed else torch.zeros_like(z[..., :1])
    step = ((z.amax(dim=-1, keepdim=True) - low) / STEPS).clamp_min(torch.finfo(z.dtype).tiny)
    return straight_through(y, low + step * torch.round((z - low) / step))


class BinaryBertBinarizer(ElasticBinarizer):
    """Activations of BinaryBERT: `pact` at 8 bits; below, LSQ, which is the elastic function without thresholds.

    LSQ's own signed set has no two levels of one bit that are worth having (-1 and 0), so there it is {-alpha, +alpha}.

    Args and shapes: as of `ElasticBinarizer`; it has `clip` (2,) beside `alpha`, each learning at its own precisions.
    """

    def __init__(self, channels: int | None, bits: int = 1, signed: bool = True, device=None, dtype=None):
        super().__init__(channels, 32, signed, device, dtype)
        self.beta = None
        self.clip = nn.Parameter(torch.tensor([-CLIP, CLIP], device=device, dtype=dtype))
        self.set_bits(bits)

    def set_bits(self, bits: int) -> None:
        learning = any(parameter.requires_grad for parameter in self.parameters(recurse=False))
        super().set_bits(bits)
        if hasattr(self, "clip") and (learning or self.alpha.requires_grad):  # else somebody froze it
            self.alpha.requires_grad_(bits in (1, 2, 4))
            self.clip.requires_grad_(bits == 8)

    @torch.no_grad()
    def reset(self) -> None:
        super().reset()
        self.clip.copy_(torch.tensor([-CLIP, CLIP]))

    def scales(self) -> list[Tensor]:
        return [self.clip if self.bits == 8 else self.alpha]

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        """As `ElasticBinarizer.codes`; at 8 bits the values themselves and 1.0, for they have a zero point."""
        return (pact(x, self.clip, self.signed), 1.0) if self.bits == 8 else super().codes(x)


# ------------------------------------------------------------------------------------------------------- layers


class _Splits:
    """In front of a binary layer's class: ternary at `weight_bits=2`, at 1 the sum of two layers, itself and `twin`."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.register_module("twin", None)

    @classmethod
    def from_float(cls, module: nn.Module, weight_bits: int = 1, **options) -> Self:
        new = super().from_float(module, weight_bits=32, **options)
        new.set_weight_bits(weight_bits)
        return new

    def set_weight_bits(self, bits: int) -> None:
        """As of `BinaryLinear`; 1 bit splits the layer, which nothing undoes: 2 is a BitlabError from then on."""
        if bits == 2 and self.twin is not None:
            raise BitlabError(
                "this model was split into binary weights, which do not become ternary again: load the W2 one"
            )
        if bits == 1 and self.weight_bits != 1 and self.twin is None:  # a twin itself has 1 bit before it is asked
            self._split()
        for half in filter(None, (self, self.twin)):
            half.weight_bits = bits

    def _split(self) -> None:
        twin = copy.deepcopy(self)
        first, second = split_ternary(self.weight, per_row=isinstance(self, nn.Embedding))
        self.weight, twin.weight = (nn.Parameter(w, self.weight.requires_grad) for w in (first, second))
        if getattr(self, "bias", None) is not None:
            self.bias, twin.bias = (nn.Parameter(self.bias.detach() / 2) for _ in range(2))
        self.twin = twin


class SplitLinear(_Splits, BinaryLinear):
    """A linear layer of BinaryBERT. `twin` quantizes an input of its own; both have half the bias.

    Args and shapes: as of `BinaryLinear`.
    """

    binarizer = BinaryBertBinarizer

    def forward(self, x: Tensor) -> Tensor:
        weight = _quantized(self.weight, self.weight_bits)
        y = F.linear(self.input_binarizer(x), weight, self.bias).to(weight.dtype)  # attention wants one type
        return y if self.twin is None else y + self.twin(x)


class SplitEmbedding(_Splits, BinaryEmbedding):
    """The word embedding of BinaryBERT, each row by itself."""

    def forward(self, ids: Tensor) -> Tensor:
        rows = _quantized(nn.Embedding.forward(self, ids), self.weight_bits, per_row=True)
        return rows if self.twin is None else rows + self.twin(ids)


# --------------------------------------------------------------------------------------------------- half width


def halve(layers: list[LayerParts], converted: set[nn.Module]) -> None:
    """Make an encoder half as wide, in place: half of the heads and of the feed-forward's neurons of every layer stay.

    Those with the largest product of two norms: of the weights that lead into them (a head's value rows, a neuron's
    row) and of those that lead on (columns of the next layer). They keep their order. The buffer `kept_heads` of an
    attention module tells which heads are left. Works on the meta device, where only shapes count.

    Args:
        layers: the parts of the encoder's layers.
        converted: the linear layers that are to become binary; between others nothing is halved.

    Raises:
        BitlabError: for an odd number of heads or neurons, and for layers of which only some are converted. The
            encoder is then as it was.
    """
    chosen = [(*_halves(parts, converted), parts) for parts in layers]
    for heads, neurons, parts in chosen:
        if heads is not None:
            size = parts.attention.attention_head_size
            parts.attention.register_buffer("kept_heads", heads)
            rows = (heads[:, None] * size + torch.arange(size, device=heads.device)).flatten()
            _keep(parts.out, rows, *parts.projections)
        if neurons is not None:
            _keep(parts.second, neurons, parts.first)


def _halves(parts: LayerParts, converted: set[nn.Module]) -> tuple[Tensor | None, Tensor | None]:
    """The stronger half of a layer's heads, and of its neurons; None where they all stay."""
    heads = neurons = None
    if _all_or_none((*parts.projections, parts.out), converted, parts.name):
        size = parts.attention.attention_head_size
        into, onward = parts.value.weight, parts.out.weight.t()
        heads = _strongest(into.unflatten(0, (-1, size)), onward.unflatten(0, (-1, size)))
    if _all_or_none((parts.first, parts.second), converted, parts.name):
        neurons = _strongest(parts.first.weight, parts.second.weight.t())
    return heads, neurons


def _all_or_none(linears: tuple[nn.Module, ...], converted: set[nn.Module], name: str) -> bool:
    inside = [linear in converted for linear in linears]
    if any(inside) and not all(inside):
        raise BitlabError(
            f"{name} can't be halved where only some of the layers around its heads or neurons are converted: "
            f"let modules_to_not_convert name all of them or none"
        )
    return all(inside)


def _strongest(into: Tensor, onward: Tensor) -> Tensor:
    """Indices, in order, of the stronger half of (units, ...) tensors of weights."""
    if len(into) % 2:
        raise BitlabError(f"BinaryBERT halves heads and neurons, and {len(into)} can't be halved: use another model")
    strength = into.detach().flatten(1).norm(dim=1) * onward.detach().flatten(1).norm(dim=1)
    return strength.topk(len(into) // 2).indices.sort().values


def _keep(after: nn.Linear, units: Tensor, *before: nn.Linear) -> None:
    """Leave only these units between the layers `before` and the one after."""
    for layer in before:
        layer.weight = nn.Parameter(layer.weight.detach()[units])
        layer.out_features = len(units)
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias.detach()[units])
    after.weight = nn.Parameter(after.weight.detach()[:, units])
    after.in_features = len(units)


METHOD_LAYERS["binarybert"] = MethodLayers(SplitLinear, SplitEmbedding, prepare=halve)
