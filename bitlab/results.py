"""Stored results: one small JSON file a run in results/, its configuration and loss curve included."""

from pathlib import Path

from bitlab import runs
from bitlab.errors import BitlabError
from bitlab.tasks import get_task

FOLDER = Path(__file__).parent.parent / "results"
CURVE_POINTS = 10


def store(run: str | Path, folder: str | Path = FOLDER) -> Path:
    """Copy a finished run's result, with its loss curve thinned to ten points a stage, into the results folder.

    Args: run: the folder of a run, holding result.json. folder: where results are kept.
    Returns: the new file, named after the run. Errors: BitlabError if the run is not finished.
    """
    run, folder = Path(run), Path(folder)
    result = runs.read_json(run / runs.RESULT)
    if result is None:
        raise BitlabError(f"{run} holds no {runs.RESULT}: run the same experiment again to finish it")
    result["curves"] = {stage["precision"]: _curve(run / stage["precision"]) for stage in result["stages"]}
    folder.mkdir(exist_ok=True)
    path = folder / f"{run.name}.json"
    runs.write_json(path, result)
    return path


def _curve(stage: Path) -> list[tuple[int, float]]:
    log = [
        (entry["step"], round(entry["loss"], 4))
        for entry in runs.read_json(stage / "log.json") or []
        if "loss" in entry
    ]
    every = max(1, len(log) // CURVE_POINTS)
    return log[::-every][::-1]


def load(folder: str | Path = FOLDER) -> list[dict]:
    """All stored results, by file name; each gets its file's name as "name"."""
    paths = sorted(Path(folder).glob("*.json"))
    return [{"name": path.stem, **runs.read_json(path)} for path in paths]


def table(results: list[dict]) -> str:
    """One line a result: task, model, data, method, seed, and the score (percent) and steps of every stage."""
    lines = []
    for r in results:
        stages = "  ".join(f"{s['precision']} {100 * s['score']:5.1f} ({s['steps']} steps)" for s in r["stages"])
        examples = r["config"]["examples"]["train"]
        lines.append(
            f"{get_task(r['task']).title:6} {r['model']:8} {r['data']:8} {examples:6} examples  {r['method']:12} "
            f"seed {r['seed']}  {stages}"
        )
    return "\n".join(lines) or "no results stored"
