"""A run's folder: the names of what a run makes in it, what `--again` may delete, and the frame that all runs share."""

import hashlib
import math
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from fnmatch import fnmatch
from functools import partial
from numbers import Integral, Real
from pathlib import Path

from datasets import Dataset
from pyarrow import types

from bitlab import files
from bitlab.errors import BitlabError
from bitlab.experiments.environment import processes

RESULT, STAGE, LOG, TRAINING = "result.json", "stage.json", "log.json", ".training"
# What may lie in a stage's folder: a model, its tokenizer, and what is said of them.
MADE = (STAGE, LOG, "config.json", "generation_config.json", "model*.safetensors*", "README.md")
MADE += ("runs/*events.out.tfevents*",)
MADE += ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "spiece.model")
MADE += ("sentencepiece*", "chat_template*", "predictions.json", "nbest_predictions.json")

STAGE_HOLDS = {"precision": str, "score": Real, "metrics": dict, "steps": Integral, "seconds": Real}
RESULT_HOLDS = {"task": str, "method": str, "model": str, "data": str, "seed": Integral, "schedule": str}
RESULT_HOLDS |= {"stages": list, "config": dict, "versions": dict, "machine": dict}

Report = Callable[[str], None]


def run_in(
    folder: Path,
    config: dict,
    stages: Sequence[str],
    finished: Callable[[], dict | None],
    work: Callable[[Report], dict],
    again: bool,
    report: Report,
    made: Collection[str] = (),
) -> dict:
    """Do `work` in a folder of its own, unless the folder holds its finished record.

    Under torchrun one process owns the folder and reports, and the others follow it.

    Args:
        config: what tells this run from another one.
        stages: names of the folders that the run makes, in their order.
        finished: reads the record that ends the run, None if there is none.
        work: called with the function that takes lines about what happens; returns the record.
        again: do the work even if it is finished, anew from the start.
        made: names of files in a stage's folder that this run makes besides those that every run does.
    Raises:
        BitlabError: where a stage would take the place of a folder that holds somebody's file.
    """
    if not processes().is_main_process:
        processes().wait_for_everyone()
        return finished() or work(lambda line: None)
    with files.claim(folder, config, partial(clear, stages=stages, made=made) if again else None):
        check_made((folder / stage for stage in stages if not (folder / stage / STAGE).exists()), made)
        processes().wait_for_everyone()
        record = finished()
        if record is None:
            return work(report)
        report(f"{folder} holds this already, finished (--again runs it again)")
        return record


def record_in(path: Path, holds: dict[str, type]) -> dict | None:
    """A record of a run, None if there is none.

    Args:
        holds: what it has to hold; the items of "stages" are held to STAGE_HOLDS, and metrics are numbers.
    Raises:
        BitlabError: if it can't be read, or lacks something.
    """
    remedy = "delete it, and the same command makes it anew"
    record = files.read_json(path, remedy=remedy)
    if record is not None:
        with files.reading(path, remedy):
            check_holds(record, holds)
    return record


def check_holds(record: dict, holds: dict[str, type]) -> None:
    """As of `record_in`; raises ValueError."""
    if not isinstance(record, dict):
        raise ValueError(f"{record!r} is no record")
    for name, kind in holds.items():
        value = record.get(name)
        if not isinstance(value, kind) or isinstance(value, bool) or (kind is Real and not math.isfinite(value)):
            raise ValueError(f"its {name} is {value!r:.50}")
        if name == "metrics":
            check_holds(value, dict.fromkeys(value, Real))
        for stage in value if name == "stages" else ():
            check_holds(stage, STAGE_HOLDS)


def check_made(stages: Iterable[Path], made: Collection[str] = ()) -> None:
    """Refuse stages' folders in which there is a file that no run makes.

    Raises:
        BitlabError: naming it.
    """
    for stage in stages:
        for path in sorted(path for path in stage.rglob("*") if not path.is_dir()):
            name = path.relative_to(stage).as_posix()
            if name not in made and not any(fnmatch(name, pattern) for pattern in MADE):
                raise BitlabError(f"{path} is not the run's: move it elsewhere, or choose another --output")


def clear(folder: Path, stages: Sequence[str], made: Collection[str] = ()) -> None:
    """Delete what a run made, and nothing else; killed at any moment, it leaves what the same run would have by then.

    Raises:
        BitlabError: if there is something else in a stage's folder, before anything is deleted.
    """
    check_made((folder / stage for stage in stages), made)
    for record in (folder / RESULT, *(folder / stage / STAGE for stage in reversed(stages))):  # what says finished
        record.unlink(missing_ok=True)
    for path in (folder / (stage + end) for stage in stages for end in ("", TRAINING, files.PARTIAL, files.OLD)):
        if path.exists():
            shutil.rmtree(path)


def digest(*tables: Dataset) -> str:
    """A hash of all numbers in data sets: tokens, labels. Edited data have another, and make another experiment."""
    found = hashlib.sha256()
    for column in (column.combine_chunks() for table in tables for column in table.data.columns):
        if types.is_list(column.type):
            found.update(column.value_lengths().to_numpy(zero_copy_only=False).tobytes())
            column = column.flatten()
        if types.is_integer(column.type) or types.is_floating(column.type):
            found.update(column.to_numpy(zero_copy_only=False).tobytes())
    return found.hexdigest()[:16]
