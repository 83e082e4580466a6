"""Exercises of notebook 11, SQuAD."""

import numpy as np
import torch

from bitlab.course.exercises.registry import exercise


@exercise("11.1", "Step or overlap", difficulty=1, minutes=5)
class Stepping:
    cases = [(100, 40, 10), (100, 40, 40), (30, 40, 10), (600, 317, 128), (65, 32, 22)]

    def reference(tokens, room, step):
        begins = [0]
        while begins[-1] + room < tokens:
            begins.append(begins[-1] + step)
        return [(begin, min(begin + room, tokens)) for begin in begins]

    def wrong(tokens, room, step):  # the step taken for an overlap
        begins = [0]
        while begins[-1] + room < tokens and step < room:
            begins.append(begins[-1] + room - step)
        return [(begin, min(begin + room, tokens)) for begin in begins]


@exercise("11.2", "Both edges at once", difficulty=2, minutes=8)
class Pairs:
    cases = [
        (torch.tensor([0.0, 3.0, 0.0, 1.0]), torch.tensor([0.0, 0.0, 3.0, 1.0]), 30),
        (torch.tensor([0.0, 0.0, 4.0]), torch.tensor([4.0, 0.0, 1.0]), 30),  # surest start behind surest end
        (torch.tensor([2.0, 0.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 0.0, 2.0]), 2),  # surest pair too long
    ]

    def reference(start, end, longest):
        score = start[:, None] + end
        gap = torch.arange(len(end)) - torch.arange(len(start))[:, None]
        return score[(gap >= 0) & (gap < longest)].softmax(0).max()

    def wrong(start, end, longest):  # each end on its own
        return start.softmax(0).max() * end.softmax(0).max()


@exercise("11.3", "No answer", difficulty=2, minutes=8)
class AnswerOrNone:
    # three tokens of question, then a paragraph of three words, "the red lamp"
    offsets = np.array([[-1, -1], [-1, -1], [-1, -1], [0, 3], [4, 7], [8, 12]])
    cases = [
        (np.array([1.0, 0, 0, 4, 3, 0]), np.array([1.0, 0, 0, 0, 1, 5]), offsets),
        (np.array([6.0, 0, 0, 4, 3, 0]), np.array([6.0, 0, 0, 0, 1, 5]), offsets),
        (np.array([3.0, 0, 0, 0, 1, 4]), np.array([2.5, 0, 0, 4, 1, 1]), offsets),  # surest start behind surest end
        (np.array([0.5, 9]), np.array([0.5, 9]), offsets[:2]),  # no token of a paragraph
    ]

    def reference(start, end, offsets):
        own = [i for i, (begin, _) in enumerate(offsets) if begin >= 0]
        pairs = [(start[i] + end[j], offsets[i][0], offsets[j][1]) for i in own for j in own if i <= j]
        best = max(pairs, default=None)
        return None if best is None or start[0] + end[0] > best[0] else tuple(map(int, best[1:]))

    def wrong(start, end, offsets):  # each end on its own
        if start[0] == max(start) and end[0] == max(end):
            return None
        return int(offsets[start.argmax()][0]), int(offsets[end.argmax()][1])
