"""New sentences by replacing words, row by row, in this process or in many, in parts that survive a kill."""

import multiprocessing
import os
import random
import re
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

from bitlab import files
from bitlab.compiled import torch_threads
from bitlab.data.candidates import MaskedLM, in_case_of, replaceable
from bitlab.data.settings import Settings
from bitlab.errors import BitlabError
from bitlab.terminal.progress import Progress

CHUNK = 16  # rows in a part: what is lost by a kill, for each process

Row = tuple[int, tuple[str, ...]]  # number in the original training set, texts
Slot = tuple[re.Match, list[str]]  # a word in its sentence, what may replace it


def new_sentences(sentence: str, slots: list[Slot], settings: Settings, rng: random.Random) -> list[str]:
    """The different new sentences of all tries, in the order found."""
    found = {}
    for _ in range(settings.tries):
        parts, end = [], 0
        for word, choices in slots:
            if rng.random() < settings.probability and choices:
                parts += [sentence[end : word.start()], in_case_of(word[0], rng.choice(choices))]
                end = word.end()
        found["".join((*parts, sentence[end:]))] = None
    found.pop(sentence, None)
    return list(found)


@dataclass
class Job:
    """What makes new rows of original ones, in this process or in others."""

    settings: Settings
    neighbours: dict[str, list[str]]
    masked_lm: MaskedLM | None = None

    def new_rows(self, rows: list[Row]) -> Iterator[Row]:
        """New rows of each row, each sentence of a pair replaced in rows of its own.

        A sentence's choices hang on the seed, the row's number and the column alone: not on who makes which row.
        """
        predicted = {}
        if self.masked_lm:
            sentences = {sentence for _, texts in rows for sentence in texts}
            with torch_threads(1):  # sums in its order: the same in one process, which has all, as in many
                predicted = self.masked_lm.candidates(sentences, self.settings.candidates)
        for number, texts in rows:
            for column, sentence in enumerate(texts):
                slots = [(word, self._choices(sentence, word, predicted)) for word in replaceable(sentence)]
                rng = random.Random(f"{self.settings.seed} {number} {column}")
                for new in new_sentences(sentence, slots, self.settings, rng):
                    yield number, (*texts[:column], new, *texts[column + 1 :])

    def _choices(self, sentence: str, word: re.Match, predicted: dict) -> list[str]:
        if self.masked_lm and self.masked_lm.is_single_piece(word[0]):
            return predicted[sentence, word.start()]
        return self.neighbours.get(word[0].lower(), [])

    def write(self, part: Path, rows: list[Row]) -> int:
        """Write a part of the table, whole or not at all; returns how many original rows are in it."""
        files.write_json(part, {"rows": list(self.new_rows(rows))})
        return len(rows)


def make_parts(
    job: Job,
    rows: list[tuple[str, ...]],
    masked_lm: Callable[[], tuple] | None,
    processes: int,
    folder: Path,
    report: Callable[[str], None],
) -> None:
    """Write the parts of the new rows that are not in `folder` yet, each whole or not at all.

    Args:
        job: makes them, in this process; with more than one, each is given it and calls `masked_lm` for a model of its
            own.
    Raises:
        BitlabError: where one of the processes is killed.
    """
    folder.mkdir(exist_ok=True)
    numbered = list(enumerate(rows))
    tasks = {_part(folder, start): numbered[start : start + CHUNK] for start in range(0, len(rows), CHUNK)}
    tasks = {part: chunk for part, chunk in tasks.items() if not part.exists()}
    left = sum(map(len, tasks.values()))
    processes = min(processes, len(tasks))
    if processes > 1:
        made = _in_processes(processes, (replace(job, masked_lm=None), masked_lm), tasks)
    else:
        made = (job.write(*task) for task in tasks.items())
    progress = Progress("augment", "row", len(rows), len(rows) - left, report)
    for count in made:
        progress.to(progress.done + count)
    progress.close()


def read_parts(folder: Path, rows: int) -> Iterator[Row]:
    """The new rows in all parts, in the order of the `rows` original ones."""
    for start in range(0, rows, CHUNK):
        yield from files.read_json(_part(folder, start))["rows"]


def _part(folder: Path, start: int) -> Path:
    return folder / f"{start:07}.json"


def _in_processes(count: int, initial: tuple, tasks: dict[Path, list[Row]]) -> Iterator[int]:
    # forks of this process could hang in torch's threads and not use its GPU; a server of forks imports torch once
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(count, context, _start_worker, initial)
    try:
        for done in as_completed([pool.submit(_work, *task) for task in tasks.items()]):
            yield done.result()
    except BrokenProcessPool:
        raise BitlabError(
            "a process was ended from outside, perhaps for lack of memory: the same command goes on, try --processes 1"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_worker: Job | None = None


def _start_worker(job: Job, masked_lm) -> None:
    """Prepare this process: it makes parts, stops at Ctrl-C without a word, and ends when its parent is killed."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()
    _worker = replace(job, masked_lm=MaskedLM(*masked_lm()) if masked_lm else None)


def _work(part: Path, rows: list[Row]) -> int:
    return _worker.write(part, rows)
