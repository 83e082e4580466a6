"""The exercises of the series: one module a notebook (`nb02.py` for notebook 02), one class an exercise.

    from bitlab.course.exercises.registry import exercise

    @exercise("02.1", "Bytes of a layer", difficulty=1, minutes=3)
    class Bytes:
        cases = [(768 * 768, 1), (768 * 768, 32)]     # argument tuples; or a function that returns them

        def reference(parameters, bits):
            return parameters * bits / 8

        def wrong(parameters, bits):                  # a mistake that people make: it must fail
            return parameters / 8

Optional: `tolerance` (relative and absolute, 1e-4 by default). An answer is compared with `reference` on every case,
so results may be numbers, strings, tensors, arrays, or tuples, lists and dicts of them. Where there are many right
answers (a model of one's own), `judge(answer)` takes the place of cases: it returns None, or "expected ..., got ...",
and passes what the answer returned through `attempted`. `wrong` may be a list of mistakes. The tests run reference,
stub and wrong answers of every exercise.
"""

import importlib
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from bitlab.errors import BitlabError

PACKAGE = __name__.rpartition(".")[0]
_REGISTRY: dict[str, "Exercise"] = {}


@dataclass(frozen=True)
class Exercise:
    """One exercise: what it is called, how hard it is (1 to 3), how long it takes, and how an answer is
    judged."""

    id: str
    title: str
    difficulty: int
    minutes: int
    reference: Callable
    wrong: list[Callable]
    cases: Callable
    tolerance: float
    own_judge: Callable | None = None

    def judge(self, answer: Callable) -> str | None:
        """None if `answer` agrees with the reference on every case, else "expected ..., got ...";
        NotImplemented (returned or raised as NotImplementedError) passes through as NotImplementedError."""
        if self.own_judge:
            return self.own_judge(answer)
        for arguments in self.cases():
            got = attempted(answer(*_copies(arguments)))
            expected = self.reference(*_copies(arguments))
            if not agree(expected, got, self.tolerance):
                called = ", ".join(_short(argument, 40) for argument in arguments)
                return f"expected {_short(expected)}, got {_short(got)} for ({called})"
        return None


def attempted(got):
    """What an answer returned; NotImplementedError if that says that there is none yet."""
    if got is NotImplemented:
        raise NotImplementedError
    return got


def exercise(id: str, title: str, difficulty: int, minutes: int) -> Callable[[type], type]:
    """Register a class with `cases`, `reference` and `wrong` as the exercise `id` ("02.1")."""
    if not re.fullmatch(r"\d\d\.\d+", id) or difficulty not in (1, 2, 3):
        raise BitlabError(f'exercise {id!r}: write "notebook.number" ("02.1") and a difficulty of 1, 2 or 3')

    def register(entry: type) -> type:
        if id in _REGISTRY and _REGISTRY[id].title != title:
            raise BitlabError(f"two exercises are called {id}: {_REGISTRY[id].title!r} and {title!r}")
        cases = getattr(entry, "cases", ())
        _REGISTRY[id] = Exercise(
            id=id,
            title=title,
            difficulty=difficulty,
            minutes=minutes,
            reference=entry.reference,
            wrong=entry.wrong if isinstance(entry.wrong, list) else [entry.wrong],
            cases=cases if callable(cases) else lambda: cases,
            tolerance=getattr(entry, "tolerance", 1e-4),
            own_judge=getattr(entry, "judge", None),
        )
        return entry

    return register


def find(id: str) -> Exercise:
    """The exercise called `id`; a BitlabError that lists the notebook's exercises if there is none."""
    name = f"{PACKAGE}.nb{id.split('.')[0]}"
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
    if id not in _REGISTRY:
        known = ", ".join(sorted(key for key in _REGISTRY if key[:2] == id[:2])) or "none in that notebook"
        raise BitlabError(f"there is no exercise {id!r}: choose from {known}")
    return _REGISTRY[id]


def every() -> list[Exercise]:
    """All exercises of the series, in order."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)], f"{PACKAGE}."):
        importlib.import_module(module.name)
    return [_REGISTRY[key] for key in sorted(_REGISTRY)]


def agree(expected, got, tolerance: float = 1e-4) -> bool:
    """Whether two answers are the same: numbers and tensors by value and shape (types may differ), the rest
    by ==."""
    if isinstance(expected, dict):
        return (
            isinstance(got, dict)
            and expected.keys() == got.keys()
            and all(agree(value, got[key], tolerance) for key, value in expected.items())
        )
    if isinstance(expected, (tuple, list)):
        return (
            isinstance(got, (tuple, list))
            and len(expected) == len(got)
            and all(agree(a, b, tolerance) for a, b in zip(expected, got, strict=True))
        )
    if isinstance(expected, str) or expected is None:
        return expected == got
    try:
        a, b = (torch.as_tensor(value).detach().to("cpu", torch.float64) for value in (expected, got))
    except (TypeError, ValueError, RuntimeError):
        return False
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def _copies(arguments: tuple) -> list:
    """An answer may write into its tensors without spoiling the reference's."""
    return [value.clone() if isinstance(value, torch.Tensor) else value for value in arguments]


def _short(value, width: int = 100) -> str:
    """A value on one line."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        shape = f" of shape {tuple(value.shape)}" if value.ndim else ""
        text = str([round(x, 4) for x in value.flatten()[:8].tolist()] if value.ndim else round(value.item(), 6))
        text += shape
    else:
        text = " ".join(repr(value).split())
    return text if len(text) <= width else text[: width - 3] + "..."
