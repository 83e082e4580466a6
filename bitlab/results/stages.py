"""Results as one DataFrame: a row for each stage of each run, with its numbers, its budget and its settings."""

import json
from collections.abc import Iterable
from dataclasses import fields

import pandas as pd

from bitlab.data.squad import WindowSizes
from bitlab.data.tasks import SQUAD, TASKS, Task, get_task
from bitlab.errors import BitlabError, check_choice
from bitlab.experiments.environment import told
from bitlab.experiments.experiment import Experiment
from bitlab.experiments.folder import RESULT_HOLDS, check_holds
from bitlab.experiments.recipes import RECIPES
from bitlab.experiments.schedule import ARROW, FULL, StageSettings, parse_schedule

RUN = ["name", "task", "method", "model", "data", "seed", "schedule"]
METRICS = sorted({name for task in (*TASKS.values(), SQUAD) for name in task.metrics} | {"accuracy_mismatched"})
SETTINGS = ["epochs", "batch_size", "learning_rate", "alpha_learning_rate"]
COLUMNS = [*RUN, "path", "precision", "given", "score", "best", *METRICS, "steps", "seconds", "total_steps"]
COLUMNS += ["total_seconds", "seen", *SETTINGS, "mib", "gflops", "options", "budget", "recipe", "machine", "trained"]
COLUMNS += ["curve", "preset", "train_examples", "max_steps"]
DEFAULTS = {option.name: option.default for option in fields(Experiment)}
USUAL = {option.name: option.default for option in fields(StageSettings)}
# What of a run's configuration is told by other means; any other option that is not at its default marks a row.
TOLD = {option.name for option in fields(Experiment) if option.metadata["told"]}
TOLD |= {"examples", "settings", "questions", "own_task", "data_digest", "model_digest"}
WINDOWS = [option.name for option in fields(WindowSizes)]  # SQuAD's
SAME = 12  # digits: beyond them a training that is repeated on another day may differ


def frame(results: Iterable[dict]) -> pd.DataFrame:
    """Results as a DataFrame with a row for each stage of each run.

    Args:
        results: as `records` and `collect` give them, or as a run's result.json holds them.

    Returns:
        The columns, in this order:

        - name, task, method, model, data, seed, schedule: the run's.
        - path, precision: of the stage; its path is its schedule so far, "W32A32 -> W1A2".
        - given: whether the stage is a teacher that was given, not trained by this run.
        - score, that of the last step (with the selection "best": of the model that was kept); best, the best of ten
          on dev where they were taken; one column a metric (accuracy, f1, ...). Fractions; NaN where there is none.
        - steps, seconds: of this stage. total_steps, total_seconds, seen: of all distillation stages so far (the
          full-precision model's own in its row); seen counts examples.
        - epochs, batch_size, learning_rate, alpha_learning_rate: as the stage was trained.
        - mib, gflops: the model's cost (at length 128), NaN where it is not known.
        - options: what differs from the defaults, in words. budget: the preset and its limits. recipe: what runs have
          in common that differ in nothing but their seed. machine. trained: the steps of each stage, "100 + 200".
        - curve: (step, loss) pairs.
        - every other field of the configuration, as it was asked for.
    """
    found = pd.DataFrame([row for result in results for row in stages(result)])
    return found.reindex(columns=[*COLUMNS, *found.columns.difference(COLUMNS, sort=False)])


def stages(result: dict) -> list[dict]:
    """The rows of one result; whatever is no result raises here, and nowhere later."""
    check_holds(result, RESULT_HOLDS)
    config = result["config"]
    check_choice("method", result["method"], RECIPES)
    precisions = parse_schedule(result["schedule"], RECIPES[result["method"]].method)
    if tuple(stage["precision"] for stage in result["stages"]) != precisions:
        raise BitlabError("its stages are not those of its schedule")
    run = {name: result.get(name) for name in RUN} | {"task": task_of(result).name}
    asked = {key: value for key, value in config.items() if not isinstance(value, (dict, list)) and key not in SETTINGS}
    return [asked | run | _stage(result, precisions[: number + 1]) for number in range(len(precisions))]


def task_of(result: dict) -> Task:
    """The task of a result: one by name, or one's own, which the configuration describes."""
    own = result["config"].get("own_task")
    if own is None:
        return get_task(result["task"])
    return Task(**{name: tuple(value) if isinstance(value, list) else value for name, value in own.items()})


def _stage(result: dict, path: tuple[str, ...]) -> dict:
    """The columns of the stage at which `path` ends."""
    config, stages = result["config"], result["stages"][: len(path)]
    stage, student = stages[-1], len(path) > 1
    given = bool(config.get("teacher")) and not student
    settings = {name: config["settings"][name] for name in path}
    trained = stages[1:] or stages  # a student's training is its distillation
    mib, gflops = result.get("cost", {}).get(path[-1]) or (None, None)
    return {
        "path": ARROW.join(path),
        "precision": path[-1],
        "given": given,
        "score": float(stage["score"]),
        "best": float(stage.get("best", "nan")),
        **_metrics(stage, config),
        "steps": int(stage["steps"]),
        "seconds": float(stage["seconds"]),
        "total_steps": sum(each["steps"] for each in trained),
        "total_seconds": sum(each["seconds"] for each in trained),
        "seen": sum(each["steps"] * settings[each["precision"]]["batch_size"] for each in trained),
        **_training(stage, settings[path[-1]], config),
        "mib": mib,
        "gflops": gflops,
        "options": _options(result, path) if student else "",
        "budget": _budget(config),
        "recipe": json.dumps(_recipe(config, {} if given else settings), sort_keys=True),
        "machine": result["machine"].get("gpu") or told(result["machine"]),
        "trained": " + ".join(str(each["steps"]) for each in trained),
        "curve": result.get("curves", {}).get(path[-1]),
    }


def _metrics(stage: dict, config: dict) -> dict[str, float]:
    """A stage's metrics, rounded; where MNLI was evaluated on its mismatched set alone, they are marked as that."""
    dev = [name for name in config["examples"] if name != "train"]
    mark = "_mismatched" if dev == ["validation_mismatched"] else ""
    return {name + mark: round(float(value), SAME) for name, value in stage["metrics"].items()}


def _training(stage: dict, settings: dict, config: dict) -> dict[str, float]:
    """Epochs, batch and rates of a stage, as it was trained."""
    counted = config["examples"]
    examples = counted.get("augmented" if stage["precision"] != FULL else "train") or counted["train"]
    batch, rate = float(settings["batch_size"]), float(settings["learning_rate"])
    alpha = float(settings.get("alpha_learning_rate", USUAL["alpha_learning_rate"]))
    return dict(zip(SETTINGS, (stage["steps"] * batch / examples, batch, rate, alpha)))


def _recipe(config: dict, settings: dict[str, dict]) -> dict:
    """What runs that differ in their seed alone have in common. A setting that is usual may be absent."""
    unusual = {name: {k: v for k, v in stage.items() if v != USUAL.get(k)} for name, stage in settings.items()}
    windows = {name: config.get(name) for name in WINDOWS}
    augment = config.get("augment") if set(settings) - {FULL} else None  # no teacher is trained on it
    data = {"examples": config["examples"]["train"], "augmented": (augment or {}).get("table")}
    return {"teacher": config.get("teacher"), **data, **windows, **unusual}


def _options(result: dict, path: tuple[str, ...]) -> str:
    """The options that differ from their defaults, in words. Those that the path does not come to use are left out."""
    config = result["config"]
    idle = () if len(path) > 2 else ("alpha", "stage_teacher")  # the first stage has no scales before it
    usual = DEFAULTS | {"stage_teacher": RECIPES[result["method"]].stage_teacher}
    unusual = {name: value for name, value in config.items() if name not in (*TOLD, *idle)}
    unusual = {name: value for name, value in unusual.items() if value not in (usual.get(name), None)}
    unusual = {name: value for name, value in unusual.items() if (name, value) != ("selection", "both")}
    # a switch that is on is told by its name
    words = [f"{name.replace('_', ' ')} {'' if value is True else value}".strip() for name, value in unusual.items()]
    return ", ".join(words + ["augmented"] * bool(config.get("augment")))


def _budget(config: dict) -> str:
    parts = [config.get("preset")]
    parts += [f"{config['train_examples']:,} examples"] if config.get("train_examples") else []
    parts += [f"at most {config['max_steps']} steps a stage"] if config.get("max_steps") else []
    return ", ".join(parts)
