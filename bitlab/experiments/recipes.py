"""How each method is trained: its schedule, its losses and its learning rates, where an experiment names no others."""

from dataclasses import dataclass, field

from bitlab.methods import DistillationConfig


@dataclass(frozen=True)
class Phase:
    """One training within a stage, with an optimizer of its own.

    Args:
        loss: what the student learns from; None: the labels.
        rate: factor on the stage's learning rate.
    """

    loss: DistillationConfig | None
    rate: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """A method as an experiment sees it.

    Args:
        method: its name in `BitConfig`.
        schedule, stage_teacher: where the experiment gives none.
        phases: of every distillation stage, which share its steps evenly; None: one, with the experiment's weights.
        released: reductions, optimizer and padding of the released BiT program.
        learning_rates, epochs: by task, where they are not those of the BiT paper. batch_size: of all tasks.
    """

    method: str = "bit"
    schedule: str = "W1A2 -> W1A1"
    stage_teacher: str = "previous"
    phases: tuple[Phase, ...] | None = None
    released: bool = False
    learning_rates: dict[str, float] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    batch_size: int | None = None


# Soft CE + 0.5 hard CE + q + k + v + hidden states, these four by direction (section 3.3 of its paper).
BIBERT = Recipe(
    method="bibert",
    schedule="W1A1",
    phases=(Phase(DistillationConfig(logits=1.0, hidden=0.0, hard=0.5, directions=1.0)),),
    learning_rates={
        **{"cola": 1e-4, "mnli": 5e-5, "mrpc": 2e-4, "qnli": 1e-4},
        **{"qqp": 1e-4, "rte": 1e-5, "sst2": 1e-4, "stsb": 1e-4},
    },
    epochs={"mnli": 5, "qqp": 5, "qnli": 10},
    batch_size=16,
)
# A split model computes what the ternary one does, so only the full-precision model can teach it anything.
BINARYBERT = Recipe(
    method="binarybert",
    schedule="W2A4 -> W1A4",
    stage_teacher="full",
    phases=(
        Phase(DistillationConfig(logits=0.0, hidden=1.0, attention=1.0), rate=2.5),
        Phase(DistillationConfig(logits=1.0, hidden=0.0)),
    ),
)
RECIPES = {"bit": Recipe(), "bit-released": Recipe(released=True), "bibert": BIBERT, "binarybert": BINARYBERT}
