"""Exercises of notebook 09, rivals and augmentation."""

import math

import torch

from bitlab.course.exercises.registry import exercise
from bitlab.rivals.bibert import direction_distance
from bitlab.rivals.binarybert import split_ternary


def _draw(*shape: int, seed: int = 9) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@exercise("09.1", "What comes back", difficulty=1, minutes=4)
class ComesBack:
    cases = [
        (torch.tensor([2.0, -1.0, 0.0, 0.5]), torch.ones(4)),
        (torch.tensor([-0.3, -1.2, 1.0, -0.9]), torch.tensor([1.0, 2.0, -3.0, 0.5])),
        (_draw(2, 3), _draw(2, 3, seed=1)),
    ]

    def reference(scores, g):
        return g * (scores.abs() <= 1)

    def wrong(scores, g):  # where the bit is 1: a key that was left could never come back
        return g * (scores > 0)


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


@exercise("09.3", "Row by row", difficulty=2, minutes=6)
class RowByRow:
    cases = [(_draw(3, 16) * torch.tensor([[1.0], [5.0], [0.1]]),), (_draw(10, 40, seed=2),)]

    def reference(table):
        return split_ternary(table, per_row=True)

    def wrong(table):  # one scale for the whole table
        return split_ternary(table)


@exercise("09.4", "Only the direction", difficulty=2, minutes=8)
class OnlyTheDirection:
    cases = [(_draw(4, 4), _draw(4, 4, seed=1)), (_draw(3, 5), -7 * _draw(3, 5)), (_draw(6, 2), 3 * _draw(6, 2))]

    def reference(student, teacher):
        return direction_distance(student, teacher)

    def wrong(student, teacher):  # sizes count here
        return (student - teacher).norm() / teacher.norm()
