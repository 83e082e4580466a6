"""Stored results: one small JSON file a run, with its configuration, its loss curve and the command that made it.

Those that come with bitlab lie in measured/, new ones go to ./results of the folder that one works in.
"""

import json
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

import pandas as pd

from bitlab import files
from bitlab.cost import summary
from bitlab.data.tasks import get_task
from bitlab.errors import BitlabError
from bitlab.experiments.experiment import Experiment
from bitlab.experiments.folder import RESULT
from bitlab.models import load_model
from bitlab.results.stages import frame, stages, task_of

SHIPPED = Path(__file__).parent / "measured"
OWN = Path("results")
CURVE_POINTS = 10
# What content raises that is no result.
NO_RESULT = (OSError, ValueError, BitlabError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
# Percent that always the same answer scores on GLUE's dev sets, by column of the table. A dev set we lack has no entry.
CONSTANT = {"SST-2": 50.9, "CoLA": 0.0, "STS-B": 0.0, "MRPC": 68.4, "RTE": 52.7}


def store(run: str | Path, folder: str | Path = OWN) -> Path:
    """Copy a finished run's result, with its loss curves and its models' costs, into a folder of results.

    Args:
        run: the folder of a run, holding result.json.
        folder: where results are kept.

    Returns:
        The new file, named after the run.

    Raises:
        BitlabError: as of `collect`, if the file is there and not this run's, and if it can't be written.
    """
    result = collect(run)
    path = Path(folder) / f"{result.pop('name')}.json"
    if _holds_another(path, result):
        raise BitlabError(f"{path} is not this run's result: rename the run's folder, or move that file elsewhere")
    with files.writing(path, "choose another --folder"):
        files.write_json(path, result)
    return path


def _holds_another(path: Path, result: dict) -> bool:
    """Whether a file is there that holds another configuration, other scores, or no result at all."""
    if not path.exists():
        return False
    try:
        return _identity(_checked(path)) != _identity(result)
    except BitlabError:
        return True


def _identity(result: dict) -> tuple:
    """What tells runs from each other; a run that was only measured again, with other seconds, is the same."""
    return result["config"], [{**stage, "seconds": None} for stage in result["stages"]]


def collect(run: str | Path) -> dict:
    """A finished run as it is stored: curves thinned to ten points a stage, and the models' costs.

    Args:
        run: the folder of a run, holding result.json.

    Returns:
        The content of the stored file, and "name".

    Raises:
        BitlabError: if the run is not finished, is no task's, or its result.json is damaged.
    """
    run = Path(run)
    result = files.read_json(run / RESULT)
    if result is None:
        config = files.read_json(run / files.CONFIG)
        if config and "task" not in config:
            raise BitlabError(f"{run} holds a general distillation, no task's result: store a run that started from it")
        raise BitlabError(f"{run} holds no {RESULT}: run the same experiment again to finish it")
    with files.one_line(f"{run / RESULT} is no result", "delete it, and run the same experiment again", *NO_RESULT):
        names = [stage["precision"] for stage in stages(result)]
    task = task_of(result)
    costs = {name: _cost(load_model(run / name, task)) for name in names if (run / name).is_dir()}
    return {"name": run.name, **result, "curves": {name: _curve(run / name) for name in names}, "cost": costs}


def _curve(stage: Path) -> list[tuple[int, float]]:
    path = stage / "log.json"
    log = files.read_json(path, list) or []
    with files.one_line(f"{path} is damaged", "delete it, to store the result without a curve", *NO_RESULT):
        points = [(entry["step"], round(entry["loss"], 4)) for entry in log if "loss" in entry]
    every = max(1, len(points) // CURVE_POINTS)
    return points[::-every][::-1]


def _cost(model) -> list[float]:
    """[MiB, GFLOPs at length 128] of a model."""
    counted = summary(model)
    return [round(counted.mib, 3), round(counted.flops / 1e9, 4)]


def records(folder: str | Path | None = None) -> list[dict]:
    """All stored results as their files hold them, by file name; each gets that name, without ".json", as "name".

    Args:
        folder: where they are kept; None: those that come with bitlab, and those in ./results, which stand in place
            of shipped ones of the same name.

    Raises:
        BitlabError: one line, for a file that is no stored result.
    """
    folders = [SHIPPED, OWN] if folder is None else [Path(folder)]
    paths = {path.name: path for each in folders for path in each.glob("*.json")}
    return [_checked(paths[name]) for name in sorted(paths)]


def _checked(path: Path) -> dict:
    with files.one_line(f"{path.name} is no stored result", "move it elsewhere, or store its run again", *NO_RESULT):
        result = json.loads(path.read_text(encoding="utf-8"))
        stages(result)
    return {"name": path.stem, **result}


def command(result: dict) -> str | None:
    """The command that made a result, as it was typed; in full, but that paths of one machine alone are shortened.

    Args:
        result: as `records` gives it. An older file, which holds none, tells the one that asks for its experiment.

    Returns:
        One line for a shell; None for an older result of a task of one's own, which does not know its file.

    Raises:
        BitlabError: one line, if the configuration is no experiment's.
    """
    with files.one_line(f"{result.get('name')} has no command", "store its run again", *NO_RESULT):
        return result.get("command") or experiment(result).command


def experiment(result: dict) -> Experiment:
    """The experiment that a result is of. Where its configuration has paths, it has their last names."""
    asked = {each.name: result["config"][each.name] for each in fields(Experiment) if each.name in result["config"]}
    table = asked.get("augment")
    return Experiment(**asked | {"task": task_of(result), "augment": table and table["name"]})


def commands(results: Iterable[dict], tasks: Iterable[str] | None = None) -> str:
    """The command of each result, a line each, with the result's name in a comment behind it.

    Args:
        results: as of `records`.
        tasks: names; the results of these alone. None: all.

    Raises:
        BitlabError: for an unknown task, and as of `command`.
    """
    named = None if tasks is None else {get_task(name).name for name in tasks}
    chosen = [result for result in results if named is None or result["task"] in named]
    return "\n".join(f"{command(result) or 'bitlab train ...'}  # {result['name']}" for result in chosen)


def measurement(name: str) -> dict:
    """What else was measured and comes with bitlab.

    Args:
        name: a file below measured/ without its ending: "tuning/stsb", "speed/train", "general/minilm-W1A1".

    Returns:
        The content of the file.

    Raises:
        BitlabError: if there is none of that name.
    """
    content = files.read_json(SHIPPED / f"{name}.json")
    if content is None:
        known = sorted(path.relative_to(SHIPPED).with_suffix("").as_posix() for path in SHIPPED.glob("*/*.json"))
        raise BitlabError(f"no measurement {name!r} is stored: choose {', '.join(known)}")
    return content


def load(folder: str | Path | None = None) -> pd.DataFrame:
    """The `frame` of all stored results, a row for each stage of each run; folder and errors as of `records`."""
    return frame(records(folder))
