"""The course: what its notebooks share (`lab`), how they are run (`series`) and put on a `site`."""

from bitlab.course.built import as_written, assert_equal
from bitlab.course.lab import ExerciseError, Lab, check, headless, preset, start

__all__ = ["ExerciseError", "Lab", "as_written", "assert_equal", "check", "headless", "preset", "start"]
