"""What an experiment is: every choice that can be made of it, and what follows from the ones that were."""

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path

from bitlab.config import ALPHA_POLICIES, DistillationConfig
from bitlab.data.tasks import SQUAD, get_task
from bitlab.errors import BitlabError, check_number
from bitlab.experiments.recipes import Phase, Recipe, get_recipe
from bitlab.experiments.schedule import FULL, Schedule, StageSettings

PRESETS = ("quick", "full")
TEACHERS = ("previous", "full", "both")
SELECTIONS = ("last", "best")
POSITIVE = ("epochs", "max_steps", "batch_size", "learning_rate", "alpha_learning_rate", "teacher_epochs")
POSITIVE += ("teacher_learning_rate", "train_examples", "temperature")


@dataclass(frozen=True)
class Experiment:
    """What to run. Where a number is None, the preset's or the task's own is taken.

    Args:
        task: a GLUE task, for instance "rte", or "squad". model: "sample", "minilm", a hub id or a folder.
        data: "auto", "sample", "hub" or a folder of original files. train_examples: use only the first so many.
        schedule: for instance "W32A32 -> W1A2 -> W1A1". method: "bit", "bit-released" for the reductions,
            optimizer and padding of the released program, or a rival, "bibert" or "binarybert". Methods differ in
            their defaults (`bitlab.experiments.recipes`), the rivals also in their loss.
        preset: "quick" (steps counted in hundreds) or "full" (the paper's epochs). seed: of everything random.
        teacher: a fine-tuned full-precision model; None: one is fine-tuned first.
        start: a binary model, for instance of `bitlab distil`, whose encoder the first stage starts from, brought to
            that stage's precision; None: the full-precision model's own weights.
        augment: a table of `bitlab augment` (its folder or train.tsv) that the distillation stages train on; the
            teacher is fine-tuned on `data` all the same. Epochs count passes over `data`, so that the budget is equal.
        epochs, max_steps, batch_size, learning_rate, alpha_learning_rate: of each distillation stage (max_steps: of
            the teacher's training too).
        teacher_epochs, teacher_learning_rate: of the fine-tuning.
        alpha: what becomes of the scales at a stage change: "reinit", "carry" or "rescale".
        stage_teacher: a stage learns from the "previous" stage's model, the "full"-precision one, or "both"; the
            method's own if None.
        selection: evaluate on dev once at the "last" step, or keep the "best" of ten dev evaluations.
        logit_weight, hidden_weight, relative_hidden, attention_weight, temperature: see `DistillationConfig`; not
            for the rivals.
        bf16: train in mixed precision (evaluation is in float32).
        group_by_length: train in batches of sentences of similar length: less padding, see `distillation.sampling`.
        dropout: of the student in training; the model's own (BERT's: 0.1) if None.
        max_length, stride, question_length: SQuAD's windows in tokens, see `bitlab.data.squad.WindowSizes`.
    """

    task: str
    model: str = "sample"
    data: str = "auto"
    schedule: str | None = None
    method: str = "bit"
    preset: str = "quick"
    seed: int = 0
    teacher: str | None = None
    start: str | None = None
    train_examples: int | None = None
    augment: str | None = None
    epochs: float | None = None
    max_steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    alpha_learning_rate: float = 1e-4
    teacher_epochs: float | None = None
    teacher_learning_rate: float | None = None
    alpha: str = "rescale"
    stage_teacher: str | None = None
    selection: str = "last"
    logit_weight: float = 1.0
    hidden_weight: float = 1.0
    relative_hidden: bool = False
    attention_weight: float = 0.0
    temperature: float = 1.0
    bf16: bool = False
    group_by_length: bool = False
    dropout: float | None = None
    max_length: int | None = None
    stride: int | None = None
    question_length: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "task", get_task(self.task).name)
        recipe = self.recipe
        schedule = recipe.schedule if self.schedule is None else self.schedule
        object.__setattr__(self, "schedule", str(Schedule.parse(schedule, recipe.method)))
        object.__setattr__(self, "stage_teacher", self.stage_teacher or recipe.stage_teacher)
        choices = {"preset": PRESETS, "stage_teacher": TEACHERS, "selection": SELECTIONS}
        for name, known in (choices | {"alpha": ALPHA_POLICIES}).items():
            if getattr(self, name) not in known:
                raise BitlabError(f"{name} {getattr(self, name)!r} does not exist: choose {', '.join(known)}")
        for name in POSITIVE:
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0)
        weights = ("logit_weight", "hidden_weight", "attention_weight")
        for name in weights:
            if not 0 <= getattr(self, name) < math.inf:
                raise BitlabError(f"{name} is {getattr(self, name)}: give 0 or a number above")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise BitlabError(f"dropout is {self.dropout}: give a number from 0 to below 1")
        if not any(getattr(self, name) for name in weights):
            raise BitlabError(f"{', '.join(weights)} are all 0: there is nothing to learn from")
        loss = (*weights, "relative_hidden", "temperature")
        given = [f.name for f in fields(self) if f.name in loss and getattr(self, f.name) != f.default]
        if recipe.phases and given:
            raise BitlabError(f"method {self.method} has its own loss: leave {', '.join(given)} alone")
        if self.augment and self.train_examples:
            raise BitlabError("augment and train_examples exclude each other: a table has rows made of all examples")
        if not 0 <= self.seed < 2**31:
            raise BitlabError(f"seed is {self.seed}: give a whole number from 0 to {2**31 - 1}")

    @property
    def folder_name(self) -> str:
        """Where the run goes unless told otherwise: task, method, model, path and seed in one name."""
        path = "-".join(self.path.stages)
        extras = ("-started" if self.start else "") + ("-augmented" if self.augment else "")
        return f"{self.task}-{self.method}-{Path(self.model).name}-{path}-{self.preset}{extras}-seed{self.seed}"

    @property
    def recipe(self) -> Recipe:
        """What its method brings along."""
        return get_recipe(self.method)

    @property
    def path(self) -> Schedule:
        """The schedule, parsed."""
        return Schedule.parse(self.schedule, self.recipe.method)

    def phases(self) -> tuple[Phase, ...]:
        """The trainings that make up a distillation stage, each with its loss."""
        if self.recipe.phases:
            if get_task(self.task).num_labels > 1:
                return self.recipe.phases
            # of a regression BiBERT's students learn the teacher's number alone
            return tuple(replace(phase, loss=replace(phase.loss, hard=0.0)) for phase in self.recipe.phases)
        weights = {
            "logits": self.logit_weight,
            "hidden": self.hidden_weight,
            "relative": self.relative_hidden,
            "attention": self.attention_weight,
            "temperature": self.temperature,
        }
        loss = DistillationConfig.released(**weights) if self.recipe.released else DistillationConfig(**weights)
        return (Phase(loss),)

    def settings(self, precision: str) -> StageSettings:
        """Epochs, steps, batch and learning rate of a stage ("W32A32": the teacher's fine-tuning)."""
        task = get_task(self.task)
        quick = self.preset == "quick"
        small = self.model == "sample"
        options = {"bf16": self.bf16, "group_by_length": self.group_by_length}
        if precision == FULL:
            rate = self.teacher_learning_rate or (5e-4 if small else 5e-5)
            epochs = self.teacher_epochs or (1000 if quick else min(5, task.epochs))
            steps = self.max_steps or ((300 if small else 60) if quick and not self.teacher_epochs else None)
            return StageSettings(epochs, 32, rate, steps, **options)
        stages, recipe = len(self.path.stages), self.recipe
        rate = self.learning_rate or (5e-4 if small else recipe.learning_rates.get(self.task, task.learning_rate))
        epochs = self.epochs or (1000 if quick else recipe.epochs.get(self.task, task.epochs))
        steps = self.max_steps or (((400 if small else 60) // stages) if quick and not self.epochs else None)
        batch = self.batch_size or (32 if quick else recipe.batch_size or task.batch_size)
        warmup = 0.2 if task is SQUAD else 0.1
        return StageSettings(epochs, batch, rate, steps, warmup, self.alpha_learning_rate, **options)
