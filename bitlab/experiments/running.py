"""One experiment: data -> full-precision teacher -> schedule of distillation stages -> evaluation -> result file.

`run(Experiment("rte", model="minilm"))` does it all. Everything it makes lies in one folder, and the same call goes
on where an interrupted one stopped.
"""

import copy
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

from transformers import PreTrainedModel, set_seed

from bitlab import files
from bitlab.config import BitConfig
from bitlab.convert import binarize, set_precision
from bitlab.data.sources import resolve_source
from bitlab.data.tasks import get_task
from bitlab.errors import BitlabError
from bitlab.experiments import environment
from bitlab.experiments.experiment import Experiment
from bitlab.experiments.general import start_from
from bitlab.experiments.prepared import Prepared, prepare
from bitlab.experiments.schedule import FULL
from bitlab.experiments.stage import predict, processes, save_stage, set_dropout, train_stage
from bitlab.models import load_model, load_tokenizer, quiet, weights_digest

Report = Callable[[str], None]
WINDOW_SIZES = ("max_length", "stride", "question_length")
QUICK_TEST = 20_000  # a quick run leaves larger test splits out (QQP's has 391,000 pairs)
PUBLISHED_MARGIN = 0.05  # a published teacher may score this much below its paper: other versions, other padding


def run(experiment: Experiment, output: str | Path | None = None, again: bool = False, report: Report = print) -> dict:
    """Run an experiment to its end, or go on with an interrupted one, and return its result.

    Args:
        output: the folder; `runs/<folder_name>` if None. It ends up holding `result.json` and, for every stage, an
            ordinary Hugging Face folder (`W32A32/`, `W1A2/`, ...) with `stage.json`, the log of its training, and its
            predictions in the official format: on dev, and in the last stage on test where the data have one.
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
        with files.claim(folder, config, again):
            processes().wait_for_everyone()
            result = files.read_json(folder / files.RESULT)
            if result is None:
                return _run_stages(experiment, data, folder, config, given, report)
            report(f"{folder} holds this experiment's result already (--again runs it again)")
            return result


def _given_teacher(experiment: Experiment, data: Prepared) -> tuple[PreTrainedModel, dict, dict] | None:
    """The teacher that was named, with its record and files; refused below the score that a right one reaches."""
    name = experiment.teacher or experiment.model
    model = load_model(name, experiment.task)  # one that does not fit is refused before anything is written
    _first_student(experiment, model)  # the same for one that can't be made binary, and for what it starts from
    if experiment.teacher is None:
        return None
    score, metrics, predictions = _evaluated(model, data)
    task = get_task(experiment.task)
    published = experiment.teacher == task.teacher
    expected = task.published_score - PUBLISHED_MARGIN if published else data.trivial_score()
    if score <= expected:
        raise BitlabError(
            f"teacher {Path(experiment.teacher).name!r} scores {score:.3f} on {task.title} dev, expected above "
            f"{expected:.3f}: check that it was trained for this task and that its label order fits"
        )
    trained = files.read_json(Path(experiment.teacher) / files.STAGE) or {"steps": 0, "seconds": 0.0}
    record = {"score": score, "metrics": metrics, "steps": trained["steps"], "seconds": trained["seconds"]}
    return model, record, predictions


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
    if experiment.start:
        config["start"] = "/".join(Path(experiment.start).parts[-2:])
    config["augment"] = data.augmentation
    config["data_digest"] = files.digest(data.train, *data.evaluations.values())
    names = {"model": experiment.teacher or experiment.model, "start": experiment.start}
    config["model_digest"] = {role: found for role, name in names.items() if name and (found := weights_digest(name))}
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
        record = files.read_json(folder / precision / files.STAGE)
        if record is None:
            if precision == FULL and given:
                record = {"precision": FULL, **given[1]}
                save_stage(folder / FULL, given[0], data.tokenizer, record, [], given[2])
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
        files.write_json(folder / files.RESULT, result)
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
    score, metrics, predictions = _evaluated(model, data)
    if precision == FULL and score <= data.trivial_score():
        report(f"  note: the teacher does not beat a constant answer ({data.trivial_score():.3f}): train it longer")
    seconds = round(time.monotonic() - started, 1)
    if precision == schedule.precisions[-1]:
        tests = data.encoded_tests(math.inf if experiment.preset == "full" else QUICK_TEST)
        predictions |= data.files(predict(model, data, tests)) if tests else {}
    record = {"precision": precision, "score": score, "metrics": metrics, "steps": steps, "seconds": seconds}
    save_stage(folder / precision, model, data.tokenizer, record, log, predictions)
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
        model = _first_student(experiment, previous)
    else:
        model = set_precision(_copy(previous), precision, experiment.alpha)
    model.config.quantization_config.history = schedule.history(precision)
    set_dropout(model, experiment.dropout)
    return model


def _first_student(experiment, full) -> PreTrainedModel:
    bits = BitConfig.from_precision(experiment.path.stages[0], experiment.recipe.method)
    model = binarize(_copy(full), bits)
    return start_from(model, experiment.start, experiment.alpha) if experiment.start else model


def _copy(model: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(model).requires_grad_(True)


def _teachers(experiment, full, previous) -> list[PreTrainedModel]:
    if full is previous or experiment.stage_teacher == "full":
        return [full]
    return [previous] if experiment.stage_teacher == "previous" else [previous, full]
