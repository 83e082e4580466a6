"""Exercises of notebook 07, multi-step distillation."""

from bitlab.course.exercises.registry import exercise


@exercise("07.1", "The factor of a stage change", difficulty=1, minutes=5)
class Factor:
    cases = [(2, 1, False), (4, 2, False), (4, 1, False), (2, 1, True), (4, 1, True), (8, 4, True)]

    def reference(old, new, signed):
        def largest(bits):
            return max(1, 2 ** (bits - 1) - 1) if signed else 2**bits - 1

        return (largest(old) / largest(new)) ** 0.5

    def wrong(old, new, signed):  # a level as high as before, which is too high for the numbers there are
        def largest(bits):
            return max(1, 2 ** (bits - 1) - 1) if signed else 2**bits - 1

        return largest(old) / largest(new)


@exercise("07.2", "Who teaches whom?", difficulty=2, minutes=8)
class Lessons:
    cases = [(["W32A32", "W1A1"], 400), (["W32A32", "W1A2", "W1A1"], 400), (["W32A32", "W1A4", "W1A2", "W1A1"], 400)]

    def reference(path, steps):
        stages = len(path) - 1
        return [(student, teacher, steps // stages) for student, teacher in zip(path[1:], path)]

    def wrong(path, steps):  # the full-precision model teaches every stage
        stages = len(path) - 1
        return [(student, path[0], steps // stages) for student in path[1:]]


@exercise("07.3", "A step that is too long", difficulty=2, minutes=8)
class StepLength:
    cases = [(1,), (10,), (100,), (1000,)]

    def reference(t, b1=0.9, b2=0.999):
        return (1 - b1**t) / (1 - b2**t) ** 0.5

    def wrong(t, b1=0.9, b2=0.999):  # with the correction, every step is one learning rate long
        return 1.0
