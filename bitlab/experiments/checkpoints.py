"""Checkpoints that survive a kill: each is marked when all of its files are written, and only marked ones count."""

import json
import re
import shutil
import time
import zlib
from pathlib import Path

from transformers import TrainerCallback

from bitlab import files
from bitlab.experiments.environment import processes

WHOLE = "whole"  # the file that is written last into a checkpoint: seconds trained so far, and what its files hold


class MarkWhole(TrainerCallback):
    """Marks every checkpoint once all of its files are written: a kill in between leaves one without the mark."""

    def __init__(self, started: float):
        self.started = started

    def on_save(self, args, state, control, **kwargs):
        processes().wait_for_everyone()  # each writes its own random state
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            seconds = time.monotonic() - self.started
            files.write_json(checkpoint / WHOLE, {"seconds": seconds, "files": _sums(checkpoint)})


def last_whole_checkpoint(folder: Path, steps: int) -> tuple[str | None, float]:
    """The newest checkpoint that is as it was written, and the seconds of training in it; broken ones go.

    The one at the last of all `steps` does not count: Trainer would train one step more from there.
    """
    if processes().is_main_process:
        for path in _checkpoints(folder):
            if _mark(path) is None:
                shutil.rmtree(path)
    processes().wait_for_everyone()
    whole = [path for path in _checkpoints(folder) if _step(path) < steps]
    return (str(whole[-1]), _mark(whole[-1])["seconds"]) if whole else (None, 0.0)


def _checkpoints(folder: Path) -> list[Path]:
    """In the order of their steps."""
    return sorted((path for path in folder.glob("checkpoint-*") if re.fullmatch(r"\d+", path.name[11:])), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name[11:])


def _mark(checkpoint: Path) -> dict | None:
    """What a checkpoint says of itself, None where its files are not what they were when it was written: a kill came
    before the end, one is missing or damaged, or the best model that it counts on is."""
    try:
        mark = files.read_json(checkpoint / WHOLE) or {}
        best = json.loads((checkpoint / "trainer_state.json").read_text()).get("best_model_checkpoint")
        good = mark.get("files") == _sums(checkpoint) and float(mark["seconds"]) >= 0
        return mark if good and (not best or Path(best) == checkpoint or _mark(Path(best))) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _sums(checkpoint: Path) -> dict[str, int]:
    """A checksum of each of its files."""
    found = {}
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != WHOLE):
        sum_ = 0
        with open(path, "rb") as file:
            while block := file.read(2**20):
                sum_ = zlib.crc32(block, sum_)
        found[str(path.relative_to(checkpoint))] = sum_
    return found
