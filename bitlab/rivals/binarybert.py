"""BinaryBERT: a ternary model of half width whose every weight is split into two binary ones, then trained on.

    model = binarize(model, BitConfig(2, 4, method="binarybert"))     # half width, ternary weights
    ...distil...
    set_precision(model, "W1A4")                                      # split: the same outputs from binary weights
    ...distil on...

Width is DynaBERT's, as in the paper: heads of attention and neurons of the feed-forward. The hidden states keep
theirs, so a full-width teacher teaches them layer by layer, and its scores of those heads that are left. The half that
stays is chosen without data: the heads and neurons whose weights, in and out, have the largest norms (the paper starts
from a DynaBERT that was trained to be halved). Splitting doubles every weight, those of embedding and pooler included.

Source: BinaryBERT (Bai et al., 2021, arXiv 2012.15701); PACT (Choi et al., 2018, arXiv 1805.06085) for activations of 8
bits, LSQ (Esser et al., 2020, arXiv 1902.08153) for fewer.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitlab.binarizers import sign, straight_through, weight_scale
from bitlab.convert import projections
from bitlab.errors import BitlabError
from bitlab.layers import METHOD_LAYERS, BinaryEmbedding, BinaryLinear, ElasticBinarizer, MethodLayers
from bitlab.rivals.ternary import ternarize_weight, ternary_codes

CLIP = 2.5  # where PACT's clips start, on both sides
STEPS = 2**8 - 1


# ------------------------------------------------------------------------------------------------------ weights


def binarize_uncentred(weight: Tensor, per_row: bool = False) -> Tensor:
    """`mean|W| sign(W)`, with sign(0) = +1; the mean over the tensor, or each row. Backward: identity."""
    return straight_through(weight, weight_scale(weight, per_row) * sign(weight.detach()))


def split_ternary(weight: Tensor, per_row: bool = False) -> tuple[Tensor, Tensor]:
    """Ternary weight splitting: (w1, w2) with `w1 + w2 = w` and `binary(w1) + binary(w2) = ternary(w)`.

    With s, n the ternary scale and the count of w, "z" its zero and "nz" its nonzero ternary positions:

        nz           w1 = m w,    w2 = (1 - m) w       m = (sum_nz|w| + sum_z|w2| - sum_z|w1|) / (2 sum_nz|w|)
        z, w > 0     w1 = w + c,  w2 = -c              c = (s n - sum|w|) / (2 #z)
        z, else      w1 = c,      w2 = w - c

    `binary` is `binarize_uncentred`, `ternary` is `ternarize_weight` (BinaryBERT, section 3.2).

    Args: weight: latent, any float type; the sums are in float64. per_row: every row by itself (the word embedding).
    Returns: two tensors of weight's shape and type, detached.
    Errors: BitlabError where no such pair exists: the small weights, nearly all of one sign, outweigh the large ones.
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

    Args: x: (..., channels). clip: (2,). Returns: a tensor of x's shape.
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


class SplitLinear(BinaryLinear):
    """A linear layer of BinaryBERT: ternary at `weight_bits=2`; at 1 the sum of two binary layers, itself and `twin`.

    Each of the two quantizes its own input and has half the bias. Args and shapes: as of `BinaryLinear`.
    """

    binarizer = BinaryBertBinarizer

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.register_module("twin", None)

    @classmethod
    def from_linear(cls, linear: nn.Linear, weight_bits: int = 1, **options) -> "SplitLinear":
        new = super().from_linear(linear, weight_bits=32, **options)
        new.set_weight_bits(weight_bits)
        return new

    def set_weight_bits(self, bits: int) -> None:
        """As of `BinaryLinear`; 1 bit splits the layer, which nothing undoes: 2 is a BitlabError from then on."""
        _split_if_binary(self, bits)

    def forward(self, x: Tensor) -> Tensor:
        weight = _quantized(self.weight, self.weight_bits)
        y = F.linear(self.input_binarizer(x), weight, self.bias).to(weight.dtype)  # attention wants one type
        return y if self.twin is None else y + self.twin(x)


class SplitEmbedding(BinaryEmbedding):
    """The word embedding of BinaryBERT, row by row: ternary at `weight_bits=2`, at 1 the sum of itself and `twin`."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.register_module("twin", None)

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding, weight_bits: int = 1) -> "SplitEmbedding":
        new = super().from_embedding(embedding, weight_bits=32)
        new.set_weight_bits(weight_bits)
        return new

    def set_weight_bits(self, bits: int) -> None:
        """As of `SplitLinear`."""
        _split_if_binary(self, bits)

    def forward(self, ids: Tensor) -> Tensor:
        rows = _quantized(nn.Embedding.forward(self, ids), self.weight_bits, per_row=True)
        return rows if self.twin is None else rows + self.twin(ids)


def _split_if_binary(layer: SplitLinear | SplitEmbedding, bits: int) -> None:
    if bits == 2 and layer.twin is not None:
        raise BitlabError(
            "this model was split into binary weights, which do not become ternary again: load the W2 one"
        )
    if bits == 1 and layer.weight_bits != 1 and layer.twin is None:  # a twin itself has 1 bit before it is asked
        layer.twin = twin = copy.deepcopy(layer)
        first, second = split_ternary(layer.weight, per_row=isinstance(layer, nn.Embedding))
        layer.weight, twin.weight = (nn.Parameter(w, layer.weight.requires_grad) for w in (first, second))
        if getattr(layer, "bias", None) is not None:
            layer.bias, twin.bias = (nn.Parameter(layer.bias.detach() / 2) for _ in range(2))
    for half in (layer, layer.twin):
        if half is not None:
            half.weight_bits = bits


# --------------------------------------------------------------------------------------------------- half width


def halve(modules: dict[str, nn.Module]) -> None:
    """Make an encoder half as wide, in place: half of the heads and of the feed-forward's neurons of every layer stay.

    Those with the largest product of two norms: of the weights that lead into them (a head's value rows, a neuron's
    row) and of those that lead on (columns of the next layer). They keep their order. The buffer `kept_heads` of an
    attention module tells which heads are left. Works on the meta device, where only shapes count.

    Args: modules: the encoder's modules by name; layers that are not among them stay as they are.
    Errors: BitlabError for an odd number of heads or neurons.
    """
    for name, module in list(modules.items()):
        if layers := projections(module):
            module.register_buffer("kept_heads", _halve_heads(layers, _next(modules, name), module.attention_head_size))
        elif name.endswith(("intermediate.dense", "ffn.lin1")):
            after = _next(modules, name)
            _keep(after, _strongest(module.weight, after.weight.t()), module)


def _next(modules: dict[str, nn.Module], name: str) -> nn.Linear:
    """The layer that takes what an attention module, or the first feed-forward layer, of that name gives."""
    if name.endswith("intermediate.dense"):
        after = name.removesuffix("intermediate.dense") + "output.dense"
    elif name.endswith("lin1"):
        after = name.removesuffix("lin1") + "lin2"
    else:
        after = name.removesuffix("self") + "output.dense" if name.endswith("self") else f"{name}.out_lin"
    if after not in modules:
        raise BitlabError(f"{name} can't be halved without {after}: let modules_to_not_convert name both or neither")
    return modules[after]


def _halve_heads(layers: tuple[nn.Linear, ...], after: nn.Linear, size: int) -> Tensor:
    value = layers[2].weight
    kept = _strongest(value.unflatten(0, (-1, size)), after.weight.t().unflatten(0, (-1, size)))
    rows = (kept[:, None] * size + torch.arange(size, device=kept.device)).flatten()
    _keep(after, rows, *layers)
    return kept


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
