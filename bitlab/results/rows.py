"""Rows as objects, for notebooks that still want them; `bitlab.results.table` is what replaces them.

A cell is the mean over seeds of one recipe. What is absent stays absent: a row never takes a number from another one.
"""

import csv
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from itertools import zip_longest

from bitlab.data.tasks import get_task
from bitlab.errors import BitlabError
from bitlab.experiments.experiment import Experiment
from bitlab.experiments.recipes import get_recipe
from bitlab.experiments.schedule import FULL, Schedule, StageSettings
from bitlab.results.table import PUBLISHED

# Column of the published tables -> (task, the metrics whose mean it shows). The papers print accuracy for MRPC and QQP.
GLUE = {
    "MNLI-m": ("mnli", ("accuracy",)),
    "MNLI-mm": ("mnli", ("accuracy_mismatched",)),
    "QQP": ("qqp", ("accuracy",)),
    "QNLI": ("qnli", ("accuracy",)),
    "SST-2": ("sst2", ("accuracy",)),
    "CoLA": ("cola", ("matthews_correlation",)),
    "STS-B": ("stsb", ("pearson", "spearman")),
    "MRPC": ("mrpc", ("accuracy",)),
    "RTE": ("rte", ("accuracy",)),
}
SQUAD = {"EM": ("squad", ("exact_match",)), "F1": ("squad", ("f1",))}
UNEVEN = 5  # budgets of a row's tasks that differ by more are not averaged over
SAME = 12  # digits: beyond them a training that is repeated on another day may differ
NOT_AVERAGED = "MNLI-mm"  # the average is over tasks, as BiT's own rows are: MNLI counts once
DEFAULTS = {option.name: option.default for option in fields(Experiment)}
# What of a run's configuration is told by other means; any other option that is not at its default marks a row.
TOLD = {"task", "model", "data", "schedule", "method", "preset", "seed", "teacher", "train_examples", "max_steps"}
TOLD |= {"epochs", "batch_size", "learning_rate", "alpha_learning_rate", "teacher_epochs", "teacher_learning_rate"}
WINDOWS = ("max_length", "stride", "question_length")  # SQuAD's, in tokens
TOLD |= {"bf16", "examples", "settings", "questions", "augment", "data_digest", "model_digest", *WINDOWS}
USUAL = {option.name: option.default for option in fields(StageSettings)}


@dataclass(frozen=True)
class Run:
    """One stage of one stored result: what a row's cell is made of.

    seed: -1 for a full-precision model that was given. model: what tells it from others of its recipe.
    recipe: what the runs of one cell have in common. metrics, full: fractions, of this stage and of the run's
    full-precision model. steps: of each distillation stage so far. seen: examples in them. training: epochs, batch
    and rates of the last of them. cost: (MiB, GFLOPs) if known.
    """

    task: str
    seed: int
    model: tuple
    recipe: dict
    metrics: dict[str, float]
    full: dict[str, float]
    steps: tuple[int, ...]
    seconds: float
    seen: float
    training: dict[str, float]
    machine: str
    cost: list[float] | None


@dataclass
class Row:
    """One line of the table. `options`: what of the method is not as usual, in words.

    `runs`: task -> the runs of its cell, one a seed, all of the same recipe. `printed`: a published row's numbers,
    in percent. `size` in MiB, `flops` in G at length 128, by `bitlab.cost`; None where the model is not known.
    """

    model: str
    data: str
    method: str
    schedule: str
    options: str
    budget: str
    columns: dict = field(repr=False)
    runs: dict[str, list[Run]] = field(default_factory=dict)
    printed: dict[str, float] = field(default_factory=dict)
    size: float | None = None
    flops: float | None = None

    @property
    def published(self) -> bool:
        """True for what a paper prints, False for what was measured here."""
        return bool(self.printed)

    @property
    def precision(self) -> str:
        """The last precision of the schedule, "W1A1"."""
        return self.schedule.split()[-1]

    def values(self, column: str, drop: bool = False) -> list[float]:
        """The column's numbers in percent, one a seed; [] if there is none. drop: full precision minus them, in
        points, each against the teacher of its own run."""
        if self.published:
            return [self.printed[column]] if column in self.printed and not drop else []
        task, metrics = self.columns[column]
        kept = [run for run in self.runs.get(task, []) if all(name in run.metrics for name in metrics)]
        scores = [_percent(run.metrics, metrics) for run in kept]
        return [_percent(run.full, metrics) - score for run, score in zip(kept, scores)] if drop else scores

    @property
    def missing(self) -> list[str]:
        """The columns without a number."""
        return [column for column in self.columns if not self.values(column)]

    @property
    def average(self) -> float | None:
        """Mean of the tasks (MNLI: matched), None where a column is missing or budgets are uneven; a published row's
        as printed."""
        if "avg" in self.printed:
            return self.printed["avg"]
        means = [statistics.mean(self.values(c)) for c in self._averaged()]
        return statistics.mean(means) if means else None

    @property
    def average_spread(self) -> float | None:
        """Standard deviation of the average, from those of its columns; None unless each has two seeds or more."""
        spreads = [spread(self.values(column)) for column in self._averaged()]
        if not spreads or None in spreads:
            return None
        return sum(deviation**2 for deviation in spreads) ** 0.5 / len(spreads)

    @property
    def uneven(self) -> bool:
        """Whether some task was trained much longer than another, in epochs and as a share of the paper's epochs."""
        epochs = {task: group[0].training["epochs"] for task, group in self.runs.items() if group[0].training}
        shares = [number / get_task(task).epochs for task, number in epochs.items()]
        return bool(epochs) and min(max(n) / min(n) for n in (epochs.values(), shares)) > UNEVEN

    def _averaged(self) -> list[str]:
        return (
            []
            if self.missing or self.uneven
            else [c for c in self.columns if c != NOT_AVERAGED or "MNLI-m" not in self.columns]
        )


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds (n - 1 in the denominator), None for fewer than two."""
    return statistics.stdev(values) if len(values) > 1 else None


def _percent(metrics: dict, names: Sequence[str]) -> float:
    return 100 * statistics.mean(metrics[name] for name in names)


def rows(results: Iterable[dict], columns: dict = GLUE) -> list[Row]:
    """The table's rows: one for each model, data source, method, schedule and budget, and those of full precision.

    Runs share a cell if nothing but their seed differs. Where a task has runs of several recipes (epochs, batch,
    rates, ...), the one that saw most examples is in the first row and the others are in rows of their own.
    """
    tasks = {task for task, _ in columns.values()}
    cells: dict[tuple, dict[str, list]] = {}
    for key, run in _distinct(found for result in results if result["task"] in tasks for found in runs_of(result)):
        _place(cells.setdefault(key, {}).setdefault(run.task, []), run)
    found = []
    for key in sorted(cells, key=_order):
        columns_of = {task: sorted(groups, key=lambda g: (-g[0].seen, -len(g))) for task, groups in cells[key].items()}
        for line in zip_longest(*columns_of.values()):
            groups = {task: group for task, group in zip(columns_of, line) if group}
            row = Row(*key[:4], _words(key[4]), _budget(*key[5:]), columns, groups)
            costs = [run.cost for group in row.runs.values() for run in group if run.cost]
            row.size, row.flops = costs[0] if costs else (None, None)
            found.append(row)
    return found


def _distinct(found: Iterable[tuple[tuple, Run]]) -> list[tuple[tuple, Run]]:
    """Without the given full-precision models that another of the runs has trained."""
    found = list(found)
    trained = [(run.task, run.metrics, run.steps, run.seconds) for _, run in found if run.seed >= 0]
    return [(k, r) for k, r in found if r.seed >= 0 or (r.task, r.metrics, r.steps, r.seconds) not in trained]


def _place(groups: list[list[Run]], run: Run) -> None:
    """Into the group of the same recipe; one that it holds with other numbers opens another group."""
    for group in (group for group in groups if group[0].recipe == run.recipe):
        twin = next((other for other in group if other.model == run.model), None)
        if twin is None:
            group.append(run)
        if twin is None or twin.metrics == run.metrics:
            return
    groups.append([run])


def runs_of(result: dict) -> list[tuple[tuple, Run]]:
    """(key of its row, run) for every stage of a result, full precision first."""
    config = result["config"]
    precisions = Schedule.parse(result["schedule"], get_recipe(result["method"]).method).precisions
    stages = {stage["precision"]: stage for stage in result["stages"]}
    if tuple(stages) != precisions:
        raise BitlabError("its stages are not those of its schedule")
    given = config.get("teacher")
    found = []
    for number, precision in enumerate(precisions):
        own = number or not given
        path = precisions[: number + 1]
        trained = path[1:] or path  # a student's training is its distillation
        settings = {name: config["settings"][name] for name in path}
        run = Run(
            task=get_task(result["task"]).name,
            seed=result["seed"] if own else -1,
            # a given teacher is one model, whatever the seed of its students: its numbers tell it from another one
            model=(result["seed"],) if own else (stages[FULL]["steps"], *_metrics(stages[FULL], config).values()),
            recipe=_recipe(config, settings if own else {}),
            metrics=_metrics(stages[precision], config),
            full=_metrics(stages[FULL], config),
            steps=tuple(stages[name]["steps"] for name in trained),
            seconds=sum(stages[name]["seconds"] for name in trained),
            seen=sum(stages[name]["steps"] * settings[name]["batch_size"] for name in trained),
            training=_training(settings[precision], stages[precision], config) if own else {},
            machine=_machine(result["machine"]),
            cost=result.get("cost", {}).get(precision),
        )
        found.append((_key(result, path), run))
    return found


def _recipe(config: dict, settings: dict[str, dict]) -> dict:
    """What the runs of a cell have in common beside their row's key. A setting that is usual may be absent."""
    unusual = {name: {k: v for k, v in stage.items() if v != USUAL.get(k)} for name, stage in settings.items()}
    windows = {name: config.get(name) for name in WINDOWS}
    augment = config.get("augment") if set(settings) - {FULL} else None  # no teacher is trained on it
    data = {"examples": config["examples"]["train"], "augmented": (augment or {}).get("table")}
    return {"teacher": config.get("teacher"), **data, **windows, **unusual}


def _key(result: dict, path: tuple[str, ...]) -> tuple:
    """What a row has in common: model, data, method, schedule, limits of the budget, and options that differ from
    their defaults. Options that the path does not come to use are left out."""
    config, student = result["config"], len(path) > 1
    idle = () if len(path) > 2 else ("alpha", "stage_teacher")  # the first stage has no scales before it
    usual = DEFAULTS | {"stage_teacher": get_recipe(result["method"]).stage_teacher}
    options = {name: value for name, value in config.items() if student and name not in TOLD | set(idle)}
    other = tuple((name, str(value)) for name, value in options.items() if value not in (usual.get(name), None))
    other += (("augmented", ""),) if student and config.get("augment") else ()
    budget = (config.get(name) for name in ("preset", "train_examples", "max_steps"))
    method = result["method"] if student else "full precision"
    return (result["model"], result["data"], method, " -> ".join(path), other, *budget)


def _training(settings: dict, stage: dict, config: dict) -> dict[str, float]:
    """Epochs, batch and rate of a stage, as it was trained; the rate of its scales where that is no usual one."""
    batch = settings["batch_size"]
    examples = config["examples"].get("augmented" if stage["precision"] != FULL else "train")
    epochs = stage["steps"] * batch / (examples or config["examples"]["train"])
    rate = settings.get("alpha_learning_rate", USUAL["alpha_learning_rate"])
    unusual = {} if rate == USUAL["alpha_learning_rate"] else {"alpha rate": rate}
    return {"epochs": epochs, "batch": batch, "rate": settings["learning_rate"]} | unusual


def _metrics(stage: dict, config: dict) -> dict[str, float]:
    """A stage's metrics, rounded; where MNLI was evaluated on its mismatched set alone, they are marked as that."""
    dev = [name for name in config["examples"] if name != "train"]
    mark = "_mismatched" if dev == ["validation_mismatched"] else ""
    return {name + mark: round(value, SAME) for name, value in stage["metrics"].items()}


def _machine(machine: dict) -> str:
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] != 1)}"
    return machine.get("gpu") or f"{machine['processor']}, {threads}"


def _order(key: tuple):
    model, data, method, schedule, other, preset, examples, steps = key
    full = method == "full precision"
    return (
        model,
        data,
        preset,
        examples or 1e9,
        steps or 1e9,
        not full,
        method,
        len(schedule),
        schedule,
        other != (),
        str(other),
    )


def _words(options: tuple) -> str:
    values = {"True": ""}  # a switch that is on is told by its name
    return ", ".join(f"{name.replace('_', ' ')} {values.get(value, value)}".strip() for name, value in options)


def _budget(preset: str, examples: int | None, steps: int | None) -> str:
    parts = [preset]
    parts += [f"{examples:,} examples"] if examples else []
    parts += [f"at most {steps} steps a stage"] if steps else []
    return ", ".join(parts)


def published(name: str = "glue") -> list[Row]:
    """The rows that a paper prints: "glue", "glue_augmented" or "squad" (see published/README.md for the sources)."""
    columns = SQUAD if name == "squad" else GLUE
    with open(PUBLISHED / f"{name}.csv", encoding="utf-8") as file:
        source = "published" + name.removeprefix("glue").removeprefix("squad").replace("_", ", ")
        return [_published_row(line, columns, source) for line in csv.DictReader(file)]


def _published_row(line: dict[str, str], columns: dict, source: str) -> Row:
    weights, _, activations = line["bits"].split("-")
    printed = {column: float(line[column if column in line else column.lower()]) for column in columns}
    if "avg" in line:
        printed["avg"] = float(line["avg"])
    size, flops = (float(line[key]) if key in line else None for key in ("size_mib", "flops_g"))
    method = "full precision" if weights == "32" else line["method"]
    return Row("BERT-base", source, method, f"W{weights}A{activations}", "", "", columns, {}, printed, size, flops)
