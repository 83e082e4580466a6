"""A process's first moments: whether it is the command line's, what waits until it is needed, and Ctrl-C.

`import bitlab` registers everything with transformers, which takes seconds. The command line answers `--help` before
that, and from its first line on a Ctrl-C is one line and exit code 130: while modules load there is nothing to tidy
up, so the process ends at once; later it is a KeyboardInterrupt.
"""

import importlib
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

STOPPED = "bitlab: stopped; the same command goes on from where it was"


def is_command_line() -> bool:
    """Whether this process runs `bitlab ...` or `python -m bitlab ...`, and is no child of such a one."""
    words = sys.orig_argv
    if sys.argv[0] == "-m":  # so it is until the module that -m names is found
        return "-m" in words and words[words.index("-m") + 1] == "bitlab"
    return Path(sys.argv[0]).stem == "bitlab" and sys.argv[0] in words


def leave(*_) -> None:
    """End this process at once, with the one line."""
    os.write(2, f"{STOPPED}\n".encode())
    os._exit(130)


def at_ctrl_c(handler) -> object:
    """Take another handler for Ctrl-C, unless it is ignored here, as in a background job; returns the one before."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, handler)
    return before


@contextmanager
def loading():
    """While the block imports modules, Ctrl-C ends the process at once: a library might catch or print an exception."""
    before = at_ctrl_c(leave)
    try:
        yield
    finally:
        at_ctrl_c(before)


def lazy(package: str, names: dict[str, str]) -> Callable:
    """A package's `__getattr__`: names are imported from their modules when first asked for, and so are its modules."""

    def __getattr__(name: str):
        if name in names:
            return getattr(importlib.import_module(names[name]), name)
        if not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}"):
            return importlib.import_module(f"{package}.{name}")  # bitlab.cost after `import bitlab`
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return __getattr__
