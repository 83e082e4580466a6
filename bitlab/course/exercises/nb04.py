"""Exercises of notebook 04, binary attention."""

import torch

from bitlab.course.exercises.registry import exercise


def _looks() -> list[tuple[torch.Tensor, torch.Tensor, float, float]]:
    """(bits of one query's row, signs of the values, two scales): some keys, one key, no key."""
    generator = torch.Generator().manual_seed(4)
    values = 2.0 * torch.randint(0, 2, (5, 4), generator=generator) - 1
    rows = ([1.0, 0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0, 0.0], [0.0] * 5)
    return [(torch.tensor(row), values, 0.3, 1.8) for row in rows]


@exercise("04.1", "How many scores?", difficulty=1, minutes=3)
class PossibleScores:
    cases = [(64,), (32,), (1,), (7,)]

    def reference(width):
        return width + 1

    def wrong(width):  # every integer from -width to width: but one disagreement costs 2
        return 2 * width + 1


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


@exercise("04.3", "Look without multiplying", difficulty=2, minutes=8)
class Look:
    cases = _looks

    def reference(bits, values, p_scale, v_scale):
        return values[bits.bool()].sum(0) * (p_scale * v_scale)

    def wrong(bits, values, p_scale, v_scale):  # bits need not sum to one: the rows are added, not averaged
        return values[bits.bool()].mean(0) * (p_scale * v_scale)
