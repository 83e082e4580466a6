"""Exercises of notebook 04, binary attention."""

import torch

from bitlab.exercises import exercise


def _rows() -> list[tuple[torch.Tensor, float, torch.Tensor, float]]:
    """(integer scores, scale, which keys are real, alpha); the last key of the first row would take everything."""
    generator = torch.Generator().manual_seed(4)
    scores = 2.0 * torch.randint(-16, 17, (3, 12), generator=generator)
    real = torch.arange(12) < 8
    return [
        (torch.tensor([6.0, 4.0, -2.0, 20.0]), 0.25, torch.tensor([True, True, True, False]), 0.5),
        (scores[0], 0.1, real, 0.2),
        (scores[1], 0.1, torch.ones(12, dtype=torch.bool), 0.2),
        (scores[2], 0.05, real, 0.15),
    ]


def _contexts() -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(probabilities in {-1, +1}, values in {-1, +1}, which keys are real): masked keys got a -1."""
    generator = torch.Generator().manual_seed(5)
    cases = []
    for keys, masked in ((5, 2), (9, 4), (6, 0)):
        signs = 2.0 * torch.randint(0, 2, (keys, 4), generator=generator) - 1
        row = torch.where(torch.arange(keys) % 3 == 0, 1.0, -1.0)
        real = torch.arange(keys) < keys - masked
        cases.append((torch.where(real, row, -1.0), signs, real))
    return cases


@exercise("04.1", "The values of a score", difficulty=1, minutes=4)
class ScoreValues:
    cases = [(4,), (1,), (7,), (64,)]

    def reference(width):
        return list(range(-width, width + 1, 2))

    def wrong(width):  # one disagreement more costs 2, so every other integer is out of reach
        return list(range(-width, width + 1))


@exercise("04.2", "One masked row of bits", difficulty=2, minutes=8)
class MaskedRow:
    cases = _rows

    def reference(scores, scale, real, alpha):
        probabilities = (scores * scale).masked_fill(~real, float("-inf")).softmax(dim=-1)
        return (probabilities > alpha / 2).float()

    def wrong(scores, scale, real, alpha):  # the mask comes too late: padding has had its share of the softmax
        return ((scores * scale).softmax(dim=-1) > alpha / 2).float() * real


@exercise("04.3", "Repair the wrong set", difficulty=2, minutes=8)
class Repair:
    cases = _contexts

    def reference(row, values, real):
        return row @ values + values[~real].sum(dim=0)

    def wrong(row, values, real):  # they were subtracted once already
        return row @ values - values[~real].sum(dim=0)
