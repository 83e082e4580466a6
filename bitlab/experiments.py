"""One experiment: data -> full-precision teacher -> schedule of distillation stages -> evaluation -> result file.

`run(Experiment("rte", model="minilm"))` does it all. Everything it makes lies in one folder, and the same call goes
on where an interrupted one stopped.
"""

import copy
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from transformers import PreTrainedModel, set_seed

from bitlab import environment, runs
from bitlab.config import BitConfig
from bitlab.convert import ALPHA_POLICIES, binarize, set_precision
from bitlab.data.sources import resolve_source
from bitlab.distillation import DistillationConfig
from bitlab.errors import BitlabError
from bitlab.models import load_model, load_tokenizer, quiet
from bitlab.recipes import Phase, Recipe, get_recipe
from bitlab.schedule import FULL, Schedule, StageSettings
from bitlab.tasks import SQUAD, get_task
from bitlab.training import Prepared, predict, prepare, processes, train_stage

Report = Callable[[str], None]
PRESETS = ("quick", "full")
TEACHERS = ("previous", "full", "both")
SELECTIONS = ("last", "best")
POSITIVE = ("epochs", "max_steps", "batch_size", "learning_rate", "alpha_learning_rate", "teacher_epochs")
POSITIVE += ("teacher_learning_rate", "train_examples", "temperature")
WINDOW_SIZES = ("max_length", "stride", "question_length")
PUBLISHED_MARGIN = 0.05  # a published teacher may score this much below its paper: other versions, other padding


@dataclass(frozen=True)
class Experiment:
    """What to run. Where a number is None, the preset's or the task's own is taken.

    Args:
        task: a GLUE task, for instance "rte", or "squad". model: "sample", "minilm", a hub id or a folder.
        data: "auto", "sample", "hub" or a folder of original files. train_examples: use only the first so many.
        schedule: for instance "W32A32 -> W1A2 -> W1A1". method: "bit", "bit-released" for the reductions,
            optimizer and padding of the released program, or a rival, "bibert" or "binarybert". Methods differ in
            their defaults (`bitlab.recipes`), the rivals also in their loss.
        preset: "quick" (steps counted in hundreds) or "full" (the paper's epochs). seed: of everything random.
        teacher: a fine-tuned full-precision model; None: one is fine-tuned first.
        augment: a table of `bitlab augment` (its folder or train.tsv) that the distillation stages train on; the
            teacher is fine-tuned on `data` all the same. Epochs count passes over `data`, so that the budget is equal.
        epochs, max_steps, batch_size, learning_rate, alpha_learning_rate: of each distillation stage (max_steps: of
            the teacher's training too).
        teacher_epochs, teacher_learning_rate: of the fine-tuning.
        alpha: what becomes of the scales at a stage change: "reinit", "carry" or "rescale".
        stage_teacher: a stage learns from the "previous" stage's model, the "full"-precision one, or "both"; the
            method's own if None.
        selection: evaluate on dev once at the "last" step, or keep the "best" of ten dev evaluations.
        logit_weight, hidden_weight, attention_weight, temperature: see `DistillationConfig`; not for the rivals.
        bf16: train in mixed precision (evaluation is in float32).
        max_length, stride, question_length: SQuAD's windows in tokens, see `bitlab.data.windows.WindowSizes`.
    """

    task: str
    model: str = "sample"
    data: str = "auto"
    schedule: str | None = None
    method: str = "bit"
    preset: str = "quick"
    seed: int = 0
    teacher: str | None = None
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
    attention_weight: float = 0.0
    temperature: float = 1.0
    bf16: bool = False
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
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise BitlabError(f"{name} is {value}: give a number above 0")
        weights = ("logit_weight", "hidden_weight", "attention_weight")
        for name in weights:
            if not 0 <= getattr(self, name) < math.inf:
                raise BitlabError(f"{name} is {getattr(self, name)}: give 0 or a number above")
        if not any(getattr(self, name) for name in weights):
            raise BitlabError(f"{', '.join(weights)} are all 0: there is nothing to learn from")
        given = [
            f.name for f in fields(self) if f.name in (*weights, "temperature") and getattr(self, f.name) != f.default
        ]
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
        augmented = "-augmented" if self.augment else ""
        return f"{self.task}-{self.method}-{Path(self.model).name}-{path}-{self.preset}{augmented}-seed{self.seed}"

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
            return self.recipe.phases
        weights = {
            "logits": self.logit_weight,
            "hidden": self.hidden_weight,
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
        if precision == FULL:
            rate = self.teacher_learning_rate or (5e-4 if small else 5e-5)
            epochs = self.teacher_epochs or (1000 if quick else min(5, task.epochs))
            steps = self.max_steps or ((300 if small else 60) if quick else None)
            return StageSettings(epochs, 32, rate, steps, bf16=self.bf16)
        stages, recipe = len(self.path.stages), self.recipe
        rate = self.learning_rate or (5e-4 if small else recipe.learning_rates.get(self.task, task.learning_rate))
        epochs = self.epochs or (1000 if quick else recipe.epochs.get(self.task, task.epochs))
        steps = self.max_steps or (((400 if small else 60) // stages) if quick and not self.epochs else None)
        batch = self.batch_size or (32 if quick else recipe.batch_size or task.batch_size)
        warmup = 0.2 if task is SQUAD else 0.1
        return StageSettings(epochs, batch, rate, steps, warmup, self.alpha_learning_rate, bf16=self.bf16)


def run(experiment: Experiment, output: str | Path | None = None, again: bool = False, report: Report = print) -> dict:
    """Run an experiment to its end, or go on with an interrupted one, and return its result.

    Args:
        output: the folder; `runs/<folder_name>` if None. It ends up holding `result.json` and, for every stage, an
            ordinary Hugging Face folder (`W32A32/`, `W1A2/`, ...) with `stage.json` and the log of its training.
        again: run even if the folder holds the finished result of the same experiment.
        report: called with one line at a time about what happens.
    Returns: the content of `result.json`: task, method, model, data, seed, schedule, stages, config, versions,
        machine. Scores are fractions.
    Errors: BitlabError for bad data, models or settings (nothing is written then), and for a folder that belongs
        to another experiment or is in use.
    """
    source, why = resolve_source(experiment.data)
    tokenizer = load_tokenizer(experiment.teacher or experiment.model)  # the student is made from the teacher
    data = prepare(
        get_task(experiment.task),
        source,
        tokenizer,
        experiment.train_examples,
        fixed_length=experiment.recipe.released,
        **{name: getattr(experiment, name) for name in WINDOW_SIZES},
    )
    if experiment.augment:
        data.augment(experiment.augment)
    folder = Path(output or Path("runs") / experiment.folder_name)
    config = _config(experiment, source, data)
    with quiet():
        given = None if (folder / FULL).exists() and not again else _given_teacher(experiment, data)
        if not processes().is_main_process:  # under torchrun one process owns the folder, the others follow it
            processes().wait_for_everyone()
            return _run_stages(experiment, data, folder, config, given, report=lambda line: None)
        report(why)
        with runs.claim(folder, config, again):
            processes().wait_for_everyone()
            result = runs.read_json(folder / runs.RESULT)
            if result is None:
                return _run_stages(experiment, data, folder, config, given, report)
            report(f"{folder} holds this experiment's result already (--again runs it again)")
            return result


def _given_teacher(experiment: Experiment, data: Prepared) -> tuple[PreTrainedModel, dict, dict] | None:
    """The teacher that was named, with its record and files; refused below the score that a right one reaches."""
    if experiment.teacher is None:
        load_model(experiment.model, experiment.task)  # one that does not fit is refused before anything is written
        return None
    model = load_model(experiment.teacher, experiment.task)
    score, metrics, files = _evaluated(model, data)
    task = get_task(experiment.task)
    published = experiment.teacher == task.teacher
    expected = task.published_score - PUBLISHED_MARGIN if published else data.trivial_score()
    if score <= expected:
        raise BitlabError(
            f"teacher {Path(experiment.teacher).name!r} scores {score:.3f} on {task.title} dev, expected above "
            f"{expected:.3f}: check that it was trained for this task and that its label order fits"
        )
    trained = runs.read_json(Path(experiment.teacher) / "stage.json") or {"steps": 0, "seconds": 0.0}
    record = {"score": score, "metrics": metrics, "steps": trained["steps"], "seconds": trained["seconds"]}
    return model, record, files


def _evaluated(model: PreTrainedModel, data: Prepared) -> tuple[float, dict, dict]:
    """(score, metrics, files with the predictions) on dev."""
    predictions = predict(model, data)
    metrics = data.metrics(predictions)
    return data.score(metrics), metrics, data.files(predictions)


def _config(experiment: Experiment, source: str, data: Prepared) -> dict:
    """The experiment with every default filled in, without paths of this machine."""
    config = {f.name: getattr(experiment, f.name) for f in fields(experiment)}
    config["data"] = source if source in ("sample", "hub") else Path(source).name
    config["model"] = Path(experiment.model).name if Path(experiment.model).is_dir() else experiment.model
    config["teacher"] = experiment.teacher and Path(experiment.teacher).name
    config["augment"] = data.augmentation
    config["examples"] = data.sizes()
    config |= data.options()
    config["settings"] = {precision: asdict(experiment.settings(precision)) for precision in experiment.path.precisions}
    return config


def _run_stages(experiment: Experiment, data: Prepared, folder: Path, config: dict, given, report) -> dict:
    schedule = experiment.path
    records = []
    full = previous = None
    for number, precision in enumerate(schedule.precisions):
        report(f"stage {number} of {len(schedule.stages)}: {precision}")
        record = runs.read_json(folder / precision / "stage.json")
        if record is None:
            if precision == FULL and given:
                record = {"precision": FULL, **given[1]}
                _save_stage(folder / FULL, given[0], data, record, [], given[2])
            else:
                record = _run_stage(experiment, schedule, data, folder, precision, full, previous, report)
        records.append(record)
        report(f"  {precision}: score {record['score']:.3f} on dev after {record['steps']} steps")
        previous = load_model(folder / precision, experiment.task)
        full = full or previous
    result = {
        "task": experiment.task,
        "method": experiment.method,
        **{key: config[key] for key in ("model", "data", "seed")},
        "schedule": str(schedule),
        "stages": records,
        "config": config,
        "versions": environment.versions(),
        "machine": environment.machine(),
    }
    if processes().is_main_process:
        runs.write_json(folder / runs.RESULT, result)
    return result


def _run_stage(experiment, schedule, data, folder, precision, full, previous, report) -> dict:
    """Train one stage, save its model with its record, and return the record."""
    started = time.monotonic()
    stage = schedule.precisions.index(precision)
    set_seed(experiment.seed + stage)  # so that a stage is the same whatever ran before it in this process
    training = folder / f"{precision}.training"
    model = _starting_point(experiment, schedule, precision, previous)
    teachers = [] if precision == FULL else _teachers(experiment, full, previous)
    log, steps, started = _train(experiment, precision, model, teachers, data, training, stage, started, report)
    score, metrics, files = _evaluated(model, data)
    if precision == FULL and score <= data.trivial_score():
        report(f"  note: the teacher does not beat a constant answer ({data.trivial_score():.3f}): train it longer")
    seconds = round(time.monotonic() - started, 1)
    record = {"precision": precision, "score": score, "metrics": metrics, "steps": steps, "seconds": seconds}
    _save_stage(folder / precision, model, data, record, log, files)
    if processes().is_main_process:
        shutil.rmtree(training, ignore_errors=True)
    return record


def _train(experiment, precision, model, teachers, data, training, stage, started, report) -> tuple:
    """Train through the phases of a stage; returns what `train_stage` does.

    An interrupted run goes through the end of the earlier phases again, from their last checkpoints but one.
    """
    phases = experiment.phases() if teachers else (None,)
    log, steps, seconds = [], 0, 0.0
    for number, phase in enumerate(phases):
        options = {}
        if phase:
            options = {"distillation": phase.loss, "released_optimizer": experiment.recipe.released}
        entries, count, began = train_stage(
            model,
            teachers,
            data,
            experiment.settings(precision).part(number, len(phases), phase.rate if phase else 1.0),
            training if len(phases) == 1 else training / f"phase{number + 1}",
            seed=experiment.seed + stage,
            title=precision,
            best=experiment.selection == "best" and number == len(phases) - 1,
            started=started if number == 0 else None,
            report=report,
            **options,
        )
        log += [entry | {"step": entry["step"] + steps} for entry in entries]
        steps += count
        seconds += time.monotonic() - began
    return log, steps, time.monotonic() - seconds


def _starting_point(experiment, schedule, precision, previous) -> PreTrainedModel:
    if precision == FULL:
        return load_model(experiment.model, experiment.task, seed=experiment.seed)
    if schedule.stages[0] == precision:
        model = binarize(_copy(previous), BitConfig.from_precision(precision, experiment.recipe.method))
    else:
        model = set_precision(_copy(previous), precision, experiment.alpha)
    model.config.quantization_config.history = schedule.history(precision)
    return model


def _copy(model: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(model).requires_grad_(True)


def _teachers(experiment, full, previous) -> list[PreTrainedModel]:
    if full is previous or experiment.stage_teacher == "full":
        return [full]
    return [previous] if experiment.stage_teacher == "previous" else [previous, full]


def _save_stage(
    folder: Path, model: PreTrainedModel, data: Prepared, record: dict, log: list[dict], files: dict[str, dict]
) -> None:
    """Write a stage's Hugging Face folder, whole or not at all; other processes wait for it."""
    if processes().is_main_process:
        with runs.whole_folder(folder) as partial:
            model.save_pretrained(partial)
            data.tokenizer.save_pretrained(partial)
            for name, content in {"log.json": log, **files}.items():
                runs.write_json(partial / name, content)
            runs.write_json(partial / "stage.json", record)
    processes().wait_for_everyone()
