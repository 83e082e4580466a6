"""A binarizer after a linear layer, as thresholds on integers.

A bit that a binarizer sets after `bias + scale * dot` is, for each channel, a monotone function of the integer `dot`:
so there is one smallest dot at which it is 1. It is found by evaluating the float model's own expression, rounding
and ties included, at the integers that a bisection visits. The kernel evaluates that expression itself, and a
threshold is how one sees that nothing is lost by it (notebook 08, and the tests).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from bitlab.binarizers import codes_forward
from bitlab.layers import ElasticBinarizer
from bitlab.packed.backends import affine


def smallest(passes: Callable[[Tensor], Tensor], bound: int, channels: int, device="cpu") -> Tensor:
    """For each channel the smallest integer of [-bound, bound] that passes, or bound + 1: int32 (channels,).

    `passes` takes floats (1, channels) that hold integers and returns truth values; it must be monotone. It is asked
    on `device`, and the result lies there: another kind of device may round otherwise.
    """
    low = torch.full((1, channels), -bound, dtype=torch.int64, device=device)  # everything below low fails
    high = torch.full_like(low, bound + 1)  # high and everything above passes
    while bool((low < high).any()):
        middle = (low + high).div(2, rounding_mode="floor")
        passed = passes(middle.float())
        low, high = torch.where(passed, low, middle + 1), torch.where(passed, middle, high)
    return high[0].int()


def after_linear(scale: Tensor, bias: Tensor | None, binarizer: ElasticBinarizer, width: int, relu: bool) -> Tensor:
    """Thresholds on the dot product of a linear layer of so many inputs, whose output goes through ReLU or not, and
    then into a 1-bit binarizer."""

    def passes(dot: Tensor) -> Tensor:
        y = affine(bias, dot, scale)
        return _bit(torch.relu(y) if relu else y, binarizer)

    return smallest(passes, width, binarizer.channels, binarizer.alpha.device)


def _bit(x: Tensor, binarizer: ElasticBinarizer) -> Tensor:
    return codes_forward(x, binarizer.alpha, binarizer.beta, binarizer.bits, binarizer.signed) > 0
