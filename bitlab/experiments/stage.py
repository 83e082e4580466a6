"""Training one stage with checkpoints that survive a kill, and evaluating a model."""

import json
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datasets import Dataset
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
)
from transformers.integrations import is_tensorboard_available

from bitlab import files
from bitlab.compiled import fast_products
from bitlab.distillation import DistillationTrainer
from bitlab.distillation.checks import check_finite
from bitlab.errors import BitlabError
from bitlab.experiments.environment import CPU, processes
from bitlab.experiments.folder import LOG, STAGE
from bitlab.experiments.prepared import Prepared
from bitlab.experiments.schedule import StageSettings
from bitlab.progress import Progress

EVALUATION_BATCH = 64
DEV_EVALUATIONS = 10  # for the best of them
WHOLE = "whole"  # the file that is written last into a checkpoint: seconds trained so far, and what its files hold
BOARD = "runs"  # where transformers puts TensorBoard's logs


class Trained(NamedTuple):
    """A training's log (step, loss and its terms), its optimizer steps, and the seconds that earlier sessions took."""

    log: list[dict]
    steps: int
    earlier: float


def train_stage(
    model: PreTrainedModel,
    teachers: list[PreTrainedModel],
    rows: Dataset,
    collate: Callable,
    settings: StageSettings,
    folder: Path | None = None,
    *,
    steps: int | None = None,
    seed: int = 0,
    title: str | None = None,
    watched: Prepared | None = None,
    keeps_best: bool = False,
    report: Callable[[str], None] = print,
    **trainer_options,
) -> Trained:
    """Train `model` in place, from its start or from the last whole checkpoint in `folder`.

    Args:
        teachers: models to distil from; none: train on the labels.
        folder: of the checkpoints; None for none.
        steps: of the optimizer; as `settings` has them for `rows` if None.
        title: of the progress shown; None for none.
        report: where progress goes, one line for each tenth, if standard error is no terminal.
        watched: evaluate on this data's first dev split ten times; the log tells the scores.
        keeps_best: end with the best model of these.
        trainer_options: see `DistillationTrainer`.
    """
    steps = steps or settings.steps(len(rows))
    checkpoint, earlier = _last_whole_checkpoint(folder, steps) if folder else (None, 0.0)
    options = {}
    if watched:
        dev, *_ = watched.evaluations
        score = lambda p: {"score": watched.score(watched.metrics({dev: p.predictions}))}  # noqa: E731
        options = {"eval_dataset": watched.evaluations[dev], "compute_metrics": score}
    trainer = DistillationTrainer(
        model,
        teachers,
        _training_arguments(settings, folder, seed, steps, watched is not None, keeps_best),
        train_dataset=rows,
        data_collator=collate,
        alpha_learning_rate=settings.alpha_learning_rate,
        callbacks=[MarkWhole(time.monotonic() - earlier)] + ([ShowProgress(title, report)] if title else []),
        **options,
        **trainer_options,
    )
    trainer.remove_callback(PrinterCallback)
    with fast_products():
        trainer.train(resume_from_checkpoint=checkpoint)
    for wrapped in ("forward", "_original_forward"):  # accelerate's: the model would be evaluated in mixed precision
        model.__dict__.pop(wrapped, None)
    return Trained(trainer.state.log_history, trainer.state.global_step, earlier)


def set_dropout(model: nn.Module, probability: float | None) -> None:
    """Every dropout's probability in training; None leaves the model's own."""
    for module in model.modules():
        if isinstance(module, nn.Dropout) and probability is not None:
            module.p = probability


def arguments(folder: Path | None = None, **options) -> TrainingArguments:
    """transformers' TrainingArguments, quiet, and on the device that there is.

    Args:
        folder: None where nothing is written; Trainer makes its folder all the same: let it be one that exists.
    """
    return TrainingArguments(
        str(folder or tempfile.gettempdir()),
        per_device_eval_batch_size=EVALUATION_BATCH,
        use_cpu=CPU,  # transformers wants to hear it for bf16, and for processes without a GPU
        dataloader_pin_memory=not CPU,  # else torch warns on machines without a GPU
        disable_tqdm=True,
        **{"report_to": []} | options,
    )


def _training_arguments(
    settings: StageSettings, folder: Path | None, seed: int, steps: int, watched: bool, best: bool
) -> TrainingArguments:
    """One training's; checkpoints are written about ten times, or every 25 steps."""
    every = max(1, steps // DEV_EVALUATIONS)
    watching = {"eval_strategy": "steps", "eval_steps": every, "metric_for_best_model": "score"}
    saving = {"save_steps": every if watched else max(25, every), "save_total_limit": 2}
    count = processes().num_processes
    if settings.batch_size % count:
        raise BitlabError(f"a batch of {settings.batch_size} can't be shared by {count} processes evenly")
    return arguments(
        folder,
        seed=seed,
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size // count,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup,
        adam_epsilon=1e-6,
        bf16=settings.bf16,
        train_sampling_strategy="group_by_length" if settings.group_by_length else "random",
        logging_steps=max(1, steps // 50),
        report_to=["tensorboard"] if folder and is_tensorboard_available() else [],
        **(saving if folder else {"save_strategy": "no"}),
        **({**watching, "load_best_model_at_end": best} if watched else {}),
    )


def evaluate(model: PreTrainedModel, data: Prepared) -> tuple[float, dict[str, float]]:
    """(score, metrics) of a model on the task's dev split or splits."""
    metrics = data.metrics(predict(model, data))
    return data.score(metrics), metrics


def predict(
    model: PreTrainedModel, data: Prepared, splits: dict[str, Dataset] | None = None
) -> dict[str, np.ndarray | tuple[np.ndarray, ...]]:
    """A model's logits on each dev split, or on `splits`: (examples, classes); SQuAD: start and end, (windows,
    tokens) each."""
    trainer = DistillationTrainer(model, None, arguments(), data_collator=data.collate)
    trainer.remove_callback(PrinterCallback)
    return {name: trainer.predict(rows).predictions for name, rows in (splits or data.evaluations).items()}


def save_stage(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    record: dict,
    log: list[dict],
    training: Path | None = None,
    more: dict[str, dict | str] | None = None,
) -> None:
    """Write a trained stage's Hugging Face folder, whole or not at all; other processes wait for it.

    Args:
        record: becomes stage.json. log: of `train_stage`. more: files by name, JSON objects or texts.
        training: the folder of its checkpoints, which goes; TensorBoard's logs move from there.
    Raises:
        BitlabError: for a model that holds NaN or infinity.
    """
    check_finite(model)
    if processes().is_main_process:
        with files.whole_folder(folder) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            for logs in sorted(training.rglob(BOARD)) if training else ():
                shutil.copytree(logs, partial / BOARD / logs.parent.relative_to(training), dirs_exist_ok=True)
            for name, content in {LOG: log, **(more or {})}.items():
                (files.write_text if isinstance(content, str) else files.write_json)(partial / name, content)
            files.write_json(partial / STAGE, record)
        if training:
            shutil.rmtree(training, ignore_errors=True)
    processes().wait_for_everyone()


# ------------------------------------------------------------------------------------------- checkpoints


def _last_whole_checkpoint(folder: Path, steps: int) -> tuple[str | None, float]:
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


class ShowProgress(TrainerCallback):
    """Shows stage, step, remaining time and loss."""

    def __init__(self, title: str, report: Callable[[str], None]):
        self.title, self.report, self.progress, self.note = title, report, None, ""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.progress = Progress(self.title, "step", state.max_steps, state.global_step, self.report)

    def on_step_end(self, args, state, control, **kwargs):
        if self.progress:
            self.progress.to(state.global_step, self.note)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in (logs or {}):
            self.note = f"loss {logs['loss']:.3f}"

    def on_train_end(self, args, state, control, **kwargs):
        if self.progress:
            self.progress.close()
