"""The command line: `bitlab doctor | glue TASK | ...`, also `python -m bitlab`.

Exit code 0; 2 with one line on standard error for bad input and whatever else is expected to fail; 130 for Ctrl-C.
This is the boundary that makes lines of errors; the commands themselves are in `bitlab.commands`.
"""

import argparse
import os
import sys
from collections.abc import Callable

from bitlab import __version__
from bitlab.commands import COMMANDS
from bitlab.errors import BitlabError
from bitlab.files import reason
from bitlab.startup import STOPPED, loading

MEMORY = ("out of memory", "can't allocate memory", "not enough memory")  # how torch says it


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # an ASCII terminal shows "?" for a dot in the middle
    try:
        with loading():
            words = sys.argv[1:] if arguments is None else arguments
            options = _parser().parse_args(words)
            options.typed = ["bitlab", *words]
        said = options.command(options)
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


def _parser() -> Parser:
    parser = Parser(prog="bitlab", description="A laboratory for 1-bit transformers.")
    parser.add_argument("--version", action="version", version=f"bitlab {__version__}")
    parser.set_defaults(command=lambda options: parser.print_help())
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)
    for name, command in COMMANDS.items():
        added = commands.add_parser(name, help=command.help, description=command.help)
        added.build = command.options
        added.set_defaults(command=command.run)
    return parser
