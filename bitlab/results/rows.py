"""The table's rows as objects that know their runs, for the notebooks that draw them one by one."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace

import pandas as pd

from bitlab.experiments.schedule import FULL
from bitlab.results import table
from bitlab.results.stages import METRICS, frame
from bitlab.results.table import GLUE, SQUAD

__all__ = ["GLUE", "SQUAD", "Row", "published", "rows", "spread"]


@dataclass(eq=False)
class Row:
    """One line of the table: its columns (model, data, method, schedule, precision, options, budget) are attributes.

    `columns`: as of `table`. `cells`: its runs, None for a published row; `full`: their full-precision metrics.
    """

    line: dict
    columns: dict
    cells: pd.DataFrame | None = None
    full: pd.DataFrame | None = None

    def __getattr__(self, name: str):
        if name.startswith("_") or name not in vars(self).get("line", {}):
            raise AttributeError(name)
        return self.line[name]

    @property
    def published(self) -> bool:
        """True for what a paper prints, False for what was measured here."""
        return self.cells is None

    @property
    def printed(self) -> dict[str, float]:
        """A published row's numbers, in percent."""
        return {
            column: self.line[column] for column in (*self.columns, "avg") if self.published and column in self.line
        }

    @property
    def runs(self) -> dict[str, list]:
        """task -> its runs, one a seed: `steps` of each distillation stage, and the `recipe` that they share."""
        tasks = self.cells.groupby("task", sort=False) if self.cells is not None else ()
        return {task: [_run(run) for run in runs.itertuples()] for task, runs in tasks}

    def values(self, column: str, drop: bool = False) -> list[float]:
        """The column's numbers in percent, one a seed; [] if there is none. drop: full precision minus them, in
        points, each against the teacher of its own run."""
        if self.published:
            return [] if drop or column not in self.printed else [self.printed[column]]
        task, metrics = self.columns[column]
        scores = 100 * self.cells[self.cells.task == task][metrics].dropna().mean(axis=1)
        return list(100 * self.full.loc[scores.index, metrics].mean(axis=1) - scores if drop else scores)

    @property
    def missing(self) -> list[str]:
        """The columns without a number."""
        return self.line["missing"].split()

    @property
    def uneven(self) -> bool:
        """Whether some task was trained much longer than another."""
        return "very different times" in self.line["notes"]

    @property
    def average(self) -> float | None:
        """Mean of the tasks, None where there is none."""
        return _known(self.line["avg"])

    @property
    def size(self) -> float | None:
        """MiB, None where the model is not known."""
        return _known(self.line["size_mib"])

    @property
    def flops(self) -> float | None:
        """GFLOPs at length 128, None where the model is not known."""
        return _known(self.line["flops_g"])


def _run(run) -> SimpleNamespace:
    return SimpleNamespace(steps=tuple(map(int, run.trained.split(" + "))), recipe=json.loads(run.recipe))


def _known(number: float | None) -> float | None:
    return None if pd.isna(number) else number


def rows(results: Iterable[dict], columns: dict = GLUE) -> list[Row]:
    """The rows of results as `bitlab.results.records` gives them, in the table's order."""
    runs = frame(results)
    at = (runs.precision == FULL).cumsum()  # a run's stages begin with full precision
    full = runs.groupby(at)[METRICS].transform("first")
    return [Row(table.line(key, cells, columns), columns, cells, full) for key, cells in table.groups(runs, columns)]


def published(name: str = "glue") -> list[Row]:
    """The rows that a paper prints: "glue", "glue_augmented" or "squad"."""
    columns = SQUAD if name == "squad" else GLUE
    return [Row(line, columns) for line in table.published(name).to_dict("records")]


def spread(values) -> float | None:
    """Standard deviation over seeds (n - 1 in the denominator), None for fewer than two."""
    return _known(pd.Series(list(values), dtype=float).std())
