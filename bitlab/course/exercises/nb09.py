"""Exercises of notebook 09, rivals and augmentation."""

import math

import torch

from bitlab.course.exercises.registry import exercise
from bitlab.rivals.binarybert import ternary_codes


def _weights() -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(weights, ternary codes, ternary scale), in float64."""
    generator = torch.Generator().manual_seed(9)
    found = [torch.tensor([1.0, -0.1, 0.2, -0.8], dtype=torch.float64)]
    found += [torch.randn(size, generator=generator, dtype=torch.float64) for size in (16, 100)]
    return [(w, *ternary_codes(w)) for w in found]


@exercise("09.1", "Look where the score is positive", difficulty=1, minutes=3)
class StepAttention:
    cases = [
        (torch.tensor([2.0, -1.0, 0.0, 0.5]), torch.zeros(4)),
        (torch.tensor([3.0, 1.0, -0.2, 0.0]), torch.tensor([0.0, torch.finfo(torch.float32).min, 0.0, 0.0])),
        (torch.tensor([[-1.0, -2.0], [4.0, 0.1]]), torch.tensor([[0.0, -math.inf]])),
    ]

    def reference(scores, mask):
        return (scores + mask > 0).float()

    def wrong(scores, mask):  # a score of 0 is one that dropout removed: it must not attend
        return (scores + mask >= 0).float()


@exercise("09.2", "How many sentences?", difficulty=2, minutes=5)
class Rewritings:
    cases = [
        ([["film", "plot"], ["warm"]],),
        ([["film", "plot", "cast"], [], ["warm", "bright"]],),
        ([],),
        ([["dull"] * 1] * 4,),
    ]

    def reference(choices):
        return math.prod(1 + len(words) for words in choices) - 1

    def wrong(choices):  # a word may also stay as it is
        return math.prod(len(words) for words in choices)


@exercise("09.3", "What the zeros are moved by", difficulty=3, minutes=12)
class ZeroShift:
    cases = _weights

    def reference(w, codes, scale):
        return (scale * w.numel() - w.abs().sum()) / (2 * (codes == 0).sum())

    def wrong(w, codes, scale):  # c goes into both halves of a zero, so it counts twice
        return (scale * w.numel() - w.abs().sum()) / (codes == 0).sum()
