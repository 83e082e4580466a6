"""One experiment: data -> full-precision teacher -> schedule of distillation stages -> evaluation -> result file.

`run(Experiment("rte", model="minilm"))` does it all. Everything it makes lies in one folder, and the same call goes
on where an interrupted one stopped.
"""

import copy
import math
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

from datasets import DatasetDict
from transformers import PreTrainedModel, set_seed

from bitlab import files
from bitlab.config import BitConfig
from bitlab.convert import binarize, set_precision
from bitlab.data.own import check_words
from bitlab.data.sources import resolve_source
from bitlab.data.squad import WindowSizes
from bitlab.data.tasks import get_task
from bitlab.errors import BitlabError
from bitlab.experiments import environment
from bitlab.experiments.card import card
from bitlab.experiments.environment import processes
from bitlab.experiments.experiment import Experiment
from bitlab.experiments.folder import (
    RESULT,
    RESULT_HOLDS,
    STAGE,
    STAGE_HOLDS,
    TRAINING,
    Report,
    digest,
    record_in,
    run_in,
)
from bitlab.experiments.general import start_from
from bitlab.experiments.prepared import Prepared, prepare
from bitlab.experiments.recipes import Phase
from bitlab.experiments.schedule import ARROW, FULL
from bitlab.experiments.stage import Trained, predict, save_stage, set_dropout, train_stage
from bitlab.models import load_model, load_tokenizer, weights_digest

QUICK_TEST = 20_000  # a quick run leaves larger test splits out (QQP's has 391,000 pairs)
PUBLISHED_MARGIN = 0.05  # a published teacher may score this much below its paper: other versions, other padding


def run(
    experiment: Experiment,
    output: str | Path | None = None,
    again: bool = False,
    report: Report = print,
    splits: DatasetDict | None = None,
    typed: Sequence[str] | None = None,
) -> dict:
    """Run an experiment to its end, or go on with an interrupted one, and return its result.

    Args:
        output: the folder; `runs/<folder_name>` if None. It ends up holding `result.json` and, for every stage, an
            ordinary Hugging Face folder (`W32A32/`, `W1A2/`, ...) with `stage.json`, the log of its training, and its
            predictions in the official format: on dev, and in the last stage on test where the data have one.
        again: run even if the folder holds the finished result of the same experiment.
        report: called with one line at a time about what happens.
        splits: the data, where they are your own (see `bitlab.data.load_own`), in place of `experiment.data`.
        typed: the words of the command line that asks for it, if one does; the result keeps them.
    Returns:
        The content of `result.json`: task, method, model, data, seed, schedule, stages, config, command, versions,
        machine. Scores are fractions.
    Raises:
        BitlabError: for bad data, models or settings (nothing is written then), and for a folder that belongs to
            another experiment or is in use.
    """
    task = get_task(experiment.task)
    tokenizer = load_tokenizer(experiment.teacher or experiment.model)  # the student is made from the teacher
    if splits is None:
        source, why = resolve_source(experiment.data)
    else:
        counts = ", ".join(f"{len(rows):,} of {name}" for name, rows in splits.items())
        source, why = experiment.data, f"data: {counts}"
        check_words(task, splits["train"], tokenizer)
    data = prepare(
        task,
        source if splits is None else splits,
        tokenizer,
        experiment.train_examples,
        fixed_length=experiment.recipe.released,
        **{size.name: getattr(experiment, size.name) for size in fields(WindowSizes)},
    )
    if experiment.augment:
        data.augment(experiment.augment)
    folder = files.expanded(output or Path("runs") / experiment.folder_name)
    config = _config(experiment, source, data)
    command = _command(typed or shlex.split(experiment.command or ""))
    if processes().is_main_process:
        report(why)
    with files.quiet():
        stages = _Stages(experiment, data, folder, config, command)
        if again or not (folder / FULL / STAGE).exists():
            stages.check_start()
        record = partial(record_in, folder / RESULT, RESULT_HOLDS)
        return run_in(folder, config, experiment.precisions, record, stages.run, again, report, data.file_names())


def _config(experiment: Experiment, source: str, data: Prepared) -> dict:
    """The experiment with every default filled in, without paths of this machine."""
    config = {f.name: getattr(experiment, f.name) for f in fields(experiment)}
    config["data"] = source if source in ("sample", "hub") else Path(source).name
    config["model"] = Path(experiment.model).name if Path(experiment.model).is_dir() else experiment.model
    config["teacher"] = experiment.teacher and Path(experiment.teacher).name
    if experiment.task != experiment.task_name:
        config |= {"task": experiment.task_name, "own_task": asdict(experiment.task)}
    if experiment.start:
        config["start"] = "/".join(Path(experiment.start).parts[-2:])
    config["augment"] = data.augmentation
    config["data_digest"] = digest(data.train, *data.evaluations.values())
    names = {"model": experiment.teacher or experiment.model, "start": experiment.start}
    config["model_digest"] = {role: found for role, name in names.items() if name and (found := weights_digest(name))}
    config["examples"] = data.sizes()
    config |= data.options()
    config["settings"] = {precision: asdict(experiment.settings(precision)) for precision in experiment.precisions}
    return config


def _command(words: Sequence[str]) -> str | None:
    """A command as it was typed, but that a path of this machine alone keeps its last two names."""

    def short(word: str) -> str:
        option, equals, value = word.rpartition("=") if word.startswith("-") else ("", "", word)
        path = Path(value)
        return option + equals + ("/".join(path.parts[1:][-2:]) if path.is_absolute() else value)

    return shlex.join(map(short, words)) or None


class _Stages:
    """The stages of an experiment in its folder, one after the other; those that are there already are loaded."""

    def __init__(self, experiment: Experiment, data: Prepared, folder: Path, config: dict, command: str | None):
        self.experiment, self.data, self.folder, self.config = experiment, data, folder, config
        self.command = command
        self.precisions = experiment.precisions
        self.full = self.previous = self.given = None

    def check_start(self) -> None:
        """Refuse a model that does not fit, that can't be made binary, or a teacher that knows too little, before
        anything is written."""
        model = load_model(self.experiment.teacher or self.experiment.model, self.experiment.task)
        self._first_student(model)
        if self.experiment.teacher:
            self.given = self._given_teacher(model)

    def run(self, report: Report) -> dict:
        """Go through the stages and write the result."""
        self.report = report
        records = []
        for number, precision in enumerate(self.precisions):
            report(f"stage {number} of {len(self.precisions) - 1}: {precision}")
            record = record_in(self.folder / precision / STAGE, STAGE_HOLDS) or self._make(number, precision)
            report(f"  {precision}: score {record['score']:.3f} on dev after {record['steps']} steps")
            records.append(record)
            self.previous = load_model(self.folder / precision, self.experiment.task)
            self.full = self.full or self.previous
        result = {
            "task": self.experiment.task_name,
            "method": self.experiment.method,
            **{key: self.config[key] for key in ("model", "data", "seed")},
            "schedule": self.experiment.schedule,
            "stages": records,
            "config": self.config,
            "command": self.command,
            "versions": environment.versions(),
            "machine": environment.machine(),
        }
        if processes().is_main_process:
            files.write_json(self.folder / RESULT, result)
        return result

    def _make(self, number: int, precision: str) -> dict:
        """A stage's record, with its folder: of the teacher that was given, or of a model that is trained here."""
        save = partial(save_stage, self.folder / precision, tokenizer=self.data.tokenizer)
        if precision == FULL and self.experiment.teacher:
            model, record, predictions = self.given
            save(model, record=record, log=[], more=predictions | self._card(model, number, record))
            return record
        started, training = time.monotonic(), self.folder / (precision + TRAINING)
        set_seed(self.experiment.seed + number)  # so that a stage is the same whatever ran before it in this process
        model = self._starting_point(number, precision)
        trained = self._train(model, precision, training, self.experiment.seed + number)
        score, metrics, predictions = self._evaluated(model)
        if precision == FULL and score <= (trivial := self.data.trivial_score()):
            self.report(f"  note: the teacher does not beat a constant answer ({trivial:.3f}): train it longer")
        seconds = round(trained.earlier + time.monotonic() - started, 1)
        if precision == self.precisions[-1]:
            tests = self.data.encoded_tests(math.inf if self.experiment.preset == "full" else QUICK_TEST)
            predictions |= self.data.files(predict(model, self.data, tests)) if tests else {}
        record = {"precision": precision, "score": score, "metrics": metrics}
        record |= {"steps": trained.steps, "seconds": seconds}
        if scores := [entry["eval_score"] for entry in trained.log if "eval_score" in entry]:
            record["best"] = max(scores)
        more = predictions | self._card(model, number, record)
        save(model, record=record, log=trained.log, training=training, more=more)
        return record

    def _card(self, model: PreTrainedModel, number: int, record: dict) -> dict[str, str]:
        """The model card of a stage, by the name of its file."""
        experiment, before = self.experiment, self.precisions[max(0, number - 1)]
        teachers = {"full": FULL, "previous": before, "both": f"{before} and {FULL}"}
        facts = {
            "trained from": self.config["model"],
            "schedule": self._path(number),
            "method": experiment.method if number else None,
            "teacher": teachers[experiment.stage_teacher] if number else self.config["teacher"],
        }
        return {"README.md": card(model, get_task(experiment.task), record["precision"], record, **facts)}

    def _train(self, model: PreTrainedModel, precision: str, training: Path, seed: int) -> Trained:
        """Train through the phases of a stage.

        An interrupted run goes through the end of the earlier phases again, from their last checkpoints but one.
        """
        experiment, data = self.experiment, self.data
        settings, teachers = experiment.settings(precision), self._teachers(precision)
        rows = data.augmented if teachers and data.augmented is not None else data.train
        phases = experiment.phases() if teachers else (Phase(None),)  # from the labels
        whole = Trained([], 0, 0.0)
        for number, phase in enumerate(phases):
            last, share = number == len(phases) - 1, settings.share(number, len(phases), phase.rate)
            trained = train_stage(
                model,
                teachers,
                rows,
                data.collate,
                share,
                training if len(phases) == 1 else training / f"phase{number + 1}",
                steps=share.steps(len(data.train)),  # of an augmented table too
                seed=seed,
                title=precision,
                watched=data if experiment.selection != "last" and last else None,
                keeps_best=experiment.selection == "best",
                report=self.report,
                distillation=phase.loss,
                released_optimizer=bool(teachers) and experiment.recipe.released,
            )
            log = whole.log + [entry | {"step": entry["step"] + whole.steps} for entry in trained.log]
            whole = Trained(log, whole.steps + trained.steps, whole.earlier + trained.earlier)
        return whole

    def _path(self, number: int) -> str:
        """The part of the schedule that ends at a stage, as its checkpoint stores it."""
        return ARROW.join(self.precisions[: number + 1])

    def _starting_point(self, number: int, precision: str) -> PreTrainedModel:
        experiment = self.experiment
        if number == 0:
            return load_model(experiment.model, experiment.task, seed=experiment.seed)
        if number == 1:
            model = self._first_student(self.previous)
        else:
            model = set_precision(_copy(self.previous), precision, experiment.alpha)
        model.config.quantization_config.history = self._path(number)
        set_dropout(model, experiment.dropout)
        return model

    def _first_student(self, full: PreTrainedModel) -> PreTrainedModel:
        experiment = self.experiment
        bits = BitConfig.from_precision(self.precisions[1], experiment.recipe.method)
        model = binarize(_copy(full), bits)
        return start_from(model, experiment.start, experiment.alpha) if experiment.start else model

    def _teachers(self, precision: str) -> list[PreTrainedModel]:
        if precision == FULL:
            return []
        if self.full is self.previous or self.experiment.stage_teacher == "full":
            return [self.full]
        return [self.previous] if self.experiment.stage_teacher == "previous" else [self.previous, self.full]

    def _given_teacher(self, model: PreTrainedModel) -> tuple[PreTrainedModel, dict, dict]:
        """The teacher that was named, with its record and files; refused below the score that a right one reaches."""
        name, task = self.experiment.teacher, get_task(self.experiment.task)
        score, metrics, predictions = self._evaluated(model)
        published = name == task.teacher
        expected = task.published_score - PUBLISHED_MARGIN if published else self.data.trivial_score()
        if score <= expected:
            raise BitlabError(
                f"teacher {Path(name).name!r} scores {score:.3f} on {task.title} dev, expected above {expected:.3f}: "
                f"check that it was trained for this task and that its label order fits"
            )
        trained = record_in(Path(name) / STAGE, STAGE_HOLDS) or {"steps": 0, "seconds": 0.0}
        record = {"precision": FULL, "score": score, "metrics": metrics}
        return model, record | {key: trained[key] for key in ("steps", "seconds")}, predictions

    def _evaluated(self, model: PreTrainedModel) -> tuple[float, dict, dict]:
        """(score, metrics, files with the predictions) on dev."""
        predictions = predict(model, self.data)
        metrics = self.data.metrics(predictions)
        return self.data.score(metrics), metrics, self.data.files(predictions)


def _copy(model: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(model).requires_grad_(True)
