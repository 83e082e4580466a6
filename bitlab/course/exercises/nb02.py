"""Exercises of notebook 02, two-set binarization."""

import math

import torch

from bitlab.course.exercises import exercise


def _never_negative() -> list[tuple[torch.Tensor]]:
    """Odd numbers of distinct entries, so that there is one median."""
    generator = torch.Generator().manual_seed(2)
    probabilities = torch.randn(3, 7, generator=generator).softmax(dim=-1)
    return [(torch.tensor([0.1, 0.7, 0.2]),), (probabilities,), (torch.rand(101, generator=generator),)]


@exercise("02.1", "The entropy of a bit", difficulty=1, minutes=4)
class Entropy:
    cases = [
        (torch.tensor([0.0, 1.0, 1.0, 0.0]),),
        (torch.tensor([0, 0, 0, 1]),),
        (torch.ones(2, 3),),
        (torch.zeros(5),),
    ]

    def reference(bits):
        p = bits.float().mean()
        return (torch.special.entr(p) + torch.special.entr(1 - p)) / math.log(2)

    def wrong(bits):  # natural logarithms
        p = bits.float().mean()
        return torch.special.entr(p) + torch.special.entr(1 - p)


@exercise("02.2", "The most talkative bits", difficulty=2, minutes=8)
class MostInformative:
    cases = _never_negative

    def reference(x):
        return 2 * x.median()

    def wrong(x):  # the threshold, not the scale
        return x.median()


@exercise("02.3", "Two free levels", difficulty=3, minutes=12)
class FreeLevels:
    cases = [
        (torch.tensor([0.0, 1.0, 2.0, 9.0]), 1.5),
        (torch.tensor([-3.0, -1.0, 1.0, 5.0]), -1.0),
        (torch.arange(12.0).reshape(3, 4), 4.0),
    ]

    def reference(x, threshold):
        above = x > threshold
        return x[~above].mean(), x[above].mean()

    def wrong(x, threshold):  # the set {0, h}: the lower side is not zero here
        return 0.0, x[x > threshold].mean()
