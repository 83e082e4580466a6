"""The one exception that bad input raises: its message is a single line that says what, where and what to do."""


class BitlabError(ValueError):
    """Input that bitlab cannot work with.

    The message is one line: what was wrong, where it was found, and what to do about it. The command line
    prints it on standard error and leaves with exit code 2.
    """
