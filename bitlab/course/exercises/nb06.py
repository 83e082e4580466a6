"""Exercises of notebook 06, distillation."""

import torch
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput

from bitlab.config import DistillationConfig
from bitlab.course.exercises.registry import exercise
from bitlab.distillation.losses import distillation_loss


def _logits(seed: int, *shape: int) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _outputs() -> list[tuple]:
    """(student, teacher, mask): outputs of two models with three hidden states, the later ones quieter."""
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
    student, teacher = (
        SequenceClassifierOutput(
            logits=_logits(seed, 3, 2), hidden_states=tuple(_logits(seed + i, 3, 4, 5) / 4**i for i in range(3))
        )
        for seed in (20, 30)
    )
    return [(student, teacher, mask)]


@exercise("06.1", "The lowest loss", difficulty=1, minutes=5)
class LowestLoss:
    cases = [(torch.tensor([[0.0, 0.0]]),), (_logits(0, 4, 2),), (_logits(1, 8, 3),)]

    def reference(teacher):
        p = teacher.softmax(-1)
        return -(p * p.log()).sum(-1).mean()

    def wrong(teacher):  # "a loss can always reach zero"
        return torch.tensor(0.0)


@exercise("06.2", "The day of the turn", difficulty=2, minutes=6)
class TurnsAfter:
    cases = [
        (0.25, torch.tensor([-0.1, 0.05, -0.1, -0.15, 0.9])),
        (-0.2, torch.tensor([-0.1, 0.1, 0.2, -0.3])),
        (0.5, torch.tensor([-0.1, -0.1, 0.3])),
    ]

    def reference(start, nudges):
        turned = ((start + nudges.cumsum(0)) >= 0) != (start >= 0)
        return int(turned.nonzero()[0]) + 1 if turned.any() else 0

    def wrong(start, nudges):  # each nudge alone, as if there were no latent weight that remembers
        turned = ((start + nudges) >= 0) != (start >= 0)
        return int(turned.nonzero()[0]) + 1 if turned.any() else 0


@exercise("06.3", "What the student is told", difficulty=2, minutes=10)
class Told:
    cases = [(_logits(6, 4, 2), _logits(7, 4, 2)), (_logits(8, 5, 3), _logits(9, 5, 3))]

    def reference(student, teacher):
        return (F.softmax(student, -1) - F.softmax(teacher, -1)) / len(student)

    def wrong(student, teacher):  # of the sum over examples, not of their mean
        return F.softmax(student, -1) - F.softmax(teacher, -1)


@exercise("06.4", "Every layer as loud as the others", difficulty=3, minutes=12)
class Relative:
    cases = _outputs

    def reference(student, teacher, mask):
        return sum(distillation_loss(student, teacher, mask, DistillationConfig(relative=True)).values())

    def wrong(student, teacher, mask):  # the variance of all numbers together, not of each channel about its own mean
        loss, real = distillation_loss(student, teacher, mask)["logits"], mask.bool()
        for s, t in zip(student.hidden_states, teacher.hidden_states):
            loss = loss + (s - t)[real].square().mean() / t[real].var(correction=0)
        return loss
