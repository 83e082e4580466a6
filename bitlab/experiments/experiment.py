"""What an experiment is: every choice that can be made of it, and what follows from the ones that were.

A field is stated once, here: the command line's options, the checks and result.json's "config" come from it. It
needs no torch, so that `--help` need not wait.
"""

import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path

from bitlab.data.tasks import SQUAD, TASKS, Task, get_task
from bitlab.errors import BitlabError
from bitlab.experiments.recipes import RECIPES, Phase, Recipe
from bitlab.experiments.schedule import ARROW, FULL, StageSettings, parse_schedule
from bitlab.methods import ALPHA_POLICIES, DistillationConfig
from bitlab.terminal.options import AMOUNT, BATCH, COUNT, RATE, SEED, WEIGHT, check, option, words

WEIGHTS = ("logit_weight", "hidden_weight", "attention_weight")
LOSS = (*WEIGHTS, "relative_hidden", "temperature")
MODELS = "sample, minilm, a hub id or a folder"
MODEL = {"path": True, "metavar": "MODEL"}
TOKENS = {"at_most": 10**5, "only": "squad", "told": True}


@dataclass(frozen=True)
class Experiment:
    """What to run. Where a number is None, the preset's or the task's own is taken.

    A rival's loss is its method's: the weights and the temperature are not for it. The student is made from the
    teacher if one is given. Epochs count passes over `data`, also of an augmented table, so that budgets are equal.
    Every field's `help` says what it is; the loss's are of `DistillationConfig`, the windows' of `WindowSizes`.
    """

    task: str | Task = option(help='a GLUE task, for instance "rte", or "squad"; or a `Task` of your own', told=True)
    model: str = option("sample", MODELS, path=True, told=True)
    data: str = option("auto", "auto, sample, hub or a folder of original files", path=True, told=True)
    schedule: str | None = option(
        None,
        "precisions after full precision, for instance 'W1A4 -> W1A2 -> W1A1'",
        default_words="the method's; for bit 'W1A2 -> W1A1'",
        told=True,
    )
    method: str = option("bit", "how to binarize and train", choices=tuple(RECIPES), told=True)
    preset: str = option(
        "quick", "budget: some hundred steps, or the paper's epochs", choices=("quick", "full"), told=True
    )
    seed: int = option(0, "of everything random", told=True, **SEED)
    teacher: str | None = option(
        None, "a fine-tuned full-precision model, instead of fine-tuning one", told=True, **MODEL
    )
    start: str | None = option(
        None, "a binary model, for instance of `bitlab distil`, whose encoder the first stage starts from", **MODEL
    )
    train_examples: int | None = option(None, "use only the first so many training examples", told=True, **COUNT)
    augment: str | None = option(
        None,
        "distil on this table of `bitlab augment`: its folder or its train.tsv; the teacher is fine-tuned without it",
        path=True,
        metavar="PATH",
        told=True,
    )
    epochs: float | None = option(
        None, "passes over the training data, of each distillation stage", told=True, **AMOUNT
    )
    max_steps: int | None = option(
        None, "at most so many optimizer steps a stage, the teacher's included", told=True, **COUNT
    )
    batch_size: int | None = option(None, "examples a step, of each distillation stage", told=True, **BATCH)
    learning_rate: float | None = option(None, "peak rate of each distillation stage", told=True, **RATE)
    alpha_learning_rate: float = option(1e-4, "the same for the scales", told=True, **RATE)
    teacher_epochs: float | None = option(None, "of the teacher's fine-tuning", told=True, **AMOUNT)
    teacher_learning_rate: float | None = option(None, "of the teacher's fine-tuning", told=True, **RATE)
    alpha: str = option("rescale", "what becomes of the scales at a stage change", choices=ALPHA_POLICIES)
    stage_teacher: str | None = option(
        None,
        "whose answers a stage learns",
        choices=("previous", "full", "both"),
        default_words="the method's; for bit previous",
    )
    selection: str = option(
        "last",
        "dev is used once, or ten times: to tell the best score beside the last one, or to keep the best model",
        choices=("last", "both", "best"),
    )
    logit_weight: float = option(1.0, "of the answers in the loss", **WEIGHT)
    hidden_weight: float = option(1.0, "of the hidden states in the loss", **WEIGHT)
    relative_hidden: bool = option(False, "hidden states count alike: errors over the variance of the teacher's")
    attention_weight: float = option(0.0, "of the attention scores in the loss", **WEIGHT)
    temperature: float = option(1.0, "that answers are divided by in the loss: above 1, doubts show more", above=0)
    bf16: bool = option(False, "train in mixed precision: faster where the machine has bf16", told=True)
    group_by_length: bool = option(False, "train in batches of similar length: less padding, faster")
    dropout: float | None = option(
        None, "of the student in training", at_least=0, below=1, default_words="the model's own"
    )
    max_length: int | None = option(
        None, "tokens of a window", at_least=8, default_words="384, or what the model reads", **TOKENS
    )
    stride: int | None = option(
        None, "tokens that a window shares with the one before it", at_least=0, default_words="128", **TOKENS
    )
    question_length: int | None = option(
        None, "longer questions are cut after so many tokens", at_least=1, default_words="64", **TOKENS
    )

    def __post_init__(self):
        task = get_task(self.task)
        object.__setattr__(self, "task", task.name if task in (*TASKS.values(), SQUAD) else task)
        check(self)
        recipe = self.recipe
        schedule = recipe.schedule if self.schedule is None else self.schedule
        object.__setattr__(self, "schedule", ARROW.join(parse_schedule(schedule, recipe.method)))
        object.__setattr__(self, "stage_teacher", self.stage_teacher or recipe.stage_teacher)
        if not any(getattr(self, name) for name in WEIGHTS):
            raise BitlabError(f"{', '.join(WEIGHTS)} are all 0: there is nothing to learn from")
        given = [f.name for f in fields(self) if f.name in LOSS and getattr(self, f.name) != f.default]
        if recipe.phases and given:
            raise BitlabError(f"method {self.method} has its own loss: leave {', '.join(given)} alone")
        if self.augment and self.train_examples:
            raise BitlabError("augment and train_examples exclude each other: a table has rows made of all examples")

    @property
    def task_name(self) -> str:
        """The task's, also where it is one of your own."""
        return get_task(self.task).name

    @property
    def folder_name(self) -> str:
        """Where the run goes unless told otherwise: task, method, model, path and seed in one name."""
        path = "-".join(self.precisions[1:])
        extras = ("-started" if self.start else "") + ("-augmented" if self.augment else "")
        return f"{self.task_name}-{self.method}-{Path(self.model).name}-{path}-{self.preset}{extras}-seed{self.seed}"

    @property
    def command(self) -> str | None:
        """The command that asks for it: its schedule, and whatever else is not the default. None for a task of your
        own, which does not know its file."""
        if isinstance(self.task, Task):
            return None
        named = ["bitlab", *(["glue"] if self.task in TASKS else []), self.task]
        named += ["--method", self.method] if self.method != "bit" else []
        named += ["--schedule", ARROW.join(self.precisions[1:])]
        return shlex.join(named + words(self, Experiment(self.task, method=self.method, schedule=self.schedule)))

    @property
    def recipe(self) -> Recipe:
        """What its method brings along."""
        return RECIPES[self.method]

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those of the schedule, full precision first."""
        return tuple(self.schedule.split(ARROW))

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
        stages, recipe = len(self.precisions) - 1, self.recipe
        rate = self.learning_rate or (5e-4 if small else recipe.learning_rates.get(task.name, task.learning_rate))
        epochs = self.epochs or (1000 if quick else recipe.epochs.get(task.name, task.epochs))
        steps = self.max_steps or (((400 if small else 60) // stages) if quick and not self.epochs else None)
        batch = self.batch_size or (32 if quick else recipe.batch_size or task.batch_size)
        warmup = 0.2 if task.kind == "span" else 0.1
        return StageSettings(epochs, batch, rate, steps, warmup, self.alpha_learning_rate, **options)


@dataclass(frozen=True)
class GeneralDistillation:
    """What `bitlab distil` runs: an encoder made binary on plain texts, see `bitlab.experiments.general`."""

    texts: tuple[str, ...] = option(help="files, one text a line, a tab between the two sentences of a pair")
    model: str = option("minilm", MODELS, path=True)
    precision: str = option("W1A1", "of the encoder")
    epochs: float = option(1.0, "passes over the texts", **AMOUNT)
    max_steps: int | None = option(None, "at most so many optimizer steps", **COUNT)
    batch_size: int = option(32, "texts a step", **BATCH)
    learning_rate: float = option(2e-3, "peak rate", **RATE)
    alpha_learning_rate: float = option(1e-2, "the same for the scales", **RATE)
    max_length: int = option(128, "longer texts are cut after so many tokens", at_least=5, at_most=10**5)
    dropout: float | None = option(0.0, "of the student in training", at_least=0, below=1)
    seed: int = option(0, "of everything random", **SEED)
    bf16: bool = option(False, "train in mixed precision: faster where the machine has bf16")

    def __post_init__(self):
        check(self)

    @property
    def settings(self) -> StageSettings:
        """Its only stage's."""
        rates = {"learning_rate": self.learning_rate, "alpha_learning_rate": self.alpha_learning_rate}
        steps = {"epochs": self.epochs, "max_steps": self.max_steps, "batch_size": self.batch_size}
        return StageSettings(**steps, **rates, bf16=self.bf16, group_by_length=True)
