"""The one exception that bad input raises, and the two checks that most settings need."""

import math
from collections.abc import Collection
from numbers import Integral, Real


class BitlabError(ValueError):
    """Input that bitlab cannot work with.

    The message is one line: what was wrong, where it was found, and what to do about it. The command line
    prints it on standard error and leaves with exit code 2.
    """


def check_number(
    name: str,
    value,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    whole: bool = False,
) -> None:
    """Refuse a setting that is no finite number within its bounds.

    Args:
        name: of the setting, as its user writes it.
        at_least, above, at_most, below: bounds; None where there is none.
        whole: whether it has to be a whole number.
    Raises:
        BitlabError: "epochs is -1: give a number above 0".
    """
    fits = (
        isinstance(value, Integral if whole else Real)
        and not isinstance(value, bool)
        and -math.inf < value < math.inf
        and (at_least is None or value >= at_least)
        and (above is None or value > above)
        and (at_most is None or value <= at_most)
        and (below is None or value < below)
    )
    if not fits:
        bounds = {"of at least": at_least, "above": above, "of at most": at_most, "below": below}
        wanted = " and ".join(f"{word} {bound}" for word, bound in bounds.items() if bound is not None)
        kind = "whole number" if whole else "number"
        raise BitlabError(f"{name} is {value!r}: give a {kind} {wanted}".rstrip())


def check_choice(what: str, value, choices: Collection) -> None:
    """Refuse a value that is none of the choices.

    Raises:
        BitlabError: "method 'x' does not exist: choose bit, bibert or binarybert".
    """
    if value not in choices:
        raise BitlabError(f"{what} {value!r} does not exist: choose {either(choices)}")


def either(choices: Collection) -> str:
    """ "a, b or c" of the choices, in their order."""
    *others, last = map(str, choices)
    return f"{', '.join(others)} or {last}" if others else last
