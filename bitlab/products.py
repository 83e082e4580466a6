"""Exact products of codes: int8 where torch has it, float32 under autocast, and plain floats in an exported model."""

import torch
from torch import Tensor
from torch.autograd import Function

from bitlab.binarizers import codes_backward, codes_forward, scale_of, weight_forward
from bitlab.compiled import compiled
from bitlab.upstream import int8_product

ONEDNN = torch.backends.mkldnn.is_available()  # asked once: torch.compile can't trace the question


def code_product(a: Tensor, b: Tensor, bits: int = 1) -> Tensor:
    """`a @ b` of integers in float tensors, exact and in float32, also under autocast (bf16 has no 257).

    Up to 4 bits, what the backward needs is kept as int8, a quarter of the floats, and a product of two matrices runs
    on int8 where torch has one. The two products of the backward run in the autocast type.

    Args:
        a: (..., n, k).
        b: (..., k, m), with the same leading axes.
        bits: of the codes. With 32 they are no codes: an ordinary product.

    Returns:
        (..., n, m).
    """
    if bits == 32 or torch.compiler.is_exporting():  # other runtimes know products of floats, which are as exact
        return torch.matmul(a, b)
    if bits > 4 or not (torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)):
        return exact_matmul(a, b)
    return _CodeProduct.apply(a, b, _autocast_type(a.device.type))


def _autocast_type(device: str) -> torch.dtype | None:
    """What autocast computes in on this kind of device; None where it is off, or unknown (`meta`)."""
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on else None


def exact_matmul(a: Tensor, b: Tensor) -> Tensor:
    """`torch.matmul` in the tensors' own type, also under autocast."""
    if _autocast_type(a.device.type) is None:
        return torch.matmul(a, b)
    with torch.autocast(a.device.type, enabled=False):
        return torch.matmul(a, b)


class _CodeProduct(Function):
    @staticmethod
    def forward(ctx, a, b, dtype):
        short = a.to(torch.int8), b.to(torch.int8)
        ctx.save_for_backward(*short)
        ctx.dtype = dtype or a.dtype
        if not int8_product_takes(a, b):
            return exact_matmul(a, b)
        return int8_product(*short).to(a.dtype if dtype is None else torch.float32)

    @staticmethod
    def backward(ctx, grad):
        a, b = (saved.to(ctx.dtype) for saved in ctx.saved_tensors)
        short = grad.to(ctx.dtype)
        return (short @ b.mT).to(grad.dtype), (a.mT @ short).to(grad.dtype), None


def int8_product_takes(a: Tensor, b: Tensor) -> bool:
    """Whether torch has a fast int8 product for these: on CUDA; on a CPU with oneDNN, whose one is wrong at width 1."""
    (rows, width), out = a.shape[-2:], b.shape[-1]
    if a.dim() != 2:
        return False
    if a.is_cuda:
        return rows > 16 and not (width % 8 or out % 8)
    return a.device.type == "cpu" and ONEDNN and width > 1


def trains_on_int8(x: Tensor, weight: Tensor, bits: int) -> bool:
    """Whether `binary_linear` is for this input (n, in) and this latent weight (out, in)."""
    learns = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    known = bits <= 4 and not torch.compiler.is_exporting()
    return bool(learns and known and x.numel()) and int8_product_takes(x, weight.t())


def binary_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, beta: Tensor | None, bits: int, signed: bool
) -> Tensor:
    """`(a m) (codes(x) signs(W)^T) + bias`: a whole binary layer in training, in one pass there and one back.

    It is `code_product` of `elastic_codes(x, alpha, beta, bits, signed)` and `weight_codes(weight)`, with both scales
    and the bias after it, and has their gradients; codes are not kept, but found again from x.

    Args:
        x: (n, in), for which `trains_on_int8` holds.
        weight: (out, in).
        bias: (out,), or None.
        alpha, beta, bits, signed: as in `elastic_codes`.

    Returns:
        (n, out).
    """
    return _BinaryLinear.apply(x, weight, bias, alpha, beta, bits, signed, _autocast_type(x.device.type))


class _BinaryLinear(Function):
    @staticmethod
    def forward(ctx, x, weight, bias, alpha, beta, *options):
        bits, signed, dtype = options
        ctx.options, ctx.has_bias = (bits, signed, dtype or weight.dtype), bias is not None
        out, signs, m = linear_forward(x, weight, bias, alpha, beta, bits, signed)
        ctx.save_for_backward(x, signs, m, alpha, beta)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, weight, bias, alpha, beta = linear_backward(grad.contiguous(), *ctx.saved_tensors, *ctx.options)
        return x, weight, bias if ctx.has_bias else None, alpha, beta, None, None, None


@compiled
def linear_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, beta: Tensor | None, bits: int, signed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(`binary_linear`, the signs as int8, m), without gradients."""
    codes = codes_forward.formula(x, alpha, beta, bits, signed)
    signs, m = weight_forward.formula(weight)
    signs = signs.to(torch.int8)
    product = int8_product(codes.to(torch.int8), signs.t()).to(m.dtype)
    scale = scale_of(alpha) * m
    return product * scale if bias is None else torch.addcmul(bias, product, scale), signs, m


@compiled
def linear_backward(
    grad: Tensor,
    x: Tensor,
    signs: Tensor,
    m: Tensor,
    alpha: Tensor,
    beta: Tensor | None,
    bits: int,
    signed: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight, bias, alpha and beta, by two products in `dtype`.

    With G = a m grad they are G signs of the codes, G^T codes / m of the weight (straight through), and the sum of
    grad of the bias.
    """
    codes = codes_forward.formula(x, alpha, beta, bits, signed).to(dtype)
    short = (grad * (scale_of(alpha) * m)).to(dtype)
    grad_codes = (short @ signs.to(dtype)).to(m.dtype)
    grad_weight = (short.t() @ codes).to(m.dtype) / m.clamp_min(torch.finfo(m.dtype).tiny)
    grad_x, *grads = codes_backward.formula(grad_codes, x, alpha, beta, bits, signed)
    return grad_x, grad_weight, grad.sum(0), *grads
