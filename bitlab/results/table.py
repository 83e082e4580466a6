"""The table of results as text, Markdown or CSV: ours beside the published rows, and what every row stands on."""

import csv
import io
import statistics
import textwrap
from collections.abc import Iterable, Sequence

from bitlab.data.tasks import get_task
from bitlab.errors import BitlabError
from bitlab.experiments.schedule import FULL
from bitlab.results import published
from bitlab.results.rows import GLUE, SQUAD, Row, Run, rows, spread

FORMATS = ("text", "markdown", "csv")
CAPTIONS = {
    "GLUE": "GLUE, dev sets, percent: mean ± standard deviation over seeds. MRPC and QQP: accuracy, as the papers "
    "print them; STS-B: mean of Pearson and Spearman; CoLA: Matthews correlation. "
    "avg: mean of the tasks (MNLI: matched), only for rows with no task missing; published averages as printed, "
    "of which BERT's, BiBERT's and BinaryBERT's count MNLI mismatched too. "
    "MiB and GFLOPs (length 128) of ours by bitlab.cost. time: training of one seed's distillation stages (of the "
    "full-precision model in its rows), all tasks of the row.",
    "SQuAD": "SQuAD v1.1, dev set, percent: mean ± standard deviation over seeds. EM: exact match.",
}
PLAIN = ("model", "data", "method", "schedule")
LAST = ("MiB", "GFLOPs", "seeds", "steps", "time")


def report(results: Iterable[dict], tasks: Sequence[str] | None = None, format: str = "text") -> str:
    """The GLUE table and the SQuAD table of stored results, or one restricted to some tasks.

    Args:
        results: as `bitlab.results.load` gives them.
        tasks: names, for instance ("cola", "rte", "squad"): only their columns, and averages over them alone, the
            published ones too. None: everything.
        format: "text", "markdown" (each with a caption and a note a row) or "csv" (bare numbers; the SQuAD table
            follows after an empty line).
    Errors: BitlabError for another format, an unknown task, or a result that is none.
    """
    if format not in FORMATS:
        raise BitlabError(f"no format {format!r}: choose {', '.join(FORMATS)}")
    results = list(results)
    named = None if tasks is None else {get_task(name).name for name in tasks}
    tables = []
    for title, columns, names in (("GLUE", GLUE, ("glue", "glue_augmented")), ("SQuAD", SQUAD, ("squad",))):
        kept = {column: entry for column, entry in columns.items() if named is None or entry[0] in named}
        if kept:
            lines = rows(results, kept) + [_restricted(row, kept) for name in names for row in published(name)]
            tables.append(_csv(title, lines, kept) if format == "csv" else _page(title, lines, kept, format))
    return "\n\n".join(tables)


def _restricted(row: Row, columns: dict) -> Row:
    """A published row with these columns; an average over others than the printed ones is taken anew."""
    if columns.keys() != row.columns.keys():
        row.printed = {column: row.printed[column] for column in columns}
        row.columns = columns
    return row


# ------------------------------------------------------------------------------------------------ text and Markdown


def _page(title: str, lines: list[Row], columns: dict, format: str) -> str:
    head = ["", *PLAIN, *columns, *(["avg"] if title == "GLUE" else []), *LAST]
    body = [_cells(row, number, columns, title == "GLUE") for number, row in enumerate(lines, 1)]
    notes = [f"[{number}] {_note(row)}" for number, row in enumerate(lines, 1) if not row.published]
    notes = notes or [f"no results of {title} are stored"]
    if format == "markdown":
        left = 1 + len(PLAIN)
        rule = ["---" if i < left else "---:" for i in range(len(head))]
        table = "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *body))
        return "\n\n".join([CAPTIONS[title], table, "\n".join(f"- {note}" for note in notes)])
    widths = [max(map(len, column)) for column in zip(head, *body)]
    align = [str.ljust if i <= len(PLAIN) else str.rjust for i in range(len(head))]
    text = ["  ".join(f(c, w) for f, c, w in zip(align, cells, widths)).rstrip() for cells in (head, *body)]
    return "\n".join(
        [*textwrap.wrap(CAPTIONS[title], 120), "", text[0], "-" * max(map(len, text)), *text[1:], "", *notes]
    )


def _cells(row: Row, number: int, columns: dict, average: bool) -> list[str]:
    scores = [_mean(row.values(column)) for column in columns]
    if average:
        scores.append(_number(row.average, row.average_spread))
    schedule = row.schedule.removeprefix(FULL + " -> ")
    mark = "" if row.published else f"[{number}]"
    cost = [f"{value:.3g}" if value is not None else "-" for value in (row.size, row.flops)]
    method = ", ".join(filter(None, (row.method, row.options)))
    return [mark, row.model, row.data, method, schedule, *scores, *cost, *_effort(row)]


def _mean(values: Sequence[float]) -> str:
    return _number(statistics.mean(values), spread(values)) if values else "-"


def _number(value: float | None, deviation: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" + (f" ±{deviation:.1f}" if deviation is not None else "")


def _effort(row: Row) -> list[str]:
    """Seeds, steps and time: one number, or the range over the row's tasks."""
    if row.published:
        return ["-", "-", "-"]
    groups = row.runs.values()
    return [_range(map(len, groups)), _range(sum(group[0].steps) for group in groups), _duration(seconds(row))]


def _range(numbers: Iterable[int]) -> str:
    numbers = sorted(numbers)
    return f"{numbers[0]}" if numbers[0] == numbers[-1] else f"{numbers[0]}-{numbers[-1]}"


def seconds(row: Row) -> float:
    """Training time of one seed (the mean of the seeds), summed over the row's tasks."""
    return sum(statistics.mean(run.seconds for run in group) for group in row.runs.values())


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _note(row: Row) -> str:
    """What the row stands on: budget, every task's seeds and training, machines, and what is missing."""
    parts = [row.budget, *(_task_note(task, group) for task, group in row.runs.items())]
    parts.append(_machines(row))
    if row.missing:
        parts.append(f"missing, so without an average: {', '.join(row.missing)}")
    elif row.uneven:
        parts.append("without an average: its tasks were trained for very different times")
    return "; ".join(parts)


def _machines(row: Row) -> str:
    return " / ".join(dict.fromkeys(run.machine for group in row.runs.values() for run in group))


def _task_note(task: str, group: list[Run]) -> str:
    seeds = ", ".join(str(run.seed) for run in sorted(group, key=lambda run: run.seed) if run.seed >= 0)
    trained = " + ".join(map(str, group[0].steps))
    details = ", ".join(f"{name} {value:.3g}" for name, value in group[0].training.items())
    several = "s" * (len(group) > 1)
    words = [f"seed{several} {seeds}" if seeds else f"{len(group)} given model{several}", f"{trained} steps"]
    words += [f"({details})"] if details else []
    both = {name: statistics.mean(run.metrics[name] for run in group) for name in get_task(task).metrics}
    words += [f"{name} {100 * value:.1f}" for name, value in both.items() if len(both) > 1 and task != "squad"]
    return f"{get_task(task).title} {', '.join(words).replace(' steps, (', ' steps (')}"


# ------------------------------------------------------------------------------------------------ CSV


def _csv(title: str, lines: list[Row], columns: dict) -> str:
    scores = [name for column in columns for name in (column, f"{column} sd")]
    scores += ["avg", "avg sd"] if title == "GLUE" else []
    head = ["source", *PLAIN, "precision", "options", "budget", *scores, "size_mib", "flops_g"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*head, "missing", "seeds", "steps", "seconds", "machine", "notes"])
    for row in lines:
        who = ["published" if row.published else "bitlab", row.model, row.data, row.method, row.schedule]
        numbers = [n for c in columns for n in (_plain_mean(row.values(c)), _plain(spread(row.values(c))))]
        numbers += [_plain(row.average), _plain(row.average_spread)] if title == "GLUE" else []
        numbers += [_plain(row.size, 3), _plain(row.flops, 4)]
        effort = [""] * 5
        if not row.published:
            effort = [*_effort(row)[:2], _plain(seconds(row), 1), _machines(row), _note(row)]
        writer.writerow([*who, row.precision, row.options, row.budget, *numbers, " ".join(row.missing), *effort])
    return out.getvalue().rstrip("\n")


def _plain_mean(values: Sequence[float]) -> str:
    return _plain(statistics.mean(values)) if values else ""


def _plain(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"
