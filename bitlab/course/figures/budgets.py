"""GLUE's stored rows as notebook 10 shows them: runs of one budget, beside the published ones, and what each loses."""

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from bitlab import results
from bitlab.course.plots import COLORS, GUESSING, INK, PALE, PAPER, Page, told
from bitlab.data.tasks import get_task
from bitlab.experiments.schedule import FULL
from bitlab.results import CONSTANT, GLUE
from bitlab.terminal.text import aligned

METHODS = {"bit": "BiT", "bibert": "BiBERT", "binarybert": "BinaryBERT", "bit-released": "BiT as released"}
SAID = {
    "logit weight 0.1, relative hidden": "relative",
    "group by length": "by length",
    "dropout 0.0": "no dropout",
}
SAID |= {"start general-minilm/W1A1": "from a binary encoder", "stage teacher both": "both teachers"}
RECIPE = "relative, by length, no dropout"  # of the rows that are set beside the published ones
RATE = 2e-3  # of the same
PAPERS = "by length, no dropout, rate 0.0005"  # the paper's own loss and rates
PATHS = ("W1A4", "W1A2", "W1A2 -> W1A1", "W1A1")
IN_PRINT = "in print: BERT-base, the teacher"
LEARNED = 3  # points that a teacher must lie above the constant answer


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
    def steps(self) -> float:
        """Steps for each training sentence."""
        return self.epochs / self.batch

    def as_long_as(self, other: "Cell") -> bool:
        return self.batch == other.batch and abs(self.epochs - other.epochs) < 0.02 * other.epochs


@dataclass(frozen=True)
class Budget:
    """Runs that were made with the same settings; what differs by task, the epochs, is told with each of its cells."""

    method: str
    path: str
    options: str
    cells: dict[str, Cell]


def rows(runs: pd.DataFrame) -> list[Budget]:
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
    if (rate := group.learning_rate.iloc[0]) != RATE:
        words += f", rate {rate:g}"
    return ", ".join(filter(None, words.split(", ")))


def _cell(group: pd.DataFrame, metrics: Sequence[str]) -> Cell | None:
    if group.empty:
        return None
    scores, full = (100 * group[names].mean(axis=1) for names in (metrics, [f"full {name}" for name in metrics]))
    examples = group.recipe.iloc[0].partition('"examples": ')[2].partition(",")[0]
    epochs = group.seen.iloc[0] / int(examples.rstrip("}"))
    return Cell(list(scores), list(full), epochs, int(group.batch_size.iloc[0]), list(group.name))


def longest(rows: Sequence[Budget]) -> dict[str, dict[str, Cell]]:
    """Task -> path -> cell: of each task the longest training at one bit in one stage, and what had as much of it."""
    ours = [row for row in rows if row.method == "BiT" and row.options == RECIPE]
    found = {}
    for column in GLUE:
        cells = [(row.path, row.cells[column]) for row in ours if column in row.cells]
        if ends := [cell for path, cell in cells if path == "W1A1"]:
            most = max(ends, key=lambda cell: cell.steps)
            found[column] = {path: cell for path, cell in cells if cell.as_long_as(most)}
    return found


def beside(chosen: Mapping[str, Mapping[str, Cell]], published: pd.DataFrame) -> Page:
    """Ours and what is printed, a number a cell; every task has a budget of its own, which stands under its name.

    Args:
        chosen: as of `longest`.
        published: as of `bitlab.results.published`; the first row is the full-precision model.
    """
    ends = {column: cells["W1A1"] for column, cells in chosen.items()}
    settings = {column: get_task(GLUE[column][0]) for column in chosen}
    printed = published.to_dict("records")
    lines = {
        "epochs of a batch": [f"{cell.epochs:.2g} of {cell.batch}" for cell in ends.values()],
        "the paper's": [f"{task.epochs} of {task.batch_size}" for task in settings.values()],
        "steps, % of the paper's": [
            f"{100 * cell.steps * task.batch_size / task.epochs:.0f}"
            for cell, task in zip(ends.values(), settings.values())
        ],
        "always the same answer": [f"{CONSTANT[column]:.1f}" for column in chosen],
        "MiniLM, the teacher": [f"{mean(cell.full):.1f}" for cell in ends.values()],
    }
    lines |= {path: [_number(cells.get(path)) for cells in chosen.values()] for path in PATHS}
    kept = {column: 100 - lost for column, lost in share_lost(ends).items()}
    lines["W1A1 keeps, %"] = [f"{kept[column]:.0f}" if column in kept else "" for column in chosen]
    lines[""] = [""] * len(chosen)  # what is in print stands apart
    lines[IN_PRINT] = [f"{printed[0][column]:.1f}" for column in chosen]
    lines |= {f"{row['schedule']}, {row['method']}": [f"{row[c]:.1f}" for c in chosen] for row in printed[1:]}
    kept = share_lost_in_print(published, chosen)["BiT"]
    lines["BiT's W1A1 keeps, %"] = [f"{100 - kept[column]:.0f}" for column in chosen]
    plain = [["", *chosen], *([name, *cells] for name, cells in lines.items())]
    return Page(_html(plain, strong=IN_PRINT), "\n".join(aligned(plain, left=1)))


def every(rows: Sequence[Budget], records: Iterable[dict]) -> Page:
    """All measured rows with their budgets, folded, and the commands of each row to unfold.

    Args:
        records: as of `bitlab.results.records`, for the commands.
    """
    columns = [column for column in GLUE if any(column in each.cells for each in rows)]
    by_name = {record["name"]: record for record in records}
    head, numbered = ["", "method", "path", "options", *columns], list(enumerate(rows, 1))
    lines = [[f"[{n}]", r.method, r.path, r.options, *(_shown(r.cells.get(c)) for c in columns)] for n, r in numbered]
    commands = "".join(_folded(n, r, by_name) for n, r in numbered)
    title = f"all {len(rows)} stored rows, each with its budget"
    page = f"<details><summary>{title}</summary>{_html([head, *lines])}</details>"
    page += f"<details><summary>the commands that made them</summary>{commands}</details>"
    return Page(page, f"{title}: to unfold in Jupyter; `bitlab results` and `bitlab results --commands` print them")


def _html(lines: Sequence[Sequence[str]], strong: str = "") -> str:
    """A table whose first line is its head; the line that begins with `strong` opens a new part."""
    rows = [[f"<th>{text}</th>" for text in lines[0]]]
    rows += [[f"<td>{f'<b>{text}</b>' if line[0] == strong else text}</td>" for text in line] for line in lines[1:]]
    return f"<table>{''.join(f'<tr>{chr(32).join(row)}</tr>' for row in rows)}</table>"


def _number(cell: Cell | None) -> str:
    return f"{mean(cell.scores):.1f}" if cell else ""


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


def ends(runs: pd.DataFrame, families: Iterable[str]) -> str:
    """How trainings ended, as text: means over the seeds of runs whose names begin alike, in percent.

    Args:
        runs: as of `bitlab.results.load`.
    """
    lines = [["run", "steps", "rate", "the paper's", "training loss", "teacher", "last", "best", "keeps, %"]]
    for family in families:
        found = runs[runs.name.str.startswith(f"{family}-seed")]
        last = found.groupby("name").last()
        steps = found[found.precision != FULL].groupby("name").steps.sum().iloc[0]  # of all stages
        title, (task, metrics) = next(item for item in GLUE.items() if item[1][0] == last.task.iloc[0])
        full, score = (100 * each[metrics].mean(axis=1).mean() for each in (found.groupby("name").first(), last))
        loss = mean(curve[-1][1] for curve in last.curve)
        rates = f"{last.learning_rate.iloc[0]:g}", f"{get_task(task).learning_rate:g}"
        alike = len(metrics) == len(get_task(task).metrics)  # `best` is of all metrics that the task has
        best = f"{100 * last.best.mean():.1f}" if alike and last.best.notna().all() else ""
        kept = share_kept(score, full, CONSTANT[title])
        numbers = f"{loss:.2f}", f"{full:.1f}", f"{score:.1f}", best, f"{kept:.0f}"
        lines.append([family.replace("-bit-minilm", ""), f"{steps:,}", *rates, *numbers])
    return "\n".join(aligned(lines))


def share_kept(score: float, full: float, nothing: float) -> float:
    """Percent of what full precision has above the constant answer, which knows nothing, that a score keeps."""
    return 100 * (score - nothing) / (full - nothing)


def share_lost(cells: Mapping[str, Cell]) -> dict[str, float]:
    """Task -> percent of what the teachers have above the constant answer that the students of measured cells lost.
    Tasks whose teacher has hardly learned anything are left out."""
    return {column: mean(each) for column, each in shares_lost(cells).items()}


def shares_lost(cells: Mapping[str, Cell]) -> dict[str, list[float]]:
    """The same, one number a seed."""
    taught = {column: cell for column, cell in cells.items() if mean(cell.full) - CONSTANT[column] > LEARNED}
    return {
        column: [100 - share_kept(score, full, CONSTANT[column]) for score, full in zip(cell.scores, cell.full)]
        for column, cell in taught.items()
    }


def share_lost_in_print(published: pd.DataFrame, columns: Iterable[str]) -> dict[str, dict[str, float]]:
    """The same of published rows, the first of them in full precision: method -> task -> percent."""
    full, *printed = published.to_dict("records")
    return {row["method"]: {c: 100 - share_kept(row[c], full[c], CONSTANT[c]) for c in columns} for row in printed}


def shares(
    bits: Mapping[str, Mapping[str, float]], ways: Mapping[str, Mapping[str, Sequence[float]]], budgets: Sequence[str]
) -> list[Axes]:
    """What is lost of what there was to lose, in percent.

    Args:
        bits: name -> task -> percent, bars: of more and fewer bits, and what is printed as the last, hollow.
        ways: name -> task -> percent, one a seed, dots: several ways to one bit.
        budgets: of each panel.
    """
    tasks = list(bits["1 bit"])
    _, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.6), sharey=True)
    tints = [*({"color": tint} for tint in ("#fde3c2", PALE, COLORS["binary"])), {"facecolor": "white"}]
    thick = 0.84 / len(bits)
    for turn, ((name, found), look) in enumerate(zip(bits.items(), tints)):
        places = [tasks.index(task) + (turn - (len(bits) - 1) / 2) * thick for task in found]
        left.barh(places, found.values(), 0.9 * thick, edgecolor=INK, linewidth=0.8, label=name, **look)
        for place, share in zip(places, found.values()):
            left.text(share + 2, place, f"{share:.0f}", va="center", fontsize=7, bbox=PAPER)
    for turn, ((name, found), marker) in enumerate(zip(ways.items(), "osD")):
        places = [tasks.index(task) + 0.25 * (turn - 1) for task in found]
        look = {"linestyle": "none", "color": COLORS["binary"], "markeredgecolor": INK}
        right.plot([*map(mean, found.values())], places, marker, markersize=7, label=name, **look)
        for place, each in zip(places, found.values()):
            if len(each) > 1:
                right.plot(each, [place] * len(each), linestyle="-", color=INK, linewidth=0.9, marker=".", markersize=4)
    for ax, title in zip((left, right), budgets):
        ax.axvline(100, **GUESSING)
        ax.set(xlim=(0, 132), xlabel="lost of what there was to lose, %")
        ax.set_title(title, fontsize=9)
        ax.legend(loc="upper center", ncols=4, fontsize=8, bbox_to_anchor=(0.5, -0.2), columnspacing=1)
    left.set_yticks(range(len(tasks)), tasks)
    left.invert_yaxis()
    means = {name: {task: mean(each) for task, each in found.items()} for name, found in ways.items()}
    sides = ". ".join(f"{name}: {told(found, '.0f')}" for name, found in (bits | means).items())
    left.figure.set_label(f"Percent lost of what the teacher has above the constant answer. {sides}.")
    return [left, right]


def with_time(rows: Sequence[Budget], published: pd.DataFrame) -> list[Axes]:
    """What W1A1 students keep of what their teachers know, by the share of the paper's steps that they had.

    Args:
        rows: measured ones, of which three families that end at one bit are drawn.
        published: rows, the first in full precision, the last BiT's.
    """
    families = [
        ("two stages, relative", "s", PALE, lambda row: row.path == PATHS[2] and row.options.endswith(RECIPE)),
        ("one stage, the paper's loss", "^", "white", lambda row: row.path == PATHS[3] and row.options == PAPERS),
        ("one stage, relative", "o-", COLORS["binary"], lambda row: row.path == PATHS[3] and row.options == RECIPE),
    ]
    ours = [row for row in rows if row.method == "BiT"]
    columns = ("SST-2", "CoLA", "STS-B", "MRPC")
    printed, told_ends = share_lost_in_print(published, columns)["BiT"], []
    _, axes = plt.subplots(1, len(columns), figsize=(9.4, 3.0), sharey=True, sharex=True)
    for ax, column in zip(axes, columns):
        task = get_task(GLUE[column][0])
        for name, marker, color, belongs in families:
            line = {}
            for cell in (row.cells[column] for row in ours if column in row.cells and belongs(row)):
                time = cell.steps * task.batch_size / task.epochs
                kept = [100 - lost for lost in shares_lost({column: cell})[column]]
                line[time] = mean(kept)
                ax.plot([time] * len(kept), kept, "_-", color=INK, linewidth=1)
            look = {"color": color, "markeredgecolor": INK, "linewidth": 1}
            ax.plot([*sorted(line)], [line[time] for time in sorted(line)], marker, label=name, **look)
            if line:
                shares = ", ".join(f"{line[time]:.0f} at {time:.2g}" for time in sorted(line))
                told_ends.append(f"{column}, {name}: {shares}")
        look = {"color": "white", "markeredgecolor": INK, "markersize": 8}
        ax.plot(1, 100 - printed[column], "o", label="BERT-base in print", **look)
        ax.axhline(0, **GUESSING)
        ax.set(xscale="log", ylim=(-28, 108), xlim=(0.008, 1.6), xlabel="share of the paper's steps")
        ax.set_title(column, fontsize=9)
    axes[0].set_ylabel("kept, %")
    named = dict(zip(*axes[2].get_legend_handles_labels()[::-1]))
    axes[0].figure.legend(named.values(), named, loc="outside lower center", ncols=4, fontsize=8)
    axes[0].figure.set_label(
        f"Kept of what the teacher has above the constant answer, percent, by the share of the paper's steps. "
        f"{'; '.join(told_ends)}."
    )
    return list(axes)
