"""The command line: `bitlab doctor | glue TASK | ...`, also `python -m bitlab`.

Exit code 0, or 2 with one line on standard error for bad input.
"""

import argparse
import json
import os
import sys
from dataclasses import fields, replace

from bitlab.errors import BitlabError
from bitlab.packed.commands import add_pack_arguments, pack_command


class Parser(argparse.ArgumentParser):
    """argparse, with its complaints cut down to the one line that matters."""

    def error(self, message):
        raise BitlabError(f"{message} (see {self.prog} --help)")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        options = _parser().parse_args(arguments)
        return options.command(options)
    except BitlabError as error:
        print("bitlab:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bitlab: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the exit's flush does not complain
        return 0


def _parser() -> Parser:
    parser = Parser(prog="bitlab", description="A laboratory for 1-bit transformers.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    doctor = commands.add_parser("doctor", help="what is installed and found here, and what to do about the rest")
    doctor.set_defaults(command=_doctor)
    glue = commands.add_parser("glue", help="run one GLUE experiment from data to result file")
    _add_task(glue)
    _add_experiment_options(glue)
    glue.set_defaults(command=_glue)
    squad = commands.add_parser("squad", help="run one SQuAD v1.1 experiment from data to result file")
    _add_experiment_options(squad)
    _add_window_options(squad)
    squad.set_defaults(command=_experiment, task="squad")
    distil = commands.add_parser("distil", help="make an encoder binary on plain text, for every task to start from")
    _add_distil_options(distil)
    distil.set_defaults(command=_distil)
    pack = commands.add_parser("pack", help="write a trained binary model with one bit a weight")
    add_pack_arguments(pack)
    pack.set_defaults(command=pack_command)
    bench = commands.add_parser("bench", help="time packed inference beside torch's float, bf16 and int8; or training")
    _add_bench_options(bench)
    bench.set_defaults(command=_bench)
    augment = commands.add_parser("augment", help="make a larger training set by replacing words, as TinyBERT does")
    _add_task(augment)
    _add_augment_options(augment)
    augment.set_defaults(command=_augment)
    results = commands.add_parser("results", help="the table of stored results, or store a finished run")
    results.add_argument("run", nargs="?", metavar="RUN", help="folder of a finished run to store in results/")
    results.add_argument("--format", default="text", help="text, markdown or csv (default: text)")
    results.add_argument("--tasks", help="only these, averages over them alone: for instance cola,rte or squad")
    results.add_argument(
        "--folder", metavar="DIR", help="where results are stored (default: those of bitlab and ./results)"
    )
    results.set_defaults(command=_results)
    notebooks = commands.add_parser("notebooks", help="lay the series of notebooks down in a folder")
    notebooks.add_argument("folder", metavar="DIR", help="made if there is none; nothing in it is replaced")
    notebooks.set_defaults(command=_notebooks)
    return parser


def _add_task(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK", help="cola, sst2, mrpc, stsb, qqp, mnli, qnli or rte")


def _add_bench_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("what", nargs="?", default="packed", choices=("packed", "train"), help="(default: packed)")
    add("--layers", type=int, help="of the encoder (default: 12, with train 6); packed, 0: linear layers alone")
    add("--length", type=int, default=128, help="tokens of a sentence (default: 128)")
    add(
        "--batch",
        type=int,
        action="append",
        help="sentences at once (default: 1, then 8; with train 16)",
    )
    add("--rounds", type=int, help="runs of each contender, in turns (default: 7, with train 5)")
    add("--threads", type=int, default=1, help="threads (default: 1)")
    add("--growth", action="store_true", help="train: how the step's time grows with length, batch and layers")
    add("--tasks", metavar="FOLDER", help="train: real tokens a second on the GLUE files in FOLDER")
    add("--json", action="store_true", help="print the result as JSON")


def _bench(options: argparse.Namespace) -> int:
    measure = _bench_train if options.what == "train" else _bench_packed
    result, table = measure(options)
    print(json.dumps(result, indent=1) if options.json else table(result))
    return 0


def _bench_packed(options: argparse.Namespace):
    from bitlab.bench.packed import bench, table

    if options.growth or options.tasks:
        raise BitlabError("--growth and --tasks are about training: bitlab bench train")
    given = {"layers": options.layers, "rounds": options.rounds, "batches": options.batch and tuple(options.batch)}
    given = {name: value for name, value in given.items() if value is not None}
    return bench(length=options.length, threads=options.threads, **given), table


def _bench_train(options: argparse.Namespace):
    from bitlab.bench.training import Shape, bench, growth, table, tasks

    if len(options.batch or []) > 1:
        raise BitlabError("bench train takes one --batch (--growth measures several)")
    batch, layers = options.batch or [16], 6 if options.layers is None else options.layers
    shape = Shape(layers, batch=batch[0], length=options.length)
    rounds = {} if options.rounds is None else {"rounds": options.rounds}
    if options.growth:
        return growth(shape, threads=options.threads, **rounds), table
    if options.tasks:
        return tasks(options.tasks, threads=options.threads, **rounds), table
    return bench(shape, threads=options.threads, **rounds), table


def _add_experiment_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="sample", help="sample, minilm, a hub id or a folder (default: sample)")
    add("--data", default="auto", help="auto, sample, hub or a folder of original files (default: auto)")
    add("--schedule", help="precisions after full precision (default: the method's; for bit 'W1A2 -> W1A1')")
    add("--method", default="bit", help="bit, bit-released, bibert or binarybert (default: bit)")
    add("--preset", default="quick", help="quick or full: the size of the budget (default: quick)")
    add("--seed", type=int, default=0)
    add("--max-steps", type=int, help="at most so many optimizer steps a stage, the teacher's included")
    add("--teacher", help="a fine-tuned full-precision model, instead of fine-tuning one")
    add("--start", metavar="MODEL", help="a binary model whose encoder to start from, for instance of `bitlab distil`")
    add("--train-examples", type=int, help="use only the first so many training examples")
    add("--augment", metavar="PATH", help="distil on this table of `bitlab augment` (a folder or its train.tsv)")
    add("--epochs", type=float, help="of each distillation stage")
    add("--batch-size", type=int, help="of each distillation stage")
    add("--learning-rate", type=float, help="of each distillation stage")
    add("--alpha-learning-rate", type=float, default=1e-4, help="of the scales, in each distillation stage")
    add("--teacher-epochs", type=float, help="of the teacher's fine-tuning")
    add("--teacher-learning-rate", type=float, help="of the teacher's fine-tuning")
    add(
        "--alpha",
        default="rescale",
        help="scales at a stage change: rescale, carry or reinit (default: rescale)",
    )
    add("--stage-teacher", help="previous, full or both (default: the method's; for bit previous)")
    add("--selection", default="last", help="last: dev is used once; best: best of ten dev evaluations")
    add("--bf16", action="store_true", help="train in mixed precision: faster where the machine has bf16")
    add("--dropout", type=float, help="of the student in training; the model's own if absent")
    add("--logit-weight", type=float, default=1.0, help="of the answers in the loss (default: 1)")
    add("--hidden-weight", type=float, default=1.0, help="of the hidden states in the loss (default: 1)")
    add("--relative-hidden", action="store_true", help="hidden states count alike: errors over the teacher's variance")
    add("--group-by-length", action="store_true", help="train in batches of similar length: less padding, faster")
    add("--output", metavar="DIR", help="folder of the run (default: runs/NAME)")
    add("--again", action="store_true", help="run even if the folder holds the finished result")
    add("--json", action="store_true", help="print the result as JSON")


def _add_window_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--max-length", type=int, help="tokens of a window (default: 384, or what the model reads)")
    add("--stride", type=int, help="tokens that a window shares with the one before it (default: 128)")
    add("--question-length", type=int, help="longer questions are cut after so many tokens (default: 64)")


def _add_distil_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("texts", nargs="+", metavar="FILE", help="one text a line, a tab between the two sentences of a pair")
    add("--output", required=True, metavar="DIR", help="folder of the encoder; interrupted, it goes on there")
    add("--model", default="minilm", help="sample, minilm, a hub id or a folder (default: minilm)")
    add("--precision", default="W1A1", help="(default: W1A1)")
    add("--epochs", type=float, default=1.0, help="passes over the texts (default: 1)")
    add("--max-steps", type=int, help="at most so many optimizer steps")
    add("--batch-size", type=int, default=32, help="(default: 32)")
    add("--learning-rate", type=float, default=2e-3, help="(default: 2e-3)")
    add("--alpha-learning-rate", type=float, default=1e-2, help="of the scales (default: 1e-2)")
    add("--max-length", type=int, default=128, help="longer texts are cut after so many tokens (default: 128)")
    add("--seed", type=int, default=0)
    add("--bf16", action="store_true", help="train in mixed precision: faster where the machine has bf16")
    add("--again", action="store_true", help="train even if the folder holds the encoder")
    add("--json", action="store_true", help="print the record as JSON")


def _distil(options: argparse.Namespace) -> int:
    from bitlab.experiments.general import SETTINGS, distil
    from bitlab.experiments.stage import processes

    settings = replace(SETTINGS, **{k: v for k, v in vars(options).items() if hasattr(SETTINGS, k)})
    names = ("output", "model", "precision", "max_length", "seed", "again")
    arguments = {name: getattr(options, name) for name in names}
    record = distil(options.texts, settings=settings, report=_silent if options.json else _say, **arguments)
    if processes().is_main_process:
        missed = "  ".join(f"{share:.3f}" for share in record["missed"])
        print(json.dumps(record, indent=1) if options.json else f"misses of each hidden state's variance: {missed}")
    return 0


def _glue(options: argparse.Namespace) -> int:
    from bitlab.data.tasks import get_glue_task

    get_glue_task(options.task)
    return _experiment(options)


def _experiment(options: argparse.Namespace) -> int:
    from bitlab.experiments import Experiment, run
    from bitlab.experiments.stage import processes

    names = {field.name for field in fields(Experiment)}
    experiment = Experiment(**{key: value for key, value in vars(options).items() if key in names})
    result = run(experiment, options.output, options.again, report=_silent if options.json else _say)
    if processes().is_main_process:
        print(json.dumps(result, indent=1) if options.json else _table(result))
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def _silent(line: str) -> None:
    """With --json standard output holds the result alone."""


def _table(result: dict) -> str:
    lines = [f"{result['task']} · {result['model']} · data: {result['data']} · seed {result['seed']}"]
    for stage in result["stages"]:
        metrics = "  ".join(f"{name} {value:.3f}" for name, value in stage["metrics"].items())
        lines.append(f"  {stage['precision']:7} {stage['score']:.3f}   {metrics}   ({stage['steps']} steps)")
    return "\n".join(lines)


def _add_augment_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", default="auto", help="auto, sample, hub or a folder of original files (default: auto)")
    add("--vectors", required=True, metavar="FILE", help="word vectors: a GloVe text file")
    add("--mlm", metavar="MODEL", help="a masked language model: hub id or folder (default: word vectors alone)")
    add("--tries", type=int, help="new sentences tried for each sentence (default: 30, sst2 and qnli 20)")
    add("--probability", type=float, default=0.4, help="that a word is replaced (default: 0.4)")
    add("--candidates", type=int, default=15, help="at most so many for a word (default: 15)")
    add("--seed", type=int, default=0)
    add(
        "--processes",
        type=int,
        help="the table is the same for any number (default: 1; with --mlm one a core, up to 8)",
    )
    add("--output", metavar="DIR", help="folder of the table (default: runs/augment-TASK-FINGERPRINT)")
    add("--json", action="store_true", help="print the table's record as JSON")


def _augment(options: argparse.Namespace) -> int:
    from functools import partial

    from bitlab.data.augment import augment, settings_for
    from bitlab.data.tasks import get_glue_task
    from bitlab.models import load_masked_lm

    task = get_glue_task(options.task)
    names = ("tries", "probability", "candidates", "seed")
    settings = settings_for(task, **{name: getattr(options, name) for name in names})
    load = partial(load_masked_lm, options.mlm) if options.mlm else None
    processes = options.processes
    if processes is None:
        processes = min(8, os.cpu_count() or 1) if load else 1  # word vectors alone take less than a process's start
    report = _silent if options.json else _say
    _, record = augment(task, options.data, options.vectors, settings, load, processes, options.output, report)
    if options.json:
        print(json.dumps(record, indent=1))
    return 0


def _results(options: argparse.Namespace) -> int:
    from bitlab import results

    if options.run:
        print(results.store(options.run, options.folder or results.OWN))
    else:
        print(results.report(results.load(options.folder), options.tasks and options.tasks.split(","), options.format))
    return 0


def _notebooks(options: argparse.Namespace) -> int:
    from bitlab.course import series

    print(f"{len(series.copy(options.folder))} notebooks: jupyter lab {options.folder}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from bitlab.doctor import findings

    for finding in findings():
        print(finding)
    return 0
