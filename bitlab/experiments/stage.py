"""Training one stage, saving what it made, and evaluating a model."""

import shutil
import tempfile
import time
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
from bitlab.experiments.checkpoints import MarkWhole, last_whole_checkpoint
from bitlab.experiments.environment import CPU, processes
from bitlab.experiments.folder import LOG, STAGE
from bitlab.experiments.prepared import Prepared
from bitlab.experiments.schedule import StageSettings
from bitlab.terminal.progress import Progress

EVALUATION_BATCH = 64
DEV_EVALUATIONS = 10  # for the best of them
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
    checkpoint, earlier = last_whole_checkpoint(folder, steps) if folder else (None, 0.0)
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
    log = [entry for entry in trainer.state.log_history if "train_runtime" not in entry]  # of this session alone
    return Trained(log, trainer.state.global_step, earlier)


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
