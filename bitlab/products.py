"""Exact products of codes: int8 where torch has it, float32 under autocast, and plain floats in an exported model."""

import torch
from torch import Tensor
from torch.autograd import Function

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
