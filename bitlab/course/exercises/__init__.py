"""The exercises of the series: one module a notebook (`nb02.py` for notebook 02), see `registry`."""

from bitlab.course.exercises.registry import Exercise, agree, every, exercise, find

__all__ = ["Exercise", "agree", "every", "exercise", "find"]
