"""The building blocks: an activation binarizer with learnable scale and thresholds, a binary linear layer and a
binary embedding. Each keeps float latent weights and quantizes them in every forward pass."""

from collections.abc import Callable
from typing import NamedTuple, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from bitlab.binarizers import (
    elastic_codes,
    initial_alpha,
    levels,
    scale_of,
    straight_through,
    weight_codes,
    weight_forward,
)
from bitlab.errors import BitlabError
from bitlab.products import binary_linear, code_product, trains_on_int8
from bitlab.upstream import is_watched


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of what all processes of a training hold as `x`; in one process that is `x`. No gradient."""
    if not (dist.is_available() and dist.is_initialized()):
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


class Binarizer(nn.Module):
    """What quantizes activations: `codes * scale` of its input, or with `codes=True` the two of them.

    Layers and attention ask for the two, by a call, so that forward hooks see every binarizer at work. This base has
    nothing to learn; a method's own binarizer says what its `codes` are.

    Args:
        channels: size of the last axis of the input, or None where that is as long as the sentence (attention
            probabilities, which have no thresholds).
        bits: 1, 2, 4, 8, or 32 to pass the input through.
        signed: True for {-a, +a} and its multi-bit form, False for {0, a}.
        device, dtype: of what a method's own has to learn.

    Shape: (..., channels) -> (..., channels).
    """

    takes_scores = False  # whether, in the place of attention's probabilities, it wants masked scores instead

    def __init__(self, channels: int | None, bits: int = 1, signed: bool = True, device=None, dtype=None):
        super().__init__()
        self.channels, self.bits, self.signed = channels, bits, signed

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        """(codes shaped like x, scale), with `forward(x) = codes * scale`."""
        raise NotImplementedError

    def forward(self, x: Tensor, codes: bool = False) -> Tensor | tuple[Tensor, Tensor | float]:
        found, scale = self.codes(x)
        return (found, scale) if codes else found * scale

    def set_bits(self, bits: int) -> None:
        """Change the precision in place."""
        self.bits = bits

    def scales(self) -> list[Tensor]:
        """The learned numbers, thresholds excepted, that a forward at this precision needs."""
        return []

    def reset(self) -> None:
        """Back to where training starts."""

    def forget_alpha(self) -> None:
        """Let the next batch in training mode initialise alpha again."""

    def sync(self) -> None:
        """Take notice of what loading a checkpoint wrote."""

    def extra_repr(self) -> str:
        return f"channels={self.channels}, bits={self.bits}, signed={self.signed}"


class ElasticBinarizer(Binarizer):
    """Quantize activations with a learnable scale and learnable thresholds: `elastic(x - beta, alpha)`.

    Forward and gradients are those of `bitlab.binarizers.elastic` (BiT). `alpha` is one number, of shape (1,), `beta`
    one threshold for each channel. With `bits=32` the layer passes its input through.

    alpha starts from the first batch seen in training mode (`initial_alpha`); that it did is part of the state
    dict (`initialized`). A forward in eval mode never changes anything.

    Args:
        channels, bits, signed: see `Binarizer`; without channels there are no thresholds.

    Raises:
        BitlabError: for other bits; and at the first batch, where alpha lies in a buffer of several parameters
            (FSDP, DeepSpeed): what is written there is lost, so that it has to start before.
    """

    def __init__(self, channels: int | None, bits: int = 1, signed: bool = True, device=None, dtype=None):
        super().__init__(channels, 1, signed)
        like = {"device": device, "dtype": dtype}
        self.alpha = nn.Parameter(torch.ones(1, **like))
        self.register_parameter("beta", nn.Parameter(torch.zeros(channels, **like)) if channels else None)
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool, device=device))
        self._fresh = True  # what `initialized` says, in Python: asking the tensor would stall a GPU every step
        self.set_bits(bits)

    def set_bits(self, bits: int) -> None:
        """Change the precision in place; alpha, beta and `initialized` stay as they are.

        What 32 bits put out of use stops learning, and learns again afterwards.
        """
        if bits != 32:
            levels(bits, self.signed)
        was_used, used = self.bits != 32, bits != 32
        self.bits = bits
        if used != was_used:  # between other precisions somebody may have frozen what learns
            for parameter in self.parameters(recurse=False):
                parameter.requires_grad_(used)

    @torch.no_grad()
    def reset(self) -> None:
        """alpha = 1, beta = 0, and the next batch in training mode initialises alpha again."""
        self.alpha.fill_(1.0)
        if self.beta is not None:
            self.beta.zero_()
        self.forget_alpha()

    def forget_alpha(self) -> None:
        """Let the next batch in training mode initialise alpha again; beta stays."""
        self.initialized.fill_(False)
        self._fresh = True

    def sync(self) -> None:
        """Read `initialized` again; and give alpha its shape, which is 0-d in older checkpoints."""
        self._fresh = not bool(self.initialized)
        if self.alpha.dim() == 0:
            self.alpha = nn.Parameter(self.alpha.detach().view(1), self.alpha.requires_grad)

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        """(integer codes shaped like x, detached 0-d scale), with `forward(x) = codes * scale`."""
        if self.bits == 32 or not x.numel():  # of no numbers there is no mean that alpha could start or learn from
            return x, 1.0
        self.start(x)
        return elastic_codes(x, self.alpha, self.beta, self.bits, self.signed), self.scale()

    def scale(self) -> Tensor:
        """`max(alpha, 1e-5)`, 0-d and detached: alpha learns through the codes."""
        return scale_of(self.alpha)

    def scales(self) -> list[Tensor]:
        return [self.alpha]

    def start(self, x: Tensor) -> None:
        """Let alpha start from x, if this is training and it has not."""
        if self._fresh and self.training:
            self._initialise(x)

    @torch.no_grad()
    def _initialise(self, x: Tensor) -> None:
        x = x if self.beta is None else x - self.beta
        alpha = initial_alpha(x, self.bits, self.signed).to(self.alpha.dtype)
        mean = mean_over_processes(alpha)  # all start from the same
        if mean is not alpha and self.alpha.untyped_storage().nbytes() != self.alpha.nbytes:
            raise BitlabError(
                "the scales alpha can't start in a model that FSDP or DeepSpeed has taken apart: "
                "run one batch through it in training mode before you wrap it"
            )
        self.alpha.fill_(mean)
        self.initialized.fill_(True)
        self._fresh = False

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        if (stored := state_dict.get(f"{prefix}alpha")) is not None and stored.dim() == 0:
            state_dict[f"{prefix}alpha"] = stored.view(1)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if not self.initialized.is_meta:
            self.sync()


class BinaryLinear(nn.Linear):
    """A linear layer on quantized weights and quantized inputs: `y = (a m) (codes(x) codes(W)^T) + bias`.

    codes(W) = sign(W - mean(W)) with m = mean|W|; codes(x) and a come from `input_binarizer`. The product of codes
    is exact in float32; the scales are applied after it (BiT).

    Args:
        in_features, out_features, bias: as in `torch.nn.Linear`. `weight` is the latent weight, `bias` stays float.
        weight_bits: 1 or 32.
        activation_bits, signed: precision and set of the input, see `ElasticBinarizer`.

    Shape: (..., in_features) -> (..., out_features).
    """

    binarizer: type[Binarizer] = ElasticBinarizer  # what quantizes the input; other methods' layers name their own
    weight_scales = 1  # how many scales m belong to the weight

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        weight_bits: int = 1,
        activation_bits: int = 1,
        signed: bool = True,
        device=None,
        dtype=None,
    ):
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.weight_bits = weight_bits
        self.input_binarizer = self.binarizer(in_features, activation_bits, signed, device=device, dtype=dtype)

    @classmethod
    def from_float(cls, linear: nn.Linear, **options) -> Self:
        """The same layer made binary: it shares the parameters of `linear`, which become latent."""
        weight = linear.weight
        new = cls(*reversed(weight.shape), linear.bias is not None, **options, device="meta", dtype=weight.dtype)
        new.weight, new.bias = weight, linear.bias
        meta = new.input_binarizer
        new.input_binarizer = cls.binarizer(meta.channels, meta.bits, meta.signed, weight.device, weight.dtype)
        return new.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        if self._trains_in_one_pass(x):
            return self._in_one_pass(x)
        codes, scale = self.input_binarizer(x, codes=True)
        bits = self.input_binarizer.bits
        if self.weight_bits == 32:
            return F.linear(codes * scale if bits != 32 else x, self.weight, self.bias)
        signs, m = weight_codes(self.weight)
        product = code_product(_rows(codes), signs.t(), bits).view(*x.shape[:-1], self.out_features)
        return product * (scale * m) if self.bias is None else torch.addcmul(self.bias, product, scale * m)

    def _trains_in_one_pass(self, x: Tensor) -> bool:
        binarizer = self.input_binarizer
        plain = self.weight_bits == 1 and type(binarizer) is ElasticBinarizer and not is_watched(binarizer)
        return plain and trains_on_int8(_rows(x), self.weight, binarizer.bits)

    def _in_one_pass(self, x: Tensor) -> Tensor:
        """The same, with the same gradients, as one operation: a training step's memory traffic is most of it."""
        binarizer = self.input_binarizer
        binarizer.start(x)
        by = binarizer.alpha, binarizer.beta, binarizer.bits, binarizer.signed
        return binary_linear(_rows(x), self.weight, self.bias, *by).view(*x.shape[:-1], self.out_features)

    def set_weight_bits(self, bits: int) -> None:
        """Change the precision of the weights in place; the latent weights stay."""
        self.weight_bits = bits

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weight_bits={self.weight_bits}"


class BinaryEmbedding(nn.Embedding):
    """An embedding whose rows are `m_r * sign(W_r - mean(W))` with `m_r = mean|W_r|`, the mean over the whole table.

    Only the rows that the batch asks for are binarized; values and gradients (straight through) are those of
    binarizing the table first. `weight` is the latent table, `weight_bits` 1 or 32.

    Shape: (...) of integers -> (..., embedding_dim).
    """

    weight_bits = 1

    @classmethod
    def from_float(cls, embedding: nn.Embedding, weight_bits: int = 1) -> Self:
        """The same table made binary: it shares the parameter of `embedding`, which becomes latent."""
        new = cls(*embedding.weight.shape, embedding.padding_idx, device="meta", dtype=embedding.weight.dtype)
        new.weight, new.weight_bits = embedding.weight, weight_bits
        return new.train(embedding.training)

    def set_weight_bits(self, bits: int) -> None:
        """Change the precision of the table in place; the latent table stays."""
        self.weight_bits = bits

    def forward(self, ids: Tensor) -> Tensor:
        rows = super().forward(ids)
        if self.weight_bits == 32:
            return rows
        codes, m = weight_forward(rows.detach(), self.weight.detach().mean(), True)
        return straight_through(rows, m * codes)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weight_bits={self.weight_bits}"


class MethodLayers(NamedTuple):
    """What a method puts in the place of float layers.

    Attributes:
        linear: what a linear layer becomes; its class attribute `binarizer` also serves q, k, v and the probabilities.
        embedding: what the word embedding becomes.
        prepare: changes the float encoder first; called with the parts of the layers that are to be converted
            (`bitlab.encoders.LayerParts`) and their names that stay float. It checks before it changes anything.
    """

    linear: type[BinaryLinear]
    embedding: type[BinaryEmbedding]
    prepare: Callable = lambda layers, kept: None


METHOD_LAYERS = {"bit": MethodLayers(BinaryLinear, BinaryEmbedding)}  # the rivals enter theirs when they are imported
