"""The command line: `bitlab doctor | glue TASK | ...`, also `python -m bitlab ...`: its words, and its exit codes.

Options come from the fields of dataclasses (`terminal.options`). What they ask for runs in `cli.commands`, which alone
needs torch, so that `--help` is there at once; it is imported under `loading`, so that Ctrl-C is one line.

Exit code 0; 2 with one line on standard error for bad input and whatever else is expected to fail; 130 for Ctrl-C.
This is the boundary that makes lines of errors.
"""

import argparse
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

from bitlab import __version__
from bitlab.bench.settings import BenchSettings
from bitlab.data.settings import OwnData, Settings
from bitlab.errors import BitlabError
from bitlab.experiments.experiment import Experiment, GeneralDistillation
from bitlab.files import reason
from bitlab.terminal.options import add_options
from bitlab.terminal.startup import STOPPED, loading

MEMORY = ("out of memory", "can't allocate memory", "not enough memory")  # how torch says it
GLUE_TASK = "cola, sst2, mrpc, stsb, qqp, mnli, qnli or rte"
TRAINED = "folder of a trained model, latent or packed, or a shipped model's name"
RUN_FOLDER = "folder of the run (default: runs/NAME)"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # an ASCII terminal shows "?" for a dot in the middle
    try:
        words = sys.argv[1:] if arguments is None else arguments
        options = parser().parse_args(words)
        if options.command is None:
            parser().print_help()
            return 0
        with loading():
            from bitlab.cli.commands import RUN
        options.typed = ["bitlab", *words]
        said = RUN[options.command](options)
        if said is not None:
            print(said)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:  # the reader, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the exit's flush does not complain
        return 0
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        return 130
    except Exception as error:
        line = _expected(error)
        if line is None:
            raise
        print("bitlab:", " ".join(line.split()), file=sys.stderr)
        return 2


def _expected(error: Exception) -> str | None:
    """The line for what is expected to fail: bad input, the system, memory. None for a fault of ours."""
    if isinstance(error, BitlabError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'} can't be used ({reason(error)}): check the path, or give another"
    if isinstance(error, UnicodeError):
        return f"{getattr(error, 'object', '')!r:.100} is no text ({error.reason}): write it in UTF-8"
    if isinstance(error, MemoryError) or any(words in str(error) for words in MEMORY):
        return "there is not enough memory for this: choose a smaller batch, length or model"
    return None


# ------------------------------------------------------------------------------------------------ the options


def _glue(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK", help=GLUE_TASK)
    add_options(parser, Experiment, "glue")
    _add_run(parser, RUN_FOLDER)


def _squad(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(task="squad")
    add_options(parser, Experiment, "squad")
    _add_run(parser, RUN_FOLDER)


def _train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="a .csv, .tsv, .jsonl or .parquet file, or a data set of the hub")
    add_options(parser, OwnData, also=("text", "label"))
    add_options(parser, Experiment, "train", leave=("data", "model", "augment"))
    parser.add_argument("--model", default="minilm", help="minilm, a hub id or a folder (default: minilm)")
    _add_run(parser, RUN_FOLDER)


def _distil(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("texts", nargs="+", metavar="FILE", help="one text a line, a tab between a pair's sentences")
    add_options(parser, GeneralDistillation)
    _add_run(parser, "folder of the encoder; interrupted, it goes on there", required=True)


def _augment(parser: argparse.ArgumentParser) -> None:
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


def _pack(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder of a trained binary model")
    parser.add_argument("out", metavar="OUT", help="folder for the packed model")
    _add_json(parser)


def _predict(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help=TRAINED)
    add(
        "texts", nargs="*", metavar="TEXT", help="a text, or a pair with a tab in between (default: lines of the input)"
    )
    add("--context", metavar="TEXT", help="the paragraph in which a question answerer looks")
    _add_json(parser)


def _evaluate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help=TRAINED)
    add("task", metavar="TASK-or-DATA", help=f"{GLUE_TASK}, squad, or a file of your own")
    add("--data", default="auto", help="of a task: auto, sample, hub or a folder of original files (default: auto)")
    add("--split", help="of a task: train shows what it knows by heart (default: dev)")
    add("--text", metavar="COLUMN", help="of a file: its text's column, or two for pairs: premise,hypothesis")
    add("--label", metavar="COLUMN", help="of a file: its label's column")
    _add_json(parser)


def _bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", default="packed", choices=("packed", "train"), help="(default: packed)")
    add_options(parser, BenchSettings)
    _add_json(parser)


def _results(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", nargs="?", metavar="RUN", help="folder of a finished run to store in results/")
    add("--format", default="text", help="text, markdown or csv (default: text)")
    add("--tasks", help="only these, averages over them alone: for instance cola,rte or squad")
    add("--folder", metavar="DIR", help="where results are stored (default: those of bitlab and ./results)")
    add("--commands", action="store_true", help="in place of the table the command that made each result, one a line")


def _notebooks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="made if there is none; nothing in it is replaced")


def _add_run(parser: argparse.ArgumentParser, output: str, **how) -> None:
    parser.add_argument("--output", metavar="DIR", help=output, **how)
    parser.add_argument("--again", action="store_true", help="run even if the folder holds the finished result")
    _add_json(parser)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


class Command(NamedTuple):
    """A command: what `bitlab --help` says of it, and what makes its options."""

    help: str
    options: Callable[[argparse.ArgumentParser], None]


COMMANDS = {
    "doctor": Command("what is installed and found here, and what to do about the rest", lambda parser: None),
    "glue": Command("run one GLUE experiment from data to result file", _glue),
    "squad": Command("run one SQuAD v1.1 experiment from data to result file", _squad),
    "train": Command("run one experiment on data of your own", _train),
    "predict": Command("ask a trained model", _predict),
    "evaluate": Command("score a trained model, with its speed", _evaluate),
    "distil": Command("make an encoder binary on plain text, for every task to start from", _distil),
    "pack": Command("write a trained binary model with one bit a weight", _pack),
    "bench": Command("time packed inference beside torch's float, bf16 and int8; or training", _bench),
    "augment": Command("make a larger training set by replacing words, as TinyBERT does", _augment),
    "results": Command("the table of stored results, or store a finished run", _results),
    "notebooks": Command("lay the series of notebooks down in a folder", _notebooks),
}


class Parser(argparse.ArgumentParser):
    """argparse, with its complaints cut down to the one line that matters, and a command's options made on demand."""

    build: Callable[[argparse.ArgumentParser], None] | None = None

    def error(self, message):
        raise BitlabError(f"{message} (see {self.prog} --help)")

    def parse_known_args(self, args=None, namespace=None, **more):
        if self.build:
            self.build, build = None, self.build
            build(self)
            return self.parse_known_intermixed_args(args, namespace)  # an option may stand before a text
        return super().parse_known_args(args, namespace, **more)


def parser() -> Parser:
    """What reads `bitlab`'s words; a command's own options are made when the command is named."""
    whole = Parser(prog="bitlab", description="A laboratory for 1-bit transformers.")
    whole.add_argument("--version", action="version", version=f"bitlab {__version__}")
    commands = whole.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.help, description=command.help).build = command.options
    return whole
