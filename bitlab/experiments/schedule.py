"""Schedules: the precisions that training goes through, "W32A32 -> W1A2 -> W1A1", and the settings of each stage.

Source: multi-step distillation, BiT (Liu et al., 2022, arXiv 2205.13016): each stage's student is the
next stage's teacher and its starting point.
"""

import itertools
from dataclasses import dataclass, replace

from bitlab.config import parse_precision
from bitlab.errors import BitlabError, check_number

FULL = "W32A32"
ARROW = " -> "


@dataclass(frozen=True)
class Schedule:
    """A path of precisions from full precision down; build it with `Schedule.parse`."""

    precisions: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, method: str = "bit") -> "Schedule":
        """Read "W32A32 -> W1A4 -> W1A2 -> W1A1"; the leading W32A32 may be left out.

        `method` is that of the `BitConfig`: each has its own precisions (W2 is ternary, for "binarybert" alone).

        Errors: BitlabError for a schedule that names no stage, repeats one, or goes up in precision, and for a
        precision that does not exist.
        """
        parts = [part.strip() for part in str(text).replace("→", "->").split("->")]
        if parts == [""]:
            raise BitlabError("the schedule names no stage: write for instance 'W32A32 -> W1A2 -> W1A1'")
        names = ["W{}A{}".format(*parse_precision(part, method)) for part in parts]
        if names[0] != FULL:
            names.insert(0, FULL)
        if len(names) == 1:
            raise BitlabError(f"schedule {text!r} names no stage after {FULL}: add one, for instance 'W32A32 -> W1A1'")
        for before, after in itertools.pairwise(names):
            _check_step(text, before, after, method)
        return cls(tuple(names))

    @property
    def stages(self) -> tuple[str, ...]:
        """The precisions that are distilled: all but full precision."""
        return self.precisions[1:]

    def history(self, precision: str) -> str:
        """The part of the path that ends at `precision`, as a checkpoint stores it."""
        return ARROW.join(self.precisions[: self.precisions.index(precision) + 1])

    def __str__(self) -> str:
        return ARROW.join(self.precisions)


def _check_step(text: str, before: str, after: str, method: str) -> None:
    old, new = parse_precision(before, method), parse_precision(after, method)
    if old == new:
        raise BitlabError(f"schedule {text!r} repeats {after}: each stage must lower the precision")
    if new[0] > old[0] or new[1] > old[1]:
        raise BitlabError(f"schedule {text!r} goes up in precision from {before} to {after}: stages only go down")


@dataclass(frozen=True)
class StageSettings:
    """How long and how fast one stage trains.

    Args:
        epochs: passes over the training data; ignored where `max_steps` is given.
        max_steps: optimizer steps, or None. Where `epochs` too is given, the smaller of the two budgets counts.
        batch_size: examples a step, over all processes.
        learning_rate: peak rate, after a linear warm-up over `warmup` of the steps, before a linear fall to 0.
        alpha_learning_rate: the same for the alphas.
        weight_decay: of weights; biases, thresholds, LayerNorm and alphas have none.
        bf16: mixed precision: faster on processors and GPUs that have it. Products of codes stay exact.
        group_by_length: batches of sentences of similar length, see `bitlab.distillation.sampling`.
    Errors: BitlabError for an amount or a rate that is not above 0.
    """

    epochs: float
    batch_size: int
    learning_rate: float
    max_steps: int | None = None
    warmup: float = 0.1
    alpha_learning_rate: float = 1e-4
    weight_decay: float = 0.01
    bf16: bool = False
    group_by_length: bool = False

    def __post_init__(self):
        numbers = ("epochs", "batch_size", "learning_rate", "max_steps", "alpha_learning_rate")
        for name in numbers:
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0)

    def part(self, number: int, parts: int, rate: float = 1.0) -> "StageSettings":
        """The settings of part `number` (from 0) of a stage shared evenly, at `rate` times the learning rate."""
        steps = self.max_steps
        if steps is not None:
            steps = max(1, steps * (number + 1) // parts - steps * number // parts)
        return replace(self, epochs=self.epochs / parts, max_steps=steps, learning_rate=rate * self.learning_rate)

    def steps(self, examples: int) -> int:
        """Optimizer steps for a training set of that many examples, at least 1."""
        whole = max(1, round(self.epochs * -(-examples // self.batch_size)))
        return whole if self.max_steps is None else min(whole, self.max_steps)
