"""Exercises of notebook 06, distillation."""

import torch
from torch.nn import functional as F

from bitlab.course.exercises.registry import exercise


def _logits(seed: int, *shape: int) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@exercise("06.1", "The lowest loss", difficulty=1, minutes=5)
class LowestLoss:
    cases = [(torch.tensor([[0.0, 0.0]]),), (_logits(0, 4, 2),), (_logits(1, 8, 3),)]

    def reference(teacher):
        p = teacher.softmax(-1)
        return -(p * p.log()).sum(-1).mean()

    def wrong(teacher):  # "a loss can always reach zero"
        return torch.tensor(0.0)


@exercise("06.2", "Real tokens only", difficulty=2, minutes=8)
class RealTokens:
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
    cases = [(_logits(2, 3, 4, 5), _logits(3, 3, 4, 5), mask), (_logits(4, 1, 4, 2), _logits(5, 1, 4, 2), mask[:1])]

    def reference(student, teacher, mask):
        return (student - teacher)[mask.bool()].square().mean()

    def wrong(student, teacher, mask):  # the padding's error is gone, but it is still counted in the mean
        return ((student - teacher).square() * mask[:, :, None]).mean()


@exercise("06.3", "What the student is told", difficulty=2, minutes=10)
class Told:
    cases = [(_logits(6, 4, 2), _logits(7, 4, 2)), (_logits(8, 5, 3), _logits(9, 5, 3))]

    def reference(student, teacher):
        return (F.softmax(student, -1) - F.softmax(teacher, -1)) / len(student)

    def wrong(student, teacher):  # of the sum over examples, not of their mean
        return F.softmax(student, -1) - F.softmax(teacher, -1)
