"""`bitlab ...`: the command line (`program`), what its commands do, and the doctor."""

from bitlab.cli.program import main

__all__ = ["main"]
