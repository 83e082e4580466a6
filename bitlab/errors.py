"""The one exception that bad input raises: its message is a single line that says what, where and what to do."""

import math


class BitlabError(ValueError):
    """Input that bitlab cannot work with.

    The message is one line: what was wrong, where it was found, and what to do about it. The command line
    prints it on standard error and leaves with exit code 2.
    """


def require_positive(**numbers: float | None) -> None:
    """BitlabError that names the first of `numbers` that is neither None nor a finite number above 0."""
    for name, value in numbers.items():
        if value is not None and not 0 < value < math.inf:
            raise BitlabError(f"{name} is {value}: give a number above 0")
