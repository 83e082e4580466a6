"""Training one stage with checkpoints that survive a kill, and evaluating a model."""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from torch import nn
from tqdm.auto import tqdm
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
)

from bitlab import files
from bitlab.compiled import matmul_precision
from bitlab.distillation import DistillationTrainer
from bitlab.errors import BitlabError
from bitlab.experiments.prepared import Prepared
from bitlab.experiments.schedule import StageSettings

EVALUATION_BATCH = 64
DEV_EVALUATIONS = 10  # with selection="best"
CPU = not torch.cuda.is_available()
PIN = {"dataloader_pin_memory": torch.cuda.is_available()}  # else torch warns on machines without a GPU
WHOLE = "whole"  # marks a checkpoint that was written to its end; holds the seconds trained so far


def processes() -> PartialState:
    """The processes of this run: one, or as many as torchrun or `accelerate launch` started.

    Without a GPU accelerate takes each of them for a run of its own unless it is told, here, that CPUs are meant.
    """
    return PartialState(cpu=CPU)


def train_stage(
    model: PreTrainedModel,
    teachers: list[PreTrainedModel],
    data: Prepared,
    settings: StageSettings,
    folder: Path,
    seed: int,
    title: str | None,
    best: bool = False,
    started: float | None = None,
    report: Callable[[str], None] = print,
    **trainer_options,
) -> tuple[list[dict], int, float]:
    """Train `model` in place, from its start or from the last whole checkpoint in `folder`.

    Args:
        teachers: models to distil from; none: train on the labels.
        title: of the progress bar on standard error; None for none.
        report: where progress goes, one line for each tenth, if standard error is no terminal.
        best: evaluate on dev ten times and end with the best model.
        trainer_options: see `DistillationTrainer`.
    Returns: (log, steps, moment of the start on the monotonic clock, earlier sessions counted in).
    """
    steps = settings.steps(len(data.train))
    rows = data.augmented if teachers and data.augmented is not None else data.train
    checkpoint, spent = _last_whole_checkpoint(folder, steps)
    started = (time.monotonic() if started is None else started) - spent
    dev = next(iter(data.evaluations))
    trainer = DistillationTrainer(
        model,
        teachers,
        arguments(data, settings, folder, seed, steps, best),
        train_dataset=rows,
        eval_dataset=data.evaluations[dev],
        data_collator=data.collate,
        compute_metrics=lambda p: {"score": data.score(data.metrics({dev: p.predictions}))},
        alpha_learning_rate=settings.alpha_learning_rate,
        callbacks=[MarkWhole(started)] + ([Progress(title, report)] if title else []),
        **trainer_options,
    )
    trainer.remove_callback(PrinterCallback)
    with matmul_precision("medium"):
        trainer.train(resume_from_checkpoint=checkpoint)
    for wrapped in ("forward", "_original_forward"):  # accelerate's: the model would be evaluated in mixed precision
        model.__dict__.pop(wrapped, None)
    return trainer.state.log_history, trainer.state.global_step, started


def set_dropout(model: nn.Module, probability: float | None) -> None:
    """Every dropout's probability in training; None leaves the model's own."""
    for module in model.modules():
        if isinstance(module, nn.Dropout) and probability is not None:
            module.p = probability


def arguments(data: Prepared, settings: StageSettings, folder: Path, seed: int, steps: int, best: bool):
    """transformers' TrainingArguments for one stage."""
    every = max(1, steps // DEV_EVALUATIONS)
    choose = {"eval_strategy": "steps", "eval_steps": every, "load_best_model_at_end": True}
    count = processes().num_processes
    if settings.batch_size % count:
        raise BitlabError(f"a batch of {settings.batch_size} can't be shared by {count} processes evenly")
    return TrainingArguments(
        output_dir=str(folder),
        seed=seed,
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size // count,
        per_device_eval_batch_size=EVALUATION_BATCH,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup,
        adam_epsilon=1e-6,
        bf16=settings.bf16,
        use_cpu=CPU,  # transformers wants to hear it for bf16, and for processes without a GPU
        train_sampling_strategy="group_by_length" if settings.group_by_length else "random",
        logging_steps=max(1, steps // 50),
        save_steps=every if best else max(25, every),
        save_total_limit=2,
        report_to=_reporting(),
        disable_tqdm=True,
        **PIN,
        **({**choose, "metric_for_best_model": "score"} if best else {}),
    )


def _reporting() -> list[str]:
    from transformers.integrations import is_tensorboard_available

    return ["tensorboard"] if is_tensorboard_available() else []


def evaluate(model: PreTrainedModel, data: Prepared) -> tuple[float, dict[str, float]]:
    """(score, metrics) of a model on the task's dev split or splits."""
    metrics = data.metrics(predict(model, data))
    return data.score(metrics), metrics


def predict(
    model: PreTrainedModel, data: Prepared, splits: dict[str, Dataset] | None = None
) -> dict[str, np.ndarray | tuple[np.ndarray, ...]]:
    """A model's logits on each dev split, or on `splits`: (examples, classes); SQuAD: start and end, (windows,
    tokens) each."""
    # nothing is written, but Trainer makes its folder: let it be one that exists
    args = TrainingArguments(
        tempfile.gettempdir(),
        per_device_eval_batch_size=EVALUATION_BATCH,
        report_to=[],
        disable_tqdm=True,
        use_cpu=CPU,
        **PIN,
    )
    trainer = DistillationTrainer(model, None, args, data_collator=data.collate)
    trainer.remove_callback(PrinterCallback)
    return {name: trainer.predict(rows).predictions for name, rows in (splits or data.evaluations).items()}


def save_stage(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    record: dict,
    log: list[dict],
    more: dict[str, dict | str] | None = None,
) -> None:
    """Write a trained stage's Hugging Face folder, whole or not at all; other processes wait for it.

    Args: record: becomes stage.json. log: of `train_stage`. more: files by name, JSON objects or texts.
    """
    if processes().is_main_process:
        with files.whole_folder(folder) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            for name, content in {"log.json": log, **(more or {})}.items():
                (files.write_text if isinstance(content, str) else files.write_json)(partial / name, content)
            files.write_json(partial / files.STAGE, record)
    processes().wait_for_everyone()


def _last_whole_checkpoint(folder: Path, steps: int) -> tuple[str | None, float]:
    """The newest checkpoint that was written to its end, and the seconds of training in it; broken ones go.

    The one at the last of all `steps` does not count: Trainer would train one step more from there.
    """
    whole = []
    for path in folder.glob("checkpoint-*"):
        if (path / WHOLE).exists():
            if int(path.name.split("-")[1]) < steps:
                whole.append(path)
        elif processes().is_main_process:
            shutil.rmtree(path)
    if not whole:
        return None, 0.0
    last = max(whole, key=lambda path: int(path.name.split("-")[1]))
    return str(last), json.loads((last / WHOLE).read_text())


class MarkWhole(TrainerCallback):
    """Marks every checkpoint once all of its files are written: a kill in between leaves one without the mark."""

    def __init__(self, started: float):
        self.started = started

    def on_save(self, args, state, control, **kwargs):
        processes().wait_for_everyone()  # each writes its own random state
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            partial = checkpoint / (WHOLE + ".partial")
            partial.write_text(json.dumps(time.monotonic() - self.started))
            partial.rename(checkpoint / WHOLE)


class Progress(TrainerCallback):
    """Shows stage, step, remaining time and loss: as a bar on a terminal, else as ten lines."""

    def __init__(self, title: str, report: Callable[[str], None]):
        self.title, self.report, self.bar, self.loss = title, report, None, float("nan")

    def on_train_begin(self, args, state, control, **kwargs):
        self.started, self.first = time.monotonic(), state.global_step
        if state.is_world_process_zero and sys.stderr.isatty():
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.title, file=sys.stderr)

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)
        elif state.is_world_process_zero and state.global_step % max(1, state.max_steps // 10) == 0:
            pace = (time.monotonic() - self.started) / (state.global_step - self.first)
            left = pace * (state.max_steps - state.global_step)
            self.report(
                f"  {self.title}: step {state.global_step} of {state.max_steps}, loss {self.loss:.3f}, "
                f"about {left:.0f} s left"
            )

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.loss = (logs or {}).get("loss", self.loss)
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{self.loss:.3f}", refresh=False)

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()
