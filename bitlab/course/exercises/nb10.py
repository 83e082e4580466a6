"""Exercises of notebook 10, GLUE."""

import statistics

from bitlab.course.exercises.registry import exercise


@exercise("10.1", "What is kept", difficulty=1, minutes=5)
class Kept:
    tolerance = 1e-6
    cases = [(72.0, 90.1, 0.0), (79.9, 86.3, 68.4), (66.9, 77.0, 68.4), (60.0, 52.7, 52.7)]

    def reference(student, teacher, constant):
        return 100 * (student - constant) / (teacher - constant) if teacher > constant else None

    def wrong(student, teacher, constant):  # a share of the score, the constant answer's part included
        return 100 * student / teacher


@exercise("10.2", "A drop and its spread", difficulty=2, minutes=8)
class Drop:
    cases = [
        ([80.0, 82.0, 81.0], [70.0, 75.0, 71.0]),
        ([64.0, 64.0], [60.0, 58.0]),
        ([90.0, 70.0, 80.0, 85.0], [88.0, 67.0, 79.0, 80.0]),
    ]

    def reference(full, binary):
        drops = [a - b for a, b in zip(full, binary)]
        return statistics.mean(drops), statistics.stdev(drops)

    def wrong(full, binary):  # the spread of the students alone: it counts that teachers differ, too
        return statistics.mean(full) - statistics.mean(binary), statistics.stdev(binary)


@exercise("10.3", "Matthews by counting", difficulty=2, minutes=8)
class Matthews:
    cases = [(50, 10, 30, 10), (5, 0, 5, 0), (3, 40, 200, 7)]

    def reference(tp, fp, tn, fn):
        return (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5

    def wrong(tp, fp, tn, fn):  # that is accuracy, between -1 and 1
        return 2 * (tp + tn) / (tp + fp + tn + fn) - 1
