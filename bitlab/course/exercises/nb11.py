"""Exercises of notebook 11, SQuAD."""

import numpy as np

from bitlab.course.exercises.registry import exercise
from bitlab.data.metrics import normalize_answer


@exercise("11.1", "F1 of two answers", difficulty=1, minutes=6)
class Overlap:
    cases = [
        (["red", "lamp"], ["red", "lamp"]),
        (["big", "red", "lamp"], ["lamp"]),
        (["na", "na"], ["na"]),
        (["noon"], ["dusk"]),
        ([], ["dusk"]),
    ]

    def reference(found, wanted):
        common = sum(min(found.count(word), wanted.count(word)) for word in set(found))
        return 2 * common / (len(found) + len(wanted))

    def wrong(found, wanted):  # words as a set: "na na" would be as good as "na"
        common = len(set(found) & set(wanted))
        return 2 * common / (len(set(found)) + len(set(wanted)))


@exercise("11.2", "Fair to the article", difficulty=2, minutes=6)
class Exact:
    cases = [("The Kitchen", "kitchen"), ("a theatre", "theatre!"), ("in Paris", "Paris"), ("an  apple", "Apple")]

    def reference(found, wanted):
        return normalize_answer(found) == normalize_answer(wanted)

    def wrong(found, wanted):  # articles inside words go too, and blanks stay
        plain = [text.lower().replace("the", "").replace("a", "") for text in (found, wanted)]
        return plain[0] == plain[1]


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
