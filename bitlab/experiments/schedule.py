"""Schedules: the precisions that training goes through, "W32A32 -> W1A2 -> W1A1", and the settings of each stage.

Source: multi-step distillation, BiT (Liu et al., 2022, arXiv 2205.13016): each stage's student is the
next stage's teacher and its starting point.
"""

from dataclasses import dataclass, replace

from bitlab.errors import BitlabError
from bitlab.methods import parse_precision
from bitlab.terminal.options import AMOUNT, BATCH, COUNT, RATE, check, option

FULL = "W32A32"
ARROW = " -> "


def parse_schedule(text: str, method: str = "bit") -> tuple[str, ...]:
    """The precisions of "W32A32 -> W1A4 -> W1A2 -> W1A1", in their order; the leading W32A32 may be left out.

    `method` is that of the `BitConfig`: each has its own precisions (W2 is ternary, for "binarybert" alone).

    Raises:
        BitlabError: for a schedule that names no stage, repeats one, or goes up in precision, and for a precision
            that does not exist.
    """
    parts = [part.strip() for part in str(text).replace("→", "->").split("->")]
    if parts == [""]:
        raise BitlabError("the schedule names no stage: write for instance 'W32A32 -> W1A2 -> W1A1'")
    path = [parse_precision(part, method) for part in parts]
    path = path if path[0] == (32, 32) else [(32, 32), *path]
    names = ["W{}A{}".format(*bits) for bits in path]
    if len(path) == 1:
        raise BitlabError(f"schedule {text!r} names no stage after {FULL}: add one, for instance 'W32A32 -> W1A1'")
    for before, after, old, new in zip(names, names[1:], path, path[1:]):
        if old == new:
            raise BitlabError(f"schedule {text!r} repeats {after}: each stage must lower the precision")
        if new[0] > old[0] or new[1] > old[1]:
            raise BitlabError(f"schedule {text!r} goes up in precision from {before} to {after}: stages only go down")
    return tuple(names)


@dataclass(frozen=True)
class StageSettings:
    """How long and how fast one stage trains.

    Where both `epochs` and `max_steps` are given, the smaller of the two budgets counts. The rate rises linearly over
    `warmup` of the steps and falls linearly to 0.
    """

    epochs: float = option(help="passes over the training data", **AMOUNT)
    batch_size: int = option(help="examples a step, over all processes", **BATCH)
    learning_rate: float = option(help="peak rate", **RATE)
    max_steps: int | None = option(None, "optimizer steps", **COUNT)
    warmup: float = option(0.1, "share of the steps", at_least=0, at_most=1)
    alpha_learning_rate: float = option(1e-4, "peak rate of the alphas", **RATE)
    weight_decay: float = option(0.01, "of weights; biases, thresholds, LayerNorm and alphas have none", at_least=0)
    bf16: bool = option(False, "mixed precision: faster where the machine has it; products of codes stay exact")
    group_by_length: bool = option(False, "batches of similar length, see `bitlab.distillation.sampling`")

    def __post_init__(self):
        check(self)

    def share(self, number: int, shares: int, rate: float = 1.0) -> "StageSettings":
        """The settings of share `number` (from 0) of a stage, evenly divided, at `rate` times the learning rate."""
        steps = self.max_steps
        if steps is not None:
            steps = max(1, steps * (number + 1) // shares - steps * number // shares)
        return replace(self, epochs=self.epochs / shares, max_steps=steps, learning_rate=rate * self.learning_rate)

    def steps(self, examples: int) -> int:
        """Optimizer steps for a training set of that many examples, at least 1."""
        whole = max(1, round(self.epochs * -(-examples // self.batch_size)))
        return whole if self.max_steps is None else min(whole, self.max_steps)
