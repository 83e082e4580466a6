"""What notebook 10 shows of GLUE: a task's file, a command at work, the measured rows, and what each loses."""

import contextlib
import html
import io
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from bitlab import inference, results
from bitlab.cli import program
from bitlab.course.plots import BESIDE, COLORS, CONTROL, GUESSING, INK, PAPER, Page, bars, told
from bitlab.data.glue import load_glue
from bitlab.data.tasks import TASKS, get_task
from bitlab.experiments import Experiment
from bitlab.experiments.schedule import FULL
from bitlab.files import zoo
from bitlab.results import CONSTANT, GLUE
from bitlab.terminal.options import given
from bitlab.terminal.text import aligned

METHODS = {"bit": "BiT", "bibert": "BiBERT", "binarybert": "BinaryBERT", "bit-released": "BiT as released"}
SAID = {"logit weight 0.1, relative hidden": "loss of 06", "group by length": "by length", "dropout 0.0": "no dropout"}
SAID |= {"start general-minilm/W1A1": "from a binary encoder", "stage teacher both": "both teachers"}
LEARNED = 3  # points that a teacher must lie above the constant answer


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
    return Experiment(**given(Experiment, program.parser().parse_args(shlex.split(command)[1:])))


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
        program.main(shlex.split(command)[1:])


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
    percent = {name: 100 * score for name, score in found.items()}
    ax = bars(percent, baseline=baseline, control=control, ylabel=metric)
    ax.axhline(100 * constant, label="always the same answer", **GUESSING)
    ax.set_ylim(0, 115)
    ax.legend(loc="upper right", bbox_to_anchor=(1, 1.16))
    ends = f"{told(percent, '.1f')}; always the same answer {100 * constant:.1f}"
    ax.figure.set_label(f"Dev scores in percent, bars from zero: {ends}.")
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


def table(rows: Sequence[Budget], records: Iterable[dict], published: pd.DataFrame) -> Page:
    """The measured rows, the published ones below them, and the commands of each row to unfold.

    Args:
        records: as of `bitlab.results.records`, for the commands.
        published: as of `bitlab.results.published`.
    """
    columns = [column for column in GLUE if any(column in each.cells for each in rows)]
    by_name = {record["name"]: record for record in records}
    head, numbered = ["", "method", "path", "options", *columns], list(enumerate(rows, 1))
    lines = [[f"[{n}]", r.method, r.path, r.options, *(_shown(r.cells.get(c)) for c in columns)] for n, r in numbered]
    lines.append(
        ["", "always the same answer", "", "", *(f"{CONSTANT[c]:.1f}" if c in CONSTANT else "" for c in columns)]
    )
    title = "published: BERT-base, the paper's budget, best of many evaluations on dev"
    lines.append(["", f"<b>{title}</b>", *[""] * (len(head) - 2)])
    lines += [
        ["", r["method"], r["schedule"], "", *(f"{r[c]:.1f}" for c in columns)] for r in published.to_dict("records")
    ]
    plain = [[re.sub("<[^>]+>", " ", text).replace("&times;", "x").strip() for text in line] for line in (head, *lines)]
    page = "".join(f"<tr>{''.join(f'<td>{text}</td>' for text in line)}</tr>" for line in lines)
    page = f"<table><tr>{''.join(f'<th>{text}</th>' for text in head)}</tr>{page}</table>"
    folded = "".join(_folded(n, r, by_name) for n, r in numbered)
    page += f"<details><summary>the commands that made these rows</summary>{folded}</details>"
    return Page(page, "\n".join(aligned(plain, left=4)))


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
        several = f"  # seeds {seeds}" if len(cell.names) > 1 else ""
        lines.append(f"{results.command(records[cell.names[0]])}{several}")
    return f"<p>[{number}] {budget.method} {budget.path}</p><pre>{html.escape(chr(10).join(lines))}</pre>"


def shares(panels: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[Axes]:
    """What is lost of what there was to lose, a panel a question: title -> name -> task -> percent."""
    tasks = list(dict.fromkeys(task for side in panels.values() for found in side.values() for task in found))
    _, axes = plt.subplots(1, len(panels), figsize=(9.6, 3.0), sharey=True)
    looks = ({"color": COLORS["binary"]}, {"facecolor": "white"}, CONTROL)
    for ax, (title, side) in zip(axes, panels.items()):
        thick = 0.8 / len(side)
        for turn, ((name, found), look) in enumerate(zip(side.items(), looks)):
            places = [tasks.index(task) + (turn - (len(side) - 1) / 2) * thick for task in found]
            ax.barh(places, found.values(), 0.9 * thick, edgecolor=INK, linewidth=0.8, label=name, **look)
            for place, share in zip(places, found.values()):
                ax.text(max(share, 0) + 2, place, f"{share:.0f}", va="center", fontsize=7, bbox=PAPER)
        ax.axvline(100, **GUESSING)
        ax.set(xlim=(0, 128), xlabel="lost of what there was to lose, %")
        ax.set_title(title, fontsize=9)
        ax.legend(loc="upper right", bbox_to_anchor=(0.77, 1), fontsize=7, borderaxespad=0.1)
    axes[0].set_yticks(range(len(tasks)), tasks)
    axes[0].invert_yaxis()
    sides = ". ".join(f"{title}, {n}: {told(of, '.0f')}" for title, side in panels.items() for n, of in side.items())
    axes[0].figure.set_label(f"Percent lost of what the teacher has above the constant answer. {sides}.")
    return list(axes)


def share_kept(score: float, full: float, nothing: float) -> float:
    """Percent of what full precision has above the constant answer, which knows nothing, that a score keeps."""
    return 100 * (score - nothing) / (full - nothing)


def share_lost(row: Budget) -> dict[str, float]:
    """Task -> percent of what the teachers of a measured row have above the constant answer that its students lost.
    Tasks whose teacher has hardly learned anything are left out."""
    means = {column: (mean(cell.scores), mean(cell.full), CONSTANT[column]) for column, cell in row.cells.items()}
    return {c: 100 - share_kept(*of) for c, of in means.items() if of[1] - of[2] > LEARNED}


def share_lost_in_print(published: pd.DataFrame, columns: Iterable[str]) -> dict[str, dict[str, float]]:
    """The same of published rows, the first of them in full precision: method -> task -> percent."""
    full, *printed = published.to_dict("records")
    return {row["method"]: {c: 100 - share_kept(row[c], full[c], CONSTANT[c]) for c in columns} for row in printed}


def with_time(runs: pd.DataFrame, published: pd.DataFrame) -> Axes:
    """What W1A1 students keep of what their teachers know, by the share of the paper's steps that they had.

    Args:
        runs: stored stages of one model. published: rows, the first in full precision, the last BiT's.
    """
    _, ax = plt.subplots(figsize=(6.4, 3.0))
    full, *_, bit = published.to_dict("records")
    names = {task: column for column, (task, _) in GLUE.items()}
    looks = {"SST-2": ("o", COLORS["binary"]), "STS-B": ("s", COLORS["latent"]), "MRPC": ("D", COLORS["float"])}
    looks["CoLA"] = ("^", COLORS["teacher"])
    ends = []
    for column, (marker, color) in looks.items():
        points, nothing = [], CONSTANT[column]
        for _, run in runs[runs.task.map(names) == column].groupby("name"):
            metrics = GLUE[column][1]
            teacher, *_, last = 100 * run[metrics].mean(axis=1)
            task, sizes = get_task(run.task.iloc[0]), run.seen.iloc[-1] / run.epochs.iloc[1:].sum()
            steps = task.epochs * sizes / task.batch_size
            points.append((run.total_steps.iloc[-1] / steps, share_kept(last, teacher, nothing)))
        xs, ys = zip(*sorted(points))
        look = {"marker": marker, "color": color, "linestyle": "", "markersize": 5}
        ax.plot(xs, ys, **look, markeredgecolor=INK, label=column)
        ax.plot(1, share_kept(bit[column], full[column], nothing), **look | {"markersize": 8}, mfc="none")
        ends.append(f"{column} from {ys[0]:.0f} at {xs[0]:.2g} of the steps to {ys[-1]:.0f} at {xs[-1]:.2g}")
    ax.set(xscale="log", xlabel="share of the paper's steps (log)", ylabel="kept, %", ylim=(-24, 108))
    ax.axhline(0, **GUESSING)
    ax.set_title("one bit, MiniLM: all stored runs; hollow: BERT-base in print", fontsize=9)
    ax.legend(**BESIDE)
    ax.figure.set_label(f"Kept of what the teacher has above the constant answer, percent. {'; '.join(ends)}.")
    return ax


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
