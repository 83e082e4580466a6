"""Exact products of codes: int8 where torch has it, float32 under autocast, and plain floats in an exported model."""

import torch
from torch import Tensor
from torch.autograd import Function

from bitlab.binarizers import weight_forward
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


def trains_on_int8(codes: Tensor, weight: Tensor, bits: int) -> bool:
    """Whether `binary_linear` is for these codes (n, in) and this latent weight (out, in)."""
    learns = torch.is_grad_enabled() and (codes.requires_grad or weight.requires_grad)
    return learns and bits <= 4 and not torch.compiler.is_exporting() and int8_product_takes(codes, weight.t())


def binary_linear(codes: Tensor, scale: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`(scale m) (codes signs^T) + bias` with `signs, m` those of the latent weight: a binary layer in training.

    It is `code_product` of the codes and the signs, with both scales and the bias after it, but goes over the weight
    once on the way there and once on the way back. With G = scale m g in the autocast type the gradients are G signs of
    the codes, G^T codes / m of the weight (straight through), and the sum of g of the bias.

    Args:
        codes: (n, in), integers of up to 4 bits in a float tensor, for which `trains_on_int8` holds.
        scale: 0-d, detached.
        weight: (out, in).
        bias: (out,), or None.

    Returns:
        (n, out).
    """
    return _BinaryLinear.apply(codes, scale, weight, bias, _autocast_type(codes.device.type))


class _BinaryLinear(Function):
    @staticmethod
    def forward(ctx, codes, scale, weight, bias, dtype):
        short, (signs, m) = codes.to(torch.int8), short_signs(weight)
        ctx.save_for_backward(short, signs, m, scale * m)
        ctx.dtype, ctx.has_bias = dtype or codes.dtype, bias is not None
        product = int8_product(short, signs.t()).to(weight.dtype)
        return product * (scale * m) if bias is None else torch.addcmul(bias, product, scale * m)

    @staticmethod
    def backward(ctx, grad):
        codes, signs, m, scale = ctx.saved_tensors
        short = (grad * scale).to(ctx.dtype)
        grad_codes = (short @ signs.to(ctx.dtype)).to(grad.dtype)
        grad_weight = weight_gradient(short.t() @ codes.to(ctx.dtype), m)
        return grad_codes, None, grad_weight, grad.sum(0) if ctx.has_bias else None, None


@compiled
def short_signs(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`weight_forward` with the signs as int8."""
    signs, m = weight_forward.formula(weight)
    return signs.to(torch.int8), m


@compiled
def weight_gradient(grad_signs: Tensor, m: Tensor) -> Tensor:
    """The latent weight's gradient from that of its signs."""
    return grad_signs.to(m.dtype) / m.clamp_min(torch.finfo(m.dtype).tiny)
