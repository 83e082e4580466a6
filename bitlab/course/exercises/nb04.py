"""Exercises of notebook 04, binary attention."""

from types import SimpleNamespace

import torch
from torch import Tensor

from bitlab.attention import binary_attention
from bitlab.course.exercises.registry import exercise
from bitlab.layers import ElasticBinarizer


def _calls() -> list[tuple]:
    """(module, query, key, value, scaling) of two small attentions: as many as the notebook's functions take."""
    return [_call(seed=4, heads=2, tokens=5, width=8), _call(seed=5, heads=1, tokens=3, width=4)]


def _call(seed: int, heads: int, tokens: int, width: int) -> tuple:
    generator = torch.Generator().manual_seed(seed)
    module = SimpleNamespace(training=False, probs_binarizer=_resting(None, 0.5, signed=False))
    for name in ("query", "key", "value"):
        setattr(module, f"{name}_binarizer", _resting(heads * width, 0.8 + 0.3 * torch.rand((), generator=generator)))
    q, k, v = (torch.randn(2, heads, tokens, width, generator=generator) for _ in range(3))
    return module, q, k, v, width**-0.5


def _resting(channels: int | None, alpha: float, signed: bool = True) -> ElasticBinarizer:
    """A binarizer that learns no more."""
    binarizer = ElasticBinarizer(channels, signed=signed).eval().requires_grad_(False)
    binarizer.alpha.fill_(alpha)
    binarizer.initialized.fill_(True)
    return binarizer


def _future(tokens: int) -> Tensor:
    return torch.full((tokens, tokens), -torch.inf).triu(1)


@exercise("04.1", "How many ways to look?", difficulty=1, minutes=3)
class WaysToLook:
    cases = [(13,), (1,), (2,), (20,)]

    def reference(tokens):
        return 2**tokens - 1

    def wrong(tokens):  # how many tokens, not which ones
        return tokens


@exercise("04.2", "A score from two integers", difficulty=2, minutes=6)
class ScoreOfBits:
    cases = [
        (0b1011, 0b1110, 4, 1.0, 1.0),
        (0b1011, 0b1011, 4, 0.5, 2.0),
        (0, 0b101, 16, 1.8, 1.9),
        (2**64 - 1, 0, 64, 1.0, 0.5),
    ]

    def reference(q, k, width, q_scale, k_scale):
        return (width - 2 * (q ^ k).bit_count()) * q_scale * k_scale / width**0.5

    def wrong(q, k, width, q_scale, k_scale):  # a disagreement loses a +1 and gains a -1
        return (width - (q ^ k).bit_count()) * q_scale * k_scale / width**0.5


@exercise("04.3", "No looking ahead", difficulty=2, minutes=8)
class Causal:
    cases = _calls

    def reference(module, query, key, value, scaling):
        return binary_attention(module, query, key, value, _future(query.shape[2]), scaling)[0]

    def wrong(module, query, key, value, scaling):  # a mask that hides the past, and the token itself not
        return binary_attention(module, query, key, value, _future(query.shape[2]).T, scaling)[0]


@exercise("04.4", "A mean instead of a sum", difficulty=3, minutes=12)
class Mean:
    cases = _calls

    def reference(module, query, key, value, scaling):
        context, used = binary_attention(module, query, key, value, None, scaling)
        ones = (used > 0).sum(-1).transpose(1, 2)[..., None]
        return context / module.probs_binarizer.alpha / ones.clamp_min(1)

    def wrong(module, query, key, value, scaling):  # alpha is still there, and a row without a one divides by zero
        context, used = binary_attention(module, query, key, value, None, scaling)
        return context / (used > 0).sum(-1).transpose(1, 2)[..., None]
