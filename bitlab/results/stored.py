"""Stored results: one small JSON file a run in measured/, its configuration and loss curve included; published ones.

`bitlab.results.rows` makes rows of them and `bitlab.results.table` prints these.
"""

import contextlib
import csv
import functools
import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from bitlab import files
from bitlab.config import BitConfig
from bitlab.convert import binarize
from bitlab.cost import summary
from bitlab.data.sample import sample_config
from bitlab.errors import BitlabError
from bitlab.experiments.schedule import FULL
from bitlab.models import load_model, minilm_folder
from bitlab.results.rows import GLUE, SQUAD, Row, runs_of

FOLDER = Path(__file__).parent / "measured"
PUBLISHED = Path(__file__).parent / "published"
CURVE_POINTS = 10
# Percent that always the same answer scores on GLUE's dev sets, by column of the table. A dev set we lack has no entry.
CONSTANT = {"SST-2": 50.9, "CoLA": 0.0, "STS-B": 0.0, "MRPC": 68.4, "RTE": 52.7}

# ------------------------------------------------------------------------------------------------ files


def store(run: str | Path, folder: str | Path = FOLDER) -> Path:
    """Copy a finished run's result, with its loss curves and its models' costs, into the results folder.

    Args: run: the folder of a run, holding result.json. folder: where results are kept.
    Returns: the new file, named after the run.
    Errors: BitlabError as of `collect`, if the file holds another run's result, and if it can't be written.
    """
    result = collect(run)
    path = Path(folder) / f"{result.pop('name')}.json"
    if _holds_another(path, result):
        raise BitlabError(f"{path} holds the result of another run: rename the run's folder, or delete this file")
    try:
        files.write_json(path, result)
    except OSError as error:
        raise BitlabError(f"{path} can't be written ({error.strerror}): choose another --folder") from error
    return path


def _holds_another(path: Path, result: dict) -> bool:
    """Whether a file holds a result with another configuration or other scores; one that can't be read holds none."""
    try:
        kept = _checked(path)
    except BitlabError:
        return False
    return _identity(kept) != _identity(result)


def _identity(result: dict) -> tuple:
    """What tells runs from each other; a run that was only measured again, with other seconds, is the same."""
    return result["config"], [{**stage, "seconds": None} for stage in result["stages"]]


def collect(run: str | Path) -> dict:
    """A finished run as `load` would give it once stored: curves thinned to ten points a stage, and the models' costs.

    Errors: BitlabError if the run is not finished, is no task's, or its result.json is damaged.
    """
    run = Path(run)
    result = files.read_json(run / files.RESULT)
    if result is None:
        raise BitlabError(_why_none(run))
    with _one_line(f"{run / files.RESULT} is no result", "delete it, and run the same experiment again"):
        runs_of(result)
    stages = [stage["precision"] for stage in result["stages"]]
    costs = {name: _cost(load_model(run / name, result["task"])) for name in stages if (run / name).is_dir()}
    return {"name": run.name, **result, "curves": {name: _curve(run / name) for name in stages}, "cost": costs}


def _why_none(run: Path) -> str:
    """Why a folder holds no result.json, and what to do."""
    config = files.read_json(run / files.CONFIG)
    if config and "task" not in config:
        return f"{run} holds a general distillation, no task's result: store a run that started from it"
    return f"{run} holds no {files.RESULT}: run the same experiment again to finish it"


def _curve(stage: Path) -> list[tuple[int, float]]:
    log = [
        (entry["step"], round(entry["loss"], 4))
        for entry in files.read_json(stage / "log.json", list) or []
        if "loss" in entry
    ]
    every = max(1, len(log) // CURVE_POINTS)
    return log[::-every][::-1]


def load(folder: str | Path = FOLDER) -> list[dict]:
    """All stored results, by file name; each gets its file's name as "name".

    Errors: BitlabError, one line, for a file that is no stored result.
    """
    return [_checked(path) for path in sorted(Path(folder).glob("*.json"))]


def _checked(path: Path) -> dict:
    with _one_line(f"{path.name} is no stored result", "delete it, or store its run again"):
        result = json.loads(path.read_text(encoding="utf-8"))
        result.setdefault("cost", _known_costs(result))
        runs_of(result)
    return {"name": path.stem, **result}


@contextlib.contextmanager
def _one_line(what: str, remedy: str):
    """Whatever content that is no result makes of the block is one BitlabError."""
    try:
        yield
        return
    except BitlabError as error:
        reason = str(error)
    except (KeyError, IndexError) as error:
        reason = f"no {error}"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = str(error)
    raise BitlabError(f"{what} ({reason}): {remedy}")


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


# ------------------------------------------------------------------------------------------------ costs


def _cost(model) -> list[float]:
    """[MiB, GFLOPs at length 128] of a model."""
    counted = summary(model)
    return [round(counted.mib, 3), round(counted.flops / 1e9, 4)]


def _known_costs(result: dict) -> dict[str, list[float]]:
    """The costs of a result that was stored without them, as far as its model is one that comes with bitlab."""
    if result["method"] not in ("bit", "bit-released"):
        return {}
    names = [stage["precision"] for stage in result["stages"]]
    return {name: cost for name in names if (cost := _named_cost(result["model"], name))}


@functools.cache
def _named_cost(model: str, precision: str) -> list[float] | None:
    """The cost of a model that comes with bitlab, counted without its weights; None for another one."""
    try:
        config = {"sample": sample_config, "minilm": lambda: AutoConfig.from_pretrained(minilm_folder())}[model]()
    except (KeyError, BitlabError):
        return None
    with torch.device("meta"):
        empty = AutoModelForSequenceClassification.from_config(config)
        return _cost(empty if precision == FULL else binarize(empty, BitConfig.from_precision(precision)))
