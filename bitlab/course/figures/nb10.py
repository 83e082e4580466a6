"""What notebook 10 shows of GLUE: a task's file, a command at work, the measured rows, and what each loses."""

import contextlib
import html
import io
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from IPython.display import HTML
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from bitlab import cli, inference, results
from bitlab.course.plots import COLORS, INK, PAPER, bars
from bitlab.data.glue import load_glue
from bitlab.data.tasks import TASKS, get_task
from bitlab.experiments import Experiment
from bitlab.experiments.schedule import FULL
from bitlab.files import zoo
from bitlab.options import given
from bitlab.results import CONSTANT, GLUE

METHODS = {"bit": "BiT", "bibert": "BiBERT", "binarybert": "BinaryBERT", "bit-released": "BiT as released"}
SAID = {"logit weight 0.1, relative hidden": "loss of 06", "group by length": "by length", "dropout 0.0": "no dropout"}
SAID |= {"start general-minilm/W1A1": "from a binary encoder", "stage teacher both": "both teachers"}
LEARNED = 3  # points that a teacher must lie above the constant answer
ACROSS = 4  # panels in a row


# ------------------------------------------------------------------------------------------------ one task


def write_tsv(task: str, folder: Path) -> Path:
    """The sample sentences of a task of single sentences as original GLUE files; returns the folder of all tasks."""
    place = folder / get_task(task).folder
    place.mkdir(parents=True)
    for split, rows in load_glue(task, "sample").items():
        lines = [f"{row['sentence']}\t{row['label']}\n" for row in rows]
        (place / f"{split.replace('validation', 'dev')}.tsv").write_text("".join(["sentence\tlabel\n", *lines]))
    return folder


def asked_for(command: str) -> Experiment:
    """The experiment that a line `bitlab glue ...` asks for."""
    return Experiment(**given(Experiment, cli._parser().parse_args(shlex.split(command)[1:])))


class _Shell(io.TextIOBase):
    """Standard output that hands on what is printed, and on which somebody presses Ctrl-C when a certain text comes."""

    def __init__(self, steps: bool, stop_at: str | None):
        self.shown, self.steps, self.stop_at, self.left_out = sys.stdout, steps, stop_at, False

    def write(self, text: str) -> int:
        stop = bool(self.stop_at and self.stop_at in text)
        if text != "\n":
            self.left_out = " step " in text and not self.steps and not stop
        if not self.left_out:
            self.shown.write(f"{text}\n" if stop else text)
        if stop:
            raise KeyboardInterrupt
        return len(text)


def typed(command: str, folder: Path, steps: bool = False, stop_at: str | None = None) -> None:
    """Type a command in a folder, and print what it prints.

    Args:
        command: "bitlab glue ...".
        steps: the lines of progress, too.
        stop_at: press Ctrl-C as soon as this text is printed.
    """
    shell = _Shell(steps, stop_at)
    with contextlib.chdir(folder), contextlib.redirect_stdout(shell), contextlib.redirect_stderr(shell):
        cli.main(shlex.split(command)[1:])


def there(tasks: Sequence[str], source: str | Path) -> list[str]:
    """The tasks whose training files a folder has; says which it lacks. Of another source: all."""
    if not Path(source).is_dir():
        return list(tasks)
    found = [task for task in tasks if (Path(source) / get_task(task).folder / "train.tsv").is_file()]
    for task in set(tasks) - set(found):
        print(f"{get_task(task).title}: no train.tsv in this folder, left out")
    return found


def row(run: Path) -> str:
    """A run's rows of the table, as text: its columns alone."""
    table = results.tabulate(results.frame([results.collect(run)]))
    known = table[[column for column in GLUE if table[column].notna().any()]]
    shown = (
        table[["model", "data", "method", "schedule"]].join(known.round(1)).join(table[["size_mib", "steps", "seeds"]])
    )
    return shown.to_string(index=False)


def scores(found: Mapping[str, float], constant: float, baseline: str, control: str, metric: str) -> Axes:
    """Scores as bars from zero, with what always the same answer scores."""
    ax = bars({name: 100 * score for name, score in found.items()}, baseline=baseline, control=control, ylabel=metric)
    ax.axhline(100 * constant, color=INK, linestyle=(0, (1, 2)), linewidth=1.1, label="always the same answer")
    ax.set_ylim(0, 115)
    ax.legend(loc="upper right", bbox_to_anchor=(1, 1.16))
    told = ", ".join(f"{name} {100 * score:.1f}" for name, score in found.items())
    ax.figure.set_label(f"Dev scores in percent, bars from zero: {told}; always the same answer {100 * constant:.1f}.")
    return ax


# ------------------------------------------------------------------------------------------------ the stored rows


@dataclass(frozen=True)
class Cell:
    """One task in one budget. scores, full: percent, one a seed, of the students and of their teachers. epochs: of all
    stages. batch: examples a step."""

    scores: list[float]
    full: list[float]
    epochs: float
    batch: int
    names: list[str]

    @property
    def lost(self) -> float:
        """Points, on average over the seeds, each against the teacher of its own run."""
        return sum(self.full) / len(self.full) - sum(self.scores) / len(self.scores)


@dataclass(frozen=True)
class Budget:
    """Runs that were made with the same settings; what differs by task, the epochs, is told with each of its cells."""

    method: str
    path: str
    options: str
    cells: dict[str, Cell]


def budgets(runs: pd.DataFrame) -> list[Budget]:
    """One row a budget: runs whose names differ in task and seed alone, and the stages on their way by themselves.

    Args:
        runs: as of `bitlab.results.load`, of one model and one source of data.
    """
    metrics = sorted({metric for _, names in GLUE.values() for metric in names})
    first = runs.groupby("name")[metrics].transform("first").add_prefix("full ")
    family = [name.removeprefix(f"{task}-").rsplit("-seed", 1)[0] for name, task in zip(runs.name, runs.task)]
    students = runs.join(first).assign(family=family)
    students = students[students.path != FULL]
    found = []
    for (_, path), group in students.groupby(["family", "path"], sort=False):
        cells = {c: _cell(group[group.task == task], names) for c, (task, names) in GLUE.items()}
        cells = {column: cell for column, cell in cells.items() if cell}
        name = METHODS[group.method.iloc[0]]
        found.append(Budget(name, path.removeprefix(f"{FULL} -> "), _short(group), cells))
    return sorted(found, key=lambda each: (-len(each.cells), each.method, -int(each.path[3]), each.path, each.options))


def _short(group: pd.DataFrame) -> str:
    """What is special in a row's options and budget, in few words."""
    words = f"{group.options.iloc[0]}, {group.budget.iloc[0].removeprefix('full').removeprefix(', ')}"
    for long, short in SAID.items():
        words = words.replace(long, short)
    return ", ".join(filter(None, words.split(", ")))


def _cell(group: pd.DataFrame, metrics: Sequence[str]) -> Cell | None:
    if group.empty:
        return None
    scores, full = (100 * group[names].mean(axis=1) for names in (metrics, [f"full {name}" for name in metrics]))
    examples = group.recipe.iloc[0].partition('"examples": ')[2].partition(",")[0]
    epochs = group.seen.iloc[0] / int(examples.rstrip("}"))
    return Cell(list(scores), list(full), epochs, int(group.batch_size.iloc[0]), list(group.name))


def table(rows: Sequence[Budget], records: Iterable[dict], published: pd.DataFrame) -> HTML:
    """The measured rows, the published ones below them, and the commands of each row to unfold.

    Args:
        records: as of `bitlab.results.records`, for the commands.
        published: as of `bitlab.results.published`.
    """
    columns = [column for column in GLUE if any(column in each.cells for each in rows)]
    by_name = {record["name"]: record for record in records}
    head = ["", "method", "path", "options", *columns]
    lines = [
        [f"[{n}]", r.method, r.path, r.options, *(_shown(r.cells.get(c)) for c in columns)] for n, r in _numbered(rows)
    ]
    lines.append(
        ["", "always the same answer", "", "", *(f"{CONSTANT[c]:.1f}" if c in CONSTANT else "" for c in columns)]
    )
    title = "published: BERT-base, the paper's budget, best of many evaluations on dev"
    lines.append(["", f"<b>{title}</b>", *[""] * (len(head) - 2)])
    lines += [
        ["", r["method"], r["schedule"], "", *(f"{r[c]:.1f}" for c in columns)] for r in published.to_dict("records")
    ]
    page = "".join(f"<tr>{''.join(f'<td>{text}</td>' for text in line)}</tr>" for line in lines)
    page = f"<table><tr>{''.join(f'<th>{text}</th>' for text in head)}</tr>{page}</table>"
    folded = "".join(_folded(n, r, by_name) for n, r in _numbered(rows))
    return HTML(f"{page}<details><summary>the commands that made these rows</summary>{folded}</details>")


def _numbered(rows: Sequence[Budget]) -> Iterable[tuple[int, Budget]]:
    return enumerate(rows, 1)


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return ""
    scores = pd.Series(cell.scores)
    spread = f" ± {scores.std():.1f}" if len(scores) > 1 else ""
    trained = f"{cell.epochs:.2g} ep. of {cell.batch}, teacher {cell.full[0]:.1f}"
    return f"{scores.mean().round(1) + 0.0:.1f}{spread}<br><small>{trained}</small>"


def _folded(number: int, budget: Budget, records: Mapping[str, dict]) -> str:
    """A row's commands, one a task: that of its first seed, and which seeds there are."""
    lines = []
    for cell in budget.cells.values():
        seeds = ", ".join(str(records[name]["seed"]) for name in cell.names)
        lines.append(f"{results.command(records[cell.names[0]])}  # seeds {seeds}" if len(cell.names) > 1 else "")
        lines[-1] = lines[-1] or str(results.command(records[cell.names[0]]))
    return f"<p>[{number}] {budget.method} {budget.path}</p><pre>{html.escape(chr(10).join(lines))}</pre>"


def drops(rows: Sequence[Budget], published: pd.DataFrame) -> list[Axes]:
    """Points lost against full precision, a panel a row: bars from zero, behind them what the constant answer loses.

    Bars are hollow where the teacher has hardly learned anything, so that there is nothing to lose.

    Args:
        published: rows as of `bitlab.results.published`, the first of them in full precision.
    """
    columns = [column for column in GLUE if any(column in each.cells for each in rows)]
    full, *printed = published.to_dict("records")
    count = len(printed) + len(rows)
    high = -(-count // ACROSS)
    _, grid = plt.subplots(high, ACROSS, figsize=(9.6, 0.6 + 1.75 * high), sharex=True, sharey=True, squeeze=False)
    axes = list(grid.flat)
    for ax, line in zip(axes, printed):
        lost = {column: full[column] - line[column] for column in columns}
        _panel(ax, f"{line['method']} {line['schedule']}\npublished, BERT-base", lost, full, {})
    for ax, each in zip(axes[len(printed) :], rows):
        teachers = {column: cell.full[0] for column, cell in each.cells.items()}
        words = {column: f"{cell.epochs:.2g} ep" for column, cell in each.cells.items()}
        name = "from a binary encoder" if "encoder" in each.options else "stored, MiniLM"
        _panel(ax, f"{each.method} {each.path}\n{name}", {c: e.lost for c, e in each.cells.items()}, teachers, words)
    for ax in axes[count:]:
        ax.axis("off")
    for ax in axes[::ACROSS]:
        ax.set_yticks(range(len(columns)), columns)
    axes[0].invert_yaxis()
    for ax in grid[-1]:
        ax.set_xlabel("points lost")
    told = "; ".join(f"{r.method} {r.path} " + ", ".join(f"{c} {e.lost:.0f}" for c, e in r.cells.items()) for r in rows)
    axes[0].figure.set_label(f"Points lost by task, a panel a row. Stored: {told}.")
    return axes[:count]


def _panel(ax: Axes, title: str, lost: Mapping, teachers: Mapping, words: Mapping) -> None:
    for place, (column, points) in enumerate(lost.items()):
        nothing = teachers[column] - CONSTANT[column]
        known = nothing > LEARNED
        ax.barh(place, max(nothing, 0), 0.8, facecolor="white", edgecolor="#bbbbbb", hatch="////", zorder=0)
        ax.barh(place, points, 0.5, color=COLORS["binary"] if known else "white", edgecolor=INK, linewidth=0.8)
        text = f"{points:.0f}  {words.get(column, '')}".strip()
        ax.text(max(points, 0) + 3, place, text, va="center", fontsize=7, bbox=PAPER)
    ax.set_title(title, fontsize=8)
    ax.set_xlim(0, 100)


# ------------------------------------------------------------------------------------------------ shipped models


def shipped() -> dict[str, str]:
    """The trained models that come with bitlab: name -> task."""
    return {name: task for name in zoo() for task in (*TASKS, "squad") if name.startswith(task)}


def recomputed(name: str, task: str, source: str | None) -> str:
    """A shipped model's score on real dev data, with its seconds; or what is missing for it."""
    if source is None:
        return f"{name}: needs the dev file of {get_task(task).title}; name its folder in BITLAB_DATA"
    found = inference.evaluate(name, task, source)
    numbers = ", ".join(f"{metric} {100 * value:.1f}" for metric, value in found["metrics"].items())
    return f"{name} ({found['precision']}): {numbers} on {found['examples']} examples in {found['seconds']:.1f} s"


def real_data() -> str | None:
    """The folder of GLUE's tasks that BITLAB_DATA names, or that lies in the folder that it names; None where unset."""
    named = os.environ.get("BITLAB_DATA")
    places = [Path(named), *sorted(Path(named).glob("*/"))] if named else []
    return next((str(place) for place in places if (place / TASKS["sst2"].folder).is_dir()), named or None)
