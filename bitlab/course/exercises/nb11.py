"""Exercises of notebook 11, SQuAD."""

from bitlab.course.exercises import exercise
from bitlab.data.metrics import normalize_answer


@exercise("11.1", "Fair to the article", difficulty=1, minutes=4)
class Exact:
    cases = [("The Kitchen", "kitchen"), ("a theatre", "theatre!"), ("in Paris", "Paris"), ("an  apple", "Apple")]

    def reference(found, wanted):
        return normalize_answer(found) == normalize_answer(wanted)

    def wrong(found, wanted):  # articles inside words go too, and blanks stay
        plain = [text.lower().replace("the", "").replace("a", "") for text in (found, wanted)]
        return plain[0] == plain[1]


@exercise("11.2", "F1 of two answers", difficulty=1, minutes=6)
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


@exercise("11.3", "The best span", difficulty=2, minutes=8)
class BestSpan:
    cases = [
        ([0.0, 2.0, 1.0, 0.0], [0.0, 1.0, 3.0, 0.0], 30),
        ([0.0, 0.0, 3.0, 1.0], [0.0, 4.0, 0.0, 1.0], 30),  # the best end lies before the best start
        ([5.0, 0.0, 0.0, 1.0], [0.0, 0.5, 0.0, 4.0], 2),  # the best pair is too long
        ([1.0], [1.0], 1),
    ]

    def reference(start, end, longest):
        pairs = [(i, j) for i in range(len(start)) for j in range(i, min(len(end), i + longest))]
        return max(pairs, key=lambda pair: start[pair[0]] + end[pair[1]])

    def wrong(start, end, longest):  # each on its own: the end may come before the start
        return start.index(max(start)), end.index(max(end))
