"""The two sets, the elastic function and the weight binarizer: pure functions with their own gradients.

Every quantized tensor here is `scale * codes`: the codes are small integers held in a float tensor, the scale is a
scalar (or one number a row). Layers multiply codes with codes, which is exact in float32 while sums stay below 2^24,
and apply both scales after the product. That is what lets bits replace floats later without changing a single result.

Source: BiT (Liu et al., 2022, arXiv 2205.13016); LSQ (Esser et al., 2020, arXiv 1902.08153).
"""

import torch
from torch import Tensor
from torch.autograd import Function

from bitlab.compiled import compiled
from bitlab.errors import BitlabError
from bitlab.methods import ACTIVATION_BITS

SMALLEST_ALPHA = 1e-5


def sign(x: Tensor) -> Tensor:
    """+1 where x >= 0, else -1: a bit has no third level, so sign(0) = +1. Shaped and typed like x, no gradient."""
    return 2 * at_least(x, 0) - 1


def at_least(x: Tensor, bound: float) -> Tensor:
    """1 where `x >= bound`, else 0, typed like x: written there at once, five times faster than to convert a mask."""
    return torch.ge(x, bound, out=torch.empty_like(x))


def at_most(x: Tensor, bound: float) -> Tensor:
    """1 where `x <= bound`, else 0, typed like x."""
    return torch.le(x, bound, out=torch.empty_like(x))


def levels(bits: int, signed: bool) -> tuple[int, int]:
    """Smallest and largest code, `(Qn, Qp)`: {-1, +1} or {0, 1} at one bit, -2^(b-1)..2^(b-1)-1 or 0..2^b-1 above."""
    if bits not in ACTIVATION_BITS:
        raise BitlabError(f"activations of {bits} bits do not exist here: choose 1, 2, 4 or 8 (32 is full precision)")
    if not signed:
        return 0, 2**bits - 1
    return (-1, 1) if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


# -------------------------------------------------------------------------------------------------- activations


def initial_alpha(x: Tensor, bits: int = 1, signed: bool = True) -> Tensor:
    """A scale to start from: `2 mean|x| / sqrt(Qp)` for the signed set, `4 mean|x| / sqrt(Qp)` for the unsigned one.

    Args:
        x: a batch of the activations to quantize, any shape.
        bits, signed: the set, as in `elastic`.

    Returns:
        A 0-d tensor, detached.
    """
    _, top = levels(bits, signed)
    return (2 if signed else 4) * x.detach().abs().mean() / top**0.5


def elastic(x: Tensor, alpha: Tensor, bits: int = 1, signed: bool = True) -> Tensor:
    """Quantize activations to `alpha * codes`, with a learnable scale (BiT's elastic function, equations 4 to 7).

    Forward, with `a = max(alpha, 1e-5)` and `(Qn, Qp) = levels(bits, signed)`:

        signed, 1 bit    a * sign(x), where sign(0) = +1
        otherwise        a * clamp(round(x / a), Qn, Qp), halves round to even

    Backward, for an upstream gradient g over N elements:

        x        g where Qn a <= x <= Qp a, else 0                           (straight through)
        alpha    sum(g (code - [inside] x / a)) / sqrt(N Qp)                 (LSQ)
                 sum(g sign(x)) / sqrt(N)                                    (signed, 1 bit)

    Args:
        x: activations, any shape. Subtract the threshold beta before calling.
        alpha: one number, 0-d or of shape (1,).
        bits: 1, 2, 4 or 8.
        signed: True for the set around zero, False for {0, ..., Qp} of non-negative tensors.

    Returns:
        A tensor shaped like x.
    """
    return elastic_codes(x, alpha, None, bits, signed) * scale_of(alpha)


def scale_of(alpha: Tensor) -> Tensor:
    """`max(alpha, 1e-5)`, 0-d and detached: alpha learns through the codes."""
    return alpha.detach().clamp_min(SMALLEST_ALPHA).view(())


def elastic_codes(x: Tensor, alpha: Tensor, beta: Tensor | None, bits: int, signed: bool) -> Tensor:
    """The codes of `elastic(x - beta, alpha)`: integers in a float tensor shaped like x.

    Multiply them by the *detached* scale `max(alpha, 1e-5)`: the gradients of `elastic` hold for that product, and
    the gradient of alpha comes through the codes alone. beta is (channels,), the last axis of x, or None.
    """
    levels(bits, signed)
    rows = x.reshape(-1, x.shape[-1]) if x.dim() else x.reshape(1, 1)
    return _ElasticCodes.apply(rows, alpha, beta, bits, signed).view(x.shape)


class _ElasticCodes(Function):
    @staticmethod
    def forward(x, alpha, beta, bits, signed):
        return codes_forward(x, alpha, beta, bits, signed)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, alpha, beta, ctx.bits, ctx.signed = inputs
        # x is kept instead of masks: the layers around hold it anyway, so this costs no memory.
        ctx.save_for_backward(x, alpha, beta)

    @staticmethod
    def backward(ctx, grad_codes):
        x, alpha, beta = ctx.saved_tensors
        grads = codes_backward(grad_codes.contiguous(), x, alpha, beta, ctx.bits, ctx.signed)
        return *grads, None, None


@compiled
def codes_forward(x: Tensor, alpha: Tensor, beta: Tensor | None, bits: int, signed: bool) -> Tensor:
    """The bare forward formula, without gradients."""
    x = x if beta is None else x - beta
    if signed and bits == 1:
        return sign(x)
    return torch.clamp(torch.round(x / alpha.clamp_min(SMALLEST_ALPHA)), *levels(bits, signed))


@compiled
def codes_backward(
    grad_codes: Tensor, x: Tensor, alpha: Tensor, beta: Tensor | None, bits: int, signed: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of x, alpha and beta from that of the codes (which is `scale` times that of `scale * codes`)."""
    bottom, top = levels(bits, signed)
    a = alpha.clamp_min(SMALLEST_ALPHA)
    grad = grad_codes / a
    q = (x if beta is None else x - beta) / a
    inside = at_least(q, bottom) * at_most(q, top)
    if signed and bits == 1:
        slope = sign(q)
    else:
        slope = torch.clamp(torch.round(q), bottom, top) - inside * q
    grad_alpha = (grad * slope).sum().view(alpha.shape) / (x.numel() * top) ** 0.5
    grad_x = inside * grad
    return grad_x, grad_alpha, None if beta is None else -grad_x.sum(0)


# ------------------------------------------------------------------------------------------------------ weights


def straight_through(latent: Tensor, quantized: Tensor) -> Tensor:
    """`quantized` in the forward pass, `latent` in the backward: the gradient passes unchanged (no clipping)."""
    return _StraightThrough.apply(latent, quantized)


class _StraightThrough(Function):
    @staticmethod
    def forward(latent, quantized):
        return quantized.view_as(quantized)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad, None


@compiled
def weight_forward(weight: Tensor, mean: Tensor | float | None = None, per_row: bool = False) -> tuple[Tensor, Tensor]:
    """(`sign(W - mean)`, `m = mean|W|` of the uncentred weight), without gradients; binarized, W is their product.

    Args:
        weight: latent, any shape.
        mean: what is subtracted: the mean of the table that the rows `weight` are from, for instance. None: their own.
        per_row: one m for each row, (..., 1), instead of one for the tensor, 0-d.
    """
    codes = sign(weight - (weight.mean() if mean is None else mean))
    magnitude = weight.abs()
    return codes, magnitude.mean(dim=-1, keepdim=True) if per_row else magnitude.mean()


def binarize_weight(weight: Tensor, per_row: bool = False) -> Tensor:
    """Binarize a latent weight to `m * sign(W - mean(W))` with `m = mean|W|` (BiT).

    `m` is of the *uncentred* weight: one number for the tensor, or one for each row if `per_row`. The mean that is
    subtracted is over the whole tensor in both cases, and sign(0) = +1. Backward: identity, nothing through m or
    the mean.

    Args:
        weight: (out_features, in_features), or (num_embeddings, embedding_dim) with `per_row=True`.
        per_row: a scale for each row, as the word embedding has.

    Returns:
        A tensor shaped like weight with two values (two a row).
    """
    codes, m = weight_forward(weight.detach(), None, per_row)
    return straight_through(weight, m * codes)


def weight_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(`sign(W - mean(W))`, `m = mean|W|`): their product is the binarized weight, with the identity as its gradient.

    The codes are shaped like the weight; m is 0-d and detached.
    """
    return _WeightCodes.apply(weight)


class _WeightCodes(Function):
    @staticmethod
    def forward(weight):
        return weight_forward(weight)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx, grad_codes, _):
        (m,) = ctx.saved_tensors
        return grad_codes / m.clamp_min(torch.finfo(m.dtype).tiny)
