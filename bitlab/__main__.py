"""`python -m bitlab`, and the entry of the `bitlab` command: the guard against Ctrl-C stands before all imports."""

import signal
import sys

from bitlab.terminal.startup import at_ctrl_c, leave


def main() -> int:
    """Run the command line; returns the exit code."""
    at_ctrl_c(leave)
    from bitlab import cli

    sys.unraisablehook = _unraisable
    try:
        at_ctrl_c(signal.default_int_handler)
        code = cli.main()
        at_ctrl_c(signal.SIG_IGN)  # what is left to do is Python's own end
        exec("")  # else `python -m` ends by a signal, not by our code, where a Ctrl-C came in the middle of an exec
    except KeyboardInterrupt:
        leave()
    return code


def _unraisable(unraisable) -> None:
    """An exception that nobody can catch, in a destructor: a Ctrl-C there is one as well."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        leave()
    sys.__unraisablehook__(unraisable)


if __name__ == "__main__":
    sys.exit(main())
