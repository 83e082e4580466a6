"""How far something is: a bar on a terminal, a line for each tenth elsewhere."""

import sys
import time
from collections.abc import Callable


class Progress:
    """Shown while something goes on.

    Args:
        title: what goes on. unit: what is counted. total: how many there are. done: how many of them are done already.
        report: where lines go if standard error is no terminal.
    """

    def __init__(self, title: str, unit: str, total: int, done: int, report: Callable[[str], None]):
        self.title, self.unit, self.total, self.report = title, unit, total, report
        self.started, self.before, self.done = time.monotonic(), done, done
        self.bar = None
        if sys.stderr.isatty():
            from tqdm.auto import tqdm

            self.bar = tqdm(desc=title, unit=unit, total=total, initial=done, file=sys.stderr)

    def to(self, done: int, note: str = "") -> None:
        """`done` of them are done, of which `note` tells more."""
        tenths, self.done = 10 * self.done // self.total, done
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(done - self.bar.n)
        elif 10 * done // self.total > tenths:
            left = (time.monotonic() - self.started) / (done - self.before) * (self.total - done)
            note = f", {note}" if note else ""
            self.report(f"  {self.title}: {self.unit} {done:,} of {self.total:,}{note}, about {left:.0f} s left")

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()
