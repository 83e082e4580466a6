"""The commands: what makes their options, and what runs them. `bitlab.cli` finds them in the table at the end.

Options come from the fields of dataclasses (`bitlab.options`). What needs torch is imported by the command that runs,
so that `--help` is there at once, and under `loading`, so that Ctrl-C is one line.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from bitlab.errors import BitlabError
from bitlab.files import expanded, reading
from bitlab.options import add_options, given
from bitlab.startup import loading

GLUE_TASK = "cola, sst2, mrpc, stsb, qqp, mnli, qnli or rte"


@dataclass(frozen=True)
class Command:
    """A command: what `bitlab --help` says of it, what makes its options, and what runs it, for the text to print."""

    help: str
    options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], str | None]


def _words(options: argparse.Namespace, result: dict, told: Callable[[dict], str]) -> str:
    """A result as JSON if that was asked for, else in words."""
    return json.dumps(result, indent=1) if options.json else told(result)


def _report(options: argparse.Namespace) -> Callable[[str], None]:
    """Where lines about what happens go; with --json standard output holds the result alone."""
    return (lambda line: None) if options.json else (lambda line: print(line, flush=True))


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_run(parser: argparse.ArgumentParser, output: str, **how) -> None:
    parser.add_argument("--output", metavar="DIR", help=output, **how)
    parser.add_argument("--again", action="store_true", help="run even if the folder holds the finished result")
    _add_json(parser)


# ------------------------------------------------------------------------------------------------ experiments


def _glue_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK", help=GLUE_TASK)
    _experiment_options(parser, "glue")


def _squad_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(task="squad")
    _experiment_options(parser, "squad")


def _experiment_options(parser: argparse.ArgumentParser, command: str) -> None:
    from bitlab.experiments.experiment import Experiment

    add_options(parser, Experiment, command)
    _add_run(parser, "folder of the run (default: runs/NAME)")


def _glue(options: argparse.Namespace) -> str | None:
    from bitlab.data.tasks import get_glue_task

    get_glue_task(options.task)
    return _experiment(options)


def _experiment(options: argparse.Namespace) -> str | None:
    with loading():
        from bitlab.experiments.experiment import Experiment

    return _run(options, Experiment(**given(Experiment, options)))


def _run(options: argparse.Namespace, experiment, splits=None) -> str | None:
    with loading():
        from bitlab import experiments, packed, rivals  # noqa: F401  (the last two register with transformers)
        from bitlab.experiments.environment import processes

        run = experiments.run
    result = run(experiment, options.output, options.again, _report(options), splits, options.typed)
    return _words(options, result, _table) if processes().is_main_process else None


def _train_options(parser: argparse.ArgumentParser) -> None:
    from bitlab.data.settings import OwnData
    from bitlab.experiments.experiment import Experiment

    parser.add_argument("data", metavar="DATA", help="a .csv, .tsv, .jsonl or .parquet file, or a data set of the hub")
    add_options(parser, OwnData, also=("text", "label"))
    add_options(parser, Experiment, "train", leave=("data", "model", "augment"))
    parser.add_argument("--model", default="minilm", help="minilm, a hub id or a folder (default: minilm)")
    _add_run(parser, "folder of the run (default: runs/NAME)")


def _train(options: argparse.Namespace) -> str | None:
    with loading():
        from bitlab.data.own import load_own
        from bitlab.data.settings import OwnData
        from bitlab.experiments.experiment import Experiment

    own = OwnData(**given(OwnData, options))
    chosen = given(Experiment, options)
    task, splits = load_own(options.data, **vars(own), seed=chosen.get("seed", 0))
    return _run(options, Experiment(task, **chosen), splits)


def _table(result: dict) -> str:
    lines = [f"{result['task']} · {result['model']} · data: {result['data']} · seed {result['seed']}"]
    for stage in result["stages"]:
        metrics = "  ".join(f"{name} {value:.3f}" for name, value in stage["metrics"].items())
        lines.append(f"  {stage['precision']:7} {stage['score']:.3f}   {metrics}   ({stage['steps']} steps)")
    return "\n".join(lines)


def _distil_options(parser: argparse.ArgumentParser) -> None:
    from bitlab.experiments.experiment import GeneralDistillation

    parser.add_argument("texts", nargs="+", metavar="FILE", help="one text a line, a tab between a pair's sentences")
    add_options(parser, GeneralDistillation)
    _add_run(parser, "folder of the encoder; interrupted, it goes on there", required=True)


def _distil(options: argparse.Namespace) -> str | None:
    with loading():
        from bitlab import experiments, packed, rivals  # noqa: F401
        from bitlab.experiments.environment import processes

        GeneralDistillation, distil = experiments.GeneralDistillation, experiments.distil
    general = GeneralDistillation(**given(GeneralDistillation, options))
    record = distil(general, options.output, options.again, report=_report(options))
    return _words(options, record, _missed) if processes().is_main_process else None


def _missed(record: dict) -> str:
    return "misses of each hidden state's variance: " + "  ".join(f"{share:.3f}" for share in record["missed"])


def _augment_options(parser: argparse.ArgumentParser) -> None:
    from bitlab.data.settings import Settings

    add = parser.add_argument
    add("task", metavar="TASK", help=GLUE_TASK)
    add("--data", default="auto", help="auto, sample, hub or a folder of original files (default: auto)")
    add("--vectors", required=True, metavar="FILE", help="word vectors: a GloVe text file")
    add("--mlm", metavar="MODEL", help="a masked language model: hub id or folder (default: word vectors alone)")
    add_options(parser, Settings, also=("tries",))
    add(
        "--processes",
        type=int,
        help="the table is the same for any number (default: 1; with --mlm one a core, up to 8)",
    )
    add("--output", metavar="DIR", help="folder of the table (default: runs/augment-TASK-FINGERPRINT)")
    _add_json(parser)


def _augment(options: argparse.Namespace) -> str | None:
    with loading():
        from functools import partial

        from bitlab import packed, rivals  # noqa: F401
        from bitlab.data.augment import augment, settings_for
        from bitlab.data.settings import Settings
        from bitlab.data.tasks import get_glue_task
        from bitlab.models import load_masked_lm

    task = get_glue_task(options.task)
    settings = settings_for(task, **given(Settings, options))
    load = partial(load_masked_lm, options.mlm) if options.mlm else None
    processes = options.processes
    if processes is None:
        processes = min(8, os.cpu_count() or 1) if load else 1  # word vectors alone take less than a process's start
    output = options.output and expanded(options.output)
    data, vectors = (str(expanded(path)) for path in (options.data, options.vectors))
    _, record = augment(task, data, vectors, settings, load, processes, output, _report(options))
    return _words(options, record, lambda record: None)


# ------------------------------------------------------------------------------------------------ models, results


def _pack_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="folder of a trained binary model")
    add("out", metavar="OUT", help="folder for the packed model")
    _add_json(parser)


def _pack(options: argparse.Namespace) -> str | None:
    with loading():
        from bitlab import packed, rivals  # noqa: F401
        from bitlab.packed.checkpoint import pack_folder

    return _words(options, pack_folder(expanded(options.checkpoint), expanded(options.out)), _size)


def _size(result: dict) -> str:
    how = "runs from codes to codes (fused)" if result["fused"] else "packed weights, layers not fused"
    size = f"{result['bytes'] / 2**20:.2f} MiB, {result['times_smaller']} times smaller"
    return f"{result['precision']}: {size} than the float model's {result['float_bytes'] / 2**20:.1f}; {how}"


def _predict_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder of a trained model, latent or packed, or a shipped model's name")
    add(
        "texts", nargs="*", metavar="TEXT", help="a text, or a pair with a tab in between (default: lines of the input)"
    )
    add("--context", metavar="TEXT", help="the paragraph in which a question answerer looks")
    _add_json(parser)


def _predict(options: argparse.Namespace) -> str | None:
    with loading():
        from bitlab import inference, packed, rivals  # noqa: F401

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


def _evaluate_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder of a trained model, latent or packed, or a shipped model's name")
    add("task", metavar="TASK-or-DATA", help=f"{GLUE_TASK}, squad, or a file of your own")
    add("--data", default="auto", help="of a task: auto, sample, hub or a folder of original files (default: auto)")
    add("--text", metavar="COLUMN", help="of a file: its text's column, or two for pairs: premise,hypothesis")
    add("--label", metavar="COLUMN", help="of a file: its label's column")
    _add_json(parser)


def _evaluate(options: argparse.Namespace) -> str | None:
    with loading():
        from bitlab import inference, packed, rivals  # noqa: F401
        from bitlab.data.own import read_own
        from bitlab.data.tasks import SQUAD, TASKS, get_task
        from bitlab.models import load_any, task_of

    if options.text or options.label:
        if not (options.text and options.label):
            raise BitlabError("a file has a text and a label: give --text and --label")
        task = task_of(load_any(options.model), tuple(options.text.split(",")))
        data = read_own(options.task, task, options.label)
    elif options.task not in (*TASKS, SQUAD.name) and expanded(options.task).exists():
        raise BitlabError(f"{options.task} is data of your own: name its columns, --text COLUMN --label COLUMN")
    else:
        task, data = get_task(options.task), str(expanded(options.data))
    return _words(options, inference.evaluate(options.model, task, data), _score)


def _score(result: dict) -> str:
    metrics = "  ".join(f"{name} {value:.3f}" for name, value in result["metrics"].items())
    speed = f"{result['seconds']:.1f} s, {result['sentences_per_second']:,.0f} a second"
    scored = f"{result['model']} ({result['precision']}) on {result['task']}: {result['score']:.3f}   {metrics}"
    return f"{scored}   ({result['examples']:,} examples in {speed})"


def _bench_options(parser: argparse.ArgumentParser) -> None:
    from bitlab.bench.settings import BenchSettings

    parser.add_argument("what", nargs="?", default="packed", choices=("packed", "train"), help="(default: packed)")
    add_options(parser, BenchSettings)
    _add_json(parser)


def _bench(options: argparse.Namespace) -> str | None:
    from bitlab.bench.settings import BenchSettings

    settings = BenchSettings(**given(BenchSettings, options))
    measure = _bench_train if options.what == "train" else _bench_packed
    return _words(options, *measure(settings))


def _bench_packed(settings) -> tuple[dict, Callable]:
    if settings.growth or settings.tasks:
        raise BitlabError("--growth and --tasks are about training: bitlab bench train")
    with loading():
        from bitlab.bench.packed import bench, table

    chosen = {"layers": settings.layers, "rounds": settings.rounds, "batches": settings.batch or None}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    return bench(length=settings.length, threads=settings.threads, shape=settings.shape, **chosen), table


def _bench_train(settings) -> tuple[dict, Callable]:
    if len(settings.batch) > 1:
        raise BitlabError("bench train takes one --batch (--growth measures several)")
    with loading():
        from bitlab.bench.training import Shape, bench, growth, table, tasks

    layers = 6 if settings.layers is None else settings.layers
    shape = Shape(layers, batch=(settings.batch or (16,))[0], length=settings.length)
    how = {"threads": settings.threads} | ({"rounds": settings.rounds} if settings.rounds else {})
    if settings.growth:
        return growth(shape, **how), table
    if settings.tasks:
        return tasks(settings.tasks, **how), table
    return bench(shape, **how), table


def _results_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", nargs="?", metavar="RUN", help="folder of a finished run to store in results/")
    add("--format", default="text", help="text, markdown or csv (default: text)")
    add("--tasks", help="only these, averages over them alone: for instance cola,rte or squad")
    add("--folder", metavar="DIR", help="where results are stored (default: those of bitlab and ./results)")
    add("--commands", action="store_true", help="in place of the table the command that made each result, one a line")


def _results(options: argparse.Namespace) -> str | None:
    with loading():
        from bitlab import packed, results, rivals  # noqa: F401

    folder, tasks = options.folder and expanded(options.folder), options.tasks and options.tasks.split(",")
    if options.run:
        return str(results.store(expanded(options.run), folder or results.OWN))
    if options.commands:
        return results.commands(results.records(folder), tasks)
    return results.report(results.load(folder), tasks, options.format)


def _notebooks_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="made if there is none; nothing in it is replaced")


def _notebooks(options: argparse.Namespace) -> str | None:
    with loading():
        from bitlab.course import series

    folder = expanded(options.folder)
    return f"{len(series.copy(folder))} notebooks: jupyter lab {folder}"


def _doctor(options: argparse.Namespace) -> None:
    with loading():
        from bitlab.doctor import findings

    for finding in findings():  # the last of them waits for the hub
        print(finding)


COMMANDS = {
    "doctor": Command("what is installed and found here, and what to do about the rest", lambda parser: None, _doctor),
    "glue": Command("run one GLUE experiment from data to result file", _glue_options, _glue),
    "squad": Command("run one SQuAD v1.1 experiment from data to result file", _squad_options, _experiment),
    "train": Command("run one experiment on data of your own", _train_options, _train),
    "predict": Command("ask a trained model", _predict_options, _predict),
    "evaluate": Command("score a trained model, with its speed", _evaluate_options, _evaluate),
    "distil": Command("make an encoder binary on plain text, for every task to start from", _distil_options, _distil),
    "pack": Command("write a trained binary model with one bit a weight", _pack_options, _pack),
    "bench": Command("time packed inference beside torch's float, bf16 and int8; or training", _bench_options, _bench),
    "augment": Command("make a larger training set by replacing words, as TinyBERT does", _augment_options, _augment),
    "results": Command("the table of stored results, or store a finished run", _results_options, _results),
    "notebooks": Command("lay the series of notebooks down in a folder", _notebooks_options, _notebooks),
}
