"""What each command does: from the options that `bitlab.cli` has read to the text to print."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable
from functools import partial

import bitlab.experiments.general
import bitlab.experiments.running  # noqa: F401  (the face would import them later, when Ctrl-C is an exception)
from bitlab import experiments, inference, packed, results, rivals  # noqa: F401  (rivals register themselves)
from bitlab.bench import packed as bench_packed
from bitlab.bench import training as bench_training
from bitlab.bench.settings import BenchSettings
from bitlab.cli import doctor
from bitlab.course import series
from bitlab.data.augment import augment, settings_for
from bitlab.data.own import load_own, read_own
from bitlab.data.settings import OwnData, Settings
from bitlab.data.tasks import SQUAD, TASKS, get_glue_task, get_task
from bitlab.errors import BitlabError
from bitlab.experiments.environment import processes
from bitlab.experiments.experiment import Experiment, GeneralDistillation
from bitlab.files import expanded, reading
from bitlab.heads import task_of
from bitlab.models import load_any, load_masked_lm
from bitlab.packed.checkpoint import pack_folder
from bitlab.terminal.options import given


def _words(options: argparse.Namespace, result: dict, told: Callable[[dict], str]) -> str:
    """A result as JSON if that was asked for, else in words."""
    return json.dumps(result, indent=1) if options.json else told(result)


def _report(options: argparse.Namespace) -> Callable[[str], None]:
    """Where lines about what happens go; with --json standard output holds the result alone."""
    return (lambda line: None) if options.json else (lambda line: print(line, flush=True))


# ------------------------------------------------------------------------------------------------ experiments


def _glue(options: argparse.Namespace) -> str | None:
    get_glue_task(options.task)
    return _experiment(options)


def _experiment(options: argparse.Namespace) -> str | None:
    return _run(options, Experiment(**given(Experiment, options)))


def _train(options: argparse.Namespace) -> str | None:
    own, chosen = OwnData(**given(OwnData, options)), given(Experiment, options)
    task, splits = load_own(options.data, **vars(own), seed=chosen.get("seed", 0))
    return _run(options, Experiment(task, **chosen), splits)


def _run(options: argparse.Namespace, experiment: Experiment, splits=None) -> str | None:
    result = experiments.run(experiment, options.output, options.again, _report(options), splits, options.typed)
    return _words(options, result, _table) if processes().is_main_process else None


def _table(result: dict) -> str:
    lines = [f"{result['task']} · {result['model']} · data: {result['data']} · seed {result['seed']}"]
    for stage in result["stages"]:
        metrics = "  ".join(f"{name} {value:.3f}" for name, value in stage["metrics"].items())
        lines.append(f"  {stage['precision']:7} {stage['score']:.3f}   {metrics}   ({stage['steps']} steps)")
    return "\n".join(lines)


def _distil(options: argparse.Namespace) -> str | None:
    general = GeneralDistillation(**given(GeneralDistillation, options))
    record = experiments.distil(general, options.output, options.again, report=_report(options))
    return _words(options, record, _missed) if processes().is_main_process else None


def _missed(record: dict) -> str:
    return "misses of each hidden state's variance: " + "  ".join(f"{share:.3f}" for share in record["missed"])


def _augment(options: argparse.Namespace) -> str | None:
    task = get_glue_task(options.task)
    settings = settings_for(task, **given(Settings, options))
    load = partial(load_masked_lm, options.mlm) if options.mlm else None
    count = options.processes
    if count is None:
        count = min(8, os.cpu_count() or 1) if load else 1  # word vectors alone take less than a process's start
    output = options.output and expanded(options.output)
    data, vectors = (str(expanded(path)) for path in (options.data, options.vectors))
    _, record = augment(task, data, vectors, settings, load, count, output, _report(options))
    return _words(options, record, lambda record: None)


# ------------------------------------------------------------------------------------------------ models, results


def _pack(options: argparse.Namespace) -> str:
    return _words(options, pack_folder(expanded(options.checkpoint), expanded(options.out)), _size)


def _size(result: dict) -> str:
    how = "runs from codes to codes (fused)" if result["fused"] else "packed weights, layers not fused"
    size = f"{result['bytes'] / 2**20:.2f} MiB, {result['times_smaller']} times smaller"
    return f"{result['precision']}: {size} than the float model's {result['float_bytes'] / 2**20:.1f}; {how}"


def _predict(options: argparse.Namespace) -> str:
    with reading("standard input", "give UTF-8 text, one a line"):
        lines = options.texts or sys.stdin.read().splitlines()
    texts = [tuple(line.split("\t")) if "\t" in line else line for line in lines]
    return _words(options, inference.predict(options.model, texts, options.context), _answers)


def _answers(results: list[dict]) -> str:
    """A line for each text: its label, value or answer, and how likely that is."""
    return "\n".join("\t".join(map(_said, list(each.values())[:2])) for each in results)


def _said(value) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={_said(number)}" for name, number in value.items())
    return ",".join(value) if isinstance(value, list) else f"{value:.4f}" if isinstance(value, float) else value


def _evaluate(options: argparse.Namespace) -> str:
    if options.text or options.label:
        if not (options.text and options.label):
            raise BitlabError("a file has a text and a label: give --text and --label")
        task = task_of(load_any(options.model), tuple(options.text.split(",")))
        data = read_own(options.task, task, options.label)
    elif options.task not in (*TASKS, SQUAD.name) and expanded(options.task).exists():
        raise BitlabError(f"{options.task} is data of your own: name its columns, --text COLUMN --label COLUMN")
    else:
        task, data = get_task(options.task), str(expanded(options.data))
    return _words(options, inference.evaluate(options.model, task, data, split=options.split), _score)


def _score(result: dict) -> str:
    metrics = "  ".join(f"{name} {value:.3f}" for name, value in result["metrics"].items())
    speed = f"{result['seconds']:.1f} s, {result['sentences_per_second']:,.0f} a second"
    rows = f"{result['task']}, {result['split']}" if result["split"] else result["task"]
    scored = f"{result['model']} ({result['precision']}) on {rows}: {result['score']:.3f}   {metrics}"
    return f"{scored}   ({result['examples']:,} examples in {speed})"


def _bench(options: argparse.Namespace) -> str:
    settings = BenchSettings(**given(BenchSettings, options))
    logging.basicConfig(format="%(message)s")  # to standard error, that minutes pass with a sign of life
    logging.getLogger("bitlab.bench").setLevel(logging.INFO)
    if options.what == "train":
        return _words(options, _bench_train(settings), bench_training.table)
    return _words(options, _bench_packed(settings), bench_packed.table)


def _bench_packed(settings: BenchSettings) -> dict:
    if settings.growth or settings.tasks:
        raise BitlabError("--growth and --tasks are about training: bitlab bench train")
    chosen = {"layers": settings.layers, "rounds": settings.rounds, "batches": settings.batch or None}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    return bench_packed.bench(length=settings.length, threads=settings.threads, shape=settings.shape, **chosen)


def _bench_train(settings: BenchSettings) -> dict:
    if len(settings.batch) > 1:
        raise BitlabError("bench train takes one --batch (--growth measures several)")
    layers = 6 if settings.layers is None else settings.layers
    shape = bench_training.Shape(layers, batch=(settings.batch or (16,))[0], length=settings.length)
    how = {"threads": settings.threads} | ({"rounds": settings.rounds} if settings.rounds else {})
    if settings.growth:
        return bench_training.growth(shape, **how)
    if settings.tasks:
        return bench_training.tasks(settings.tasks, **how)
    return bench_training.bench(shape, **how)


def _results(options: argparse.Namespace) -> str:
    folder, tasks = options.folder and expanded(options.folder), options.tasks and options.tasks.split(",")
    if options.run:
        return str(results.store(expanded(options.run), folder or results.OWN))
    if options.commands:
        return results.commands(results.records(folder), tasks)
    return results.report(results.load(folder), tasks, options.format)


def _notebooks(options: argparse.Namespace) -> str:
    folder = expanded(options.folder)
    return f"{len(series.copy(folder))} notebooks: jupyter lab {folder}"


def _doctor(options: argparse.Namespace) -> None:
    for finding in doctor.findings():  # the last of them waits for the hub
        print(finding)


RUN = {
    "doctor": _doctor,
    "glue": _glue,
    "squad": _experiment,
    "train": _train,
    "predict": _predict,
    "evaluate": _evaluate,
    "distil": _distil,
    "pack": _pack,
    "bench": _bench,
    "augment": _augment,
    "results": _results,
    "notebooks": _notebooks,
}
