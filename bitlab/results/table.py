"""The table of results: ours, the mean over seeds of each recipe, beside the published rows.

What is absent stays absent: a row never takes a number from another one.
"""

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from bitlab.data.tasks import get_task
from bitlab.errors import check_choice
from bitlab.experiments.schedule import FULL
from bitlab.results.stages import METRICS
from bitlab.terminal.text import aligned

# Column of the published tables -> (task, the metrics whose mean it shows). The papers print accuracy for MRPC and QQP.
GLUE = {
    "MNLI-m": ("mnli", ["accuracy"]),
    "MNLI-mm": ("mnli", ["accuracy_mismatched"]),
    "QQP": ("qqp", ["accuracy"]),
    "QNLI": ("qnli", ["accuracy"]),
    "SST-2": ("sst2", ["accuracy"]),
    "CoLA": ("cola", ["matthews_correlation"]),
    "STS-B": ("stsb", ["pearson", "spearman"]),
    "MRPC": ("mrpc", ["accuracy"]),
    "RTE": ("rte", ["accuracy"]),
}
SQUAD = {"EM": ("squad", ["exact_match"]), "F1": ("squad", ["f1"])}
UNEVEN = 5  # budgets of a row's tasks that differ by more are not averaged over
NOT_AVERAGED = "MNLI-mm"  # the average is over tasks, as BiT's own rows are: MNLI counts once
FORMATS = ("text", "markdown", "csv")
PUBLISHED = Path(__file__).parent / "published"
# What the runs of one row have in common; a second recipe of the same task opens another row, one "line" further down.
ROW = ["model", "data", "preset", "train_examples", "max_steps", "method", "path", "options"]
CAPTIONS = {
    "GLUE": "GLUE, dev sets, percent: mean ± standard deviation over seeds. MRPC and QQP: accuracy, as the papers "
    "print them; STS-B: mean of Pearson and Spearman; CoLA: Matthews correlation. "
    "avg: mean of the tasks (MNLI: matched), only for rows with no task missing; published averages as printed, "
    "of which BERT's, BiBERT's and BinaryBERT's count MNLI mismatched too. "
    "MiB and GFLOPs (length 128) of ours by bitlab.cost. time: training of one seed's distillation stages (of the "
    "full-precision model in its rows), all tasks of the row.",
    "SQuAD": "SQuAD v1.1, dev set, percent: mean ± standard deviation over seeds. EM: exact match.",
}


def report(runs: pd.DataFrame, tasks: Iterable[str] | None = None, format: str = "text") -> str:
    """The GLUE table and the SQuAD table of stored results, or one restricted to some tasks.

    Args:
        runs: as `bitlab.results.load` gives them.
        tasks: names, for instance ("cola", "rte", "squad"): only their columns, and averages over them alone, the
            published ones too. None: everything.
        format: "text", "markdown" (each with a caption and a note a row) or "csv" (bare numbers; the SQuAD table
            follows after an empty line).

    Raises:
        BitlabError: for another format or an unknown task.
    """
    check_choice("format", format, FORMATS)
    named = None if tasks is None else {get_task(name).name for name in tasks}
    tables = []
    for title, columns, names in (("GLUE", GLUE, ("glue", "glue_augmented")), ("SQuAD", SQUAD, ("squad",))):
        kept = {column: entry for column, entry in columns.items() if named is None or entry[0] in named}
        if kept:
            lines = pd.concat([tabulate(runs, kept), *(published(name, kept) for name in names)], ignore_index=True)
            tables.append(_csv(lines, kept) if format == "csv" else _page(title, lines, kept, format))
    return "\n\n".join(tables)


def tabulate(runs: pd.DataFrame, columns: dict = GLUE) -> pd.DataFrame:
    """Our rows: one for each model, data source, method, schedule and budget, and those of full precision.

    Runs share a cell if nothing but their seed differs. Where a task has runs of several recipes (epochs, batch,
    rates, ...), the one that saw most examples is in the first row and the others are in rows of their own.

    Args:
        runs: as `bitlab.results.load` gives them.
        columns: `GLUE`, `SQUAD` or some of one's entries.

    Returns:
        A row each, scores in percent, NaN where there is none: source, model, data, method, schedule, precision,
        options, budget; each column's mean and, where there are several seeds, standard deviation ("RTE", "RTE sd");
        avg, avg sd (not of SQuAD); size_mib, flops_g; missing columns, seeds, steps, seconds, machine, notes.
    """
    runs = runs[runs.task.isin({task for task, _ in columns.values()})]
    rows = [] if runs.empty else _cells(runs).groupby([*ROW, "line"], sort=False, dropna=False)
    lines = [_line(dict(zip(ROW, key)), cells, columns) for key, cells in rows]
    return pd.DataFrame(lines, columns=_head(columns))


def published(name: str = "glue", columns: dict | None = None) -> pd.DataFrame:
    """The rows that a paper prints, in the form of `tabulate`.

    Args:
        name: "glue", "glue_augmented" or "squad"; published/README.md tells the sources.
        columns: these alone; an average over others than the printed ones is taken anew.
    """
    whole = SQUAD if name == "squad" else GLUE
    columns = columns or whole
    printed = pd.read_csv(PUBLISHED / f"{name}.csv").rename(columns=str.lower)
    data = "published" + name.removeprefix("glue").removeprefix("squad").replace("_", ", ")
    lines = []
    for line in printed.to_dict("records"):
        weights, _, activations = line["bits"].split("-")
        scores = {column: float(line[column.lower()]) for column in columns}
        average = pd.Series([scores[column] for column in _averaged(columns)]).mean()
        lines.append(
            {
                "source": "published",
                "model": "BERT-base",
                "data": data,
                "method": "full precision" if weights == "32" else line["method"],
                "schedule": f"W{weights}A{activations}",
                "precision": f"W{weights}A{activations}",
                "options": "",
                "budget": "",
                **scores,
                "avg": line["avg"] if "avg" in line and columns.keys() == whole.keys() else average,
                "size_mib": line.get("size_mib"),
                "flops_g": line.get("flops_g"),
                "missing": "",
            }
        )
    return pd.DataFrame(lines, columns=_head(columns))


def _head(columns: dict) -> list[str]:
    average = [] if columns.keys() <= SQUAD.keys() else ["avg"]
    scores = [name for column in (*columns, *average) for name in (column, f"{column} sd")]
    head = ["source", "model", "data", "method", "schedule", "precision", "options", "budget", *scores]
    return [*head, "size_mib", "flops_g", "missing", "seeds", "steps", "seconds", "machine", "notes"]


# ------------------------------------------------------------------------------------------------ rows


def _cells(runs: pd.DataFrame) -> pd.DataFrame:
    """The stages that make the table, in its order, each with the "line" of its row: runs of one task and one line
    differ in their seed alone. Runs that repeat another's numbers are left out."""
    runs = runs.assign(method=runs.method.where(runs.path != FULL, "full precision"))
    runs["outcome"] = list(map(str, runs[METRICS].values.tolist()))
    runs["training"] = list(map(str, runs[["task", *METRICS, "total_steps", "total_seconds"]].values.tolist()))
    runs = runs[~(runs.given & runs.training.isin(runs.training[~runs.given]))]  # another of the runs has trained it
    # a given teacher is one model, whatever the seed of its students: its numbers tell it from another one
    runs = runs.assign(who=runs.seed.astype(str).where(~runs.given, runs.outcome))
    cell = [*ROW, "task", "recipe"]
    runs = runs.drop_duplicates([*cell, "who", "outcome"])
    runs = runs.assign(turn=runs.groupby([*cell, "who"], dropna=False).cumcount())
    groups = runs.groupby([*cell, "turn"], sort=False, dropna=False)
    runs = runs.assign(group=groups.ngroup(), most=groups.seen.transform("first"), size=groups.seen.transform("size"))
    first = runs.drop_duplicates("group").sort_values(["most", "size", "group"], ascending=[False, False, True])
    lines = first.groupby([*ROW, "task"], dropna=False).cumcount()
    runs = runs.assign(line=runs.group.map(dict(zip(first.group, lines))))
    order = runs.assign(
        train_examples=runs.train_examples.fillna(1e9),
        max_steps=runs.max_steps.fillna(1e9),
        student=runs.path != FULL,
        length=runs.path.str.len(),
        place=range(len(runs)),
    )
    by = ["model", "data", "preset", "train_examples", "max_steps", "student", "method", "length", "path", "options"]
    return runs.loc[order.sort_values([*by, "line", "place"]).index]


def _line(row: dict, cells: pd.DataFrame, columns: dict) -> dict:
    """One row, made of its runs and of what they have in common."""
    tasks = dict(list(cells.groupby("task", sort=False)))
    first = pd.DataFrame([runs.iloc[0] for runs in tasks.values()])
    scores = {column: _percent(tasks.get(task), metrics) for column, (task, metrics) in columns.items()}
    missing = [column for column, values in scores.items() if values.empty]
    averaged = [] if missing or _uneven(first) else _averaged(columns)
    means = {column: values.mean() for column, values in scores.items()}
    spreads = {f"{column} sd": values.std() for column, values in scores.items()}  # n - 1 in the denominator
    spread = sum(spreads[f"{column} sd"] ** 2 for column in averaged) ** 0.5 / max(1, len(averaged))
    cost = cells.dropna(subset="mib").head(1)
    return {
        "source": "bitlab",
        **{name: row[name] for name in ("model", "data", "method", "options")},
        "schedule": row["path"],
        "precision": row["path"].split()[-1],
        "budget": cells.budget.iloc[0],
        **means,
        **spreads,
        "avg": pd.Series([means[column] for column in averaged], dtype=float).mean(),
        "avg sd": spread if averaged else None,
        "size_mib": cost.mib.max(),
        "flops_g": cost.gflops.max(),
        "missing": " ".join(missing),
        "seeds": _range(len(runs) for runs in tasks.values()),
        "steps": _range(first.total_steps),
        "seconds": sum(runs.total_seconds.mean() for runs in tasks.values()),
        "machine": " / ".join(dict.fromkeys(cells.machine)),
        "notes": _note(cells.budget.iloc[0], tasks, missing, _uneven(first)),
    }


def _percent(runs: pd.DataFrame | None, metrics: list[str]) -> pd.Series:
    """One number a seed: the mean of these metrics, of the runs that have them all."""
    return pd.Series(dtype=float) if runs is None else 100 * runs[metrics].dropna().mean(axis=1)


def _averaged(columns: dict) -> list[str]:
    return [column for column in columns if column != NOT_AVERAGED or "MNLI-m" not in columns]


def _uneven(first: pd.DataFrame) -> bool:
    """Whether some task was trained much longer than another, in epochs and as a share of the paper's epochs.

    Args:
        first: a run of each task.
    """
    trained = first[~first.given]
    shares = trained.epochs / [get_task(task).epochs for task in trained.task]
    return bool((trained.epochs.max() > UNEVEN * trained.epochs.min()) & (shares.max() > UNEVEN * shares.min()))


def _range(numbers: Iterable[int]) -> str:
    numbers = sorted(numbers)
    return f"{numbers[0]}" if numbers[0] == numbers[-1] else f"{numbers[0]}-{numbers[-1]}"


def _note(budget: str, tasks: dict[str, pd.DataFrame], missing: list[str], uneven: bool) -> str:
    """What the row stands on: budget, every task's seeds and training, machines, and what is missing."""
    machines = dict.fromkeys(machine for runs in tasks.values() for machine in runs.machine)
    parts = [budget, *(_task_note(task, runs) for task, runs in tasks.items()), " / ".join(machines)]
    if missing:
        parts.append(f"missing, so without an average: {', '.join(missing)}")
    elif uneven:
        parts.append("without an average: its tasks were trained for very different times")
    return "; ".join(parts)


def _task_note(task: str, runs: pd.DataFrame) -> str:
    several, run = "s" * (len(runs) > 1), runs.iloc[0]
    seeds = ", ".join(str(seed) for seed in sorted(runs.seed))
    who = f"{len(runs)} given model{several}" if run.given else f"seed{several} {seeds}"
    details = {"epochs": run.epochs, "batch": run.batch_size, "rate": run.learning_rate}
    details |= {"alpha rate": run.alpha_learning_rate} if run.alpha_learning_rate != 1e-4 else {}
    told = ", ".join(f"{name} {value:.3g}" for name, value in details.items())
    words = [who, f"{run.trained} steps" + ("" if run.given else f" ({told})")]
    metrics = list(get_task(task).metrics)
    if len(metrics) > 1 and task != "squad":
        words += [f"{name} {100 * mean:.1f}" for name, mean in runs[metrics].mean().items()]
    words += [f"best of ten {100 * runs.best.mean():.1f}"] if runs.best.notna().all() else []
    return f"{get_task(task).title} {', '.join(words)}"


# ------------------------------------------------------------------------------------------------ text and Markdown

PLAIN = ("model", "data", "method", "schedule")
LAST = ("MiB", "GFLOPs", "seeds", "steps", "time")


def _page(title: str, lines: pd.DataFrame, columns: dict, format: str) -> str:
    scores = [*columns, *(["avg"] if "avg" in lines else [])]
    rows = lines.to_dict("records")
    cells = [["", *PLAIN, *scores, *LAST], *(_texts(row, number, scores) for number, row in enumerate(rows, 1))]
    notes = [f"[{number}] {row['notes']}" for number, row in enumerate(rows, 1) if row["source"] == "bitlab"]
    notes = notes or [f"no results of {title} are stored"]
    left = 1 + len(PLAIN)
    if format == "markdown":
        cells.insert(1, ["---"] * left + ["---:"] * (len(cells[0]) - left))
        table = "\n".join("| " + " | ".join(row) + " |" for row in cells)
        return "\n\n".join([CAPTIONS[title], table, "\n".join(f"- {note}" for note in notes)])
    head, *body = aligned(cells, left)
    rule = "-" * max(map(len, (head, *body)))
    return "\n".join([*textwrap.wrap(CAPTIONS[title], 120), "", head, rule, *body, "", *notes])


def _texts(row: dict, number: int, scores: Sequence[str]) -> list[str]:
    ours = row["source"] == "bitlab"
    method = ", ".join(filter(None, (row["method"], row["options"])))
    schedule = row["schedule"].removeprefix(f"{FULL} -> ")
    numbers = [_number(row[column]) + _number(row[f"{column} sd"], " ±{:.1f}", "") for column in scores]
    cost = [_number(row["size_mib"], "{:.3g}"), _number(row["flops_g"], "{:.3g}")]
    effort = [row["seeds"], row["steps"], _duration(row["seconds"])] if ours else ["-"] * 3
    return [f"[{number}]" if ours else "", row["model"], row["data"], method, schedule, *numbers, *cost, *effort]


def _number(value: float | None, form: str = "{:.1f}", absent: str = "-") -> str:
    return absent if pd.isna(value) else form.format(value)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


# ------------------------------------------------------------------------------------------------ CSV


def _csv(lines: pd.DataFrame, columns: dict) -> str:
    digits = {"size_mib": 3, "flops_g": 4, "seconds": 1}
    digits |= {name: 2 for name in lines for column in (*columns, "avg") if name in (column, f"{column} sd")}
    for column, places in digits.items():
        lines[column] = [_number(value, f"{{:.{places}f}}", "") for value in lines[column]]
    return lines.to_csv(index=False, lineterminator="\n").rstrip("\n")
