"""The exercise of notebook 00, start here."""

import torch

from bitlab.course.exercises.registry import exercise


@exercise("00.1", "How many values?", difficulty=1, minutes=2)
class DifferentValues:
    cases = [(torch.tensor([0.5, -0.5, 0.5]),), (torch.zeros(3, 4),), (torch.tensor([[1.0, 2.0], [3.0, 1.0]]),)]

    def reference(x):
        return x.unique().numel()

    def wrong(x):  # all values, not the different ones
        return x.numel()
