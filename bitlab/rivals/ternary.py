"""TernaryBERT's weights: three levels, -s, 0 and +s.

Source: TernaryBERT (Zhang et al., 2020, arXiv 2009.12812), which takes them from ternary weight networks, TWN
(Li et al., 2016, arXiv 1605.04711).
"""

from torch import Tensor

from bitlab.binarizers import straight_through

THRESHOLD = 0.7  # of the mean magnitude


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
