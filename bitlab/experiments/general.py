"""General distillation: an encoder made binary on plain text, before any task, for every task to start from.

Source of the idea: TinyBERT (Jiao et al., 2020, arXiv 1909.10351), which makes a small encoder in this way before it
sees a task; here it is one of the same shape and of one bit. The teacher is the pretrained encoder, and the loss is
that of its hidden states, each over its variance (`DistillationConfig.relative`): no labels, no answers.
"""

import copy
import math
import time
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from numbers import Integral, Real
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from bitlab import files
from bitlab.config import BitConfig, bit_config
from bitlab.convert import binarize, set_precision
from bitlab.distillation.checks import diverged
from bitlab.errors import BitlabError
from bitlab.experiments import environment
from bitlab.experiments.experiment import GeneralDistillation
from bitlab.experiments.folder import STAGE, TRAINING, Report, digest, record_in, run_in
from bitlab.experiments.stage import EVALUATION_BATCH, save_stage, set_dropout, train_stage
from bitlab.methods import DistillationConfig
from bitlab.models import load_model, load_tokenizer, weights_digest

HIDDEN_STATES = DistillationConfig(logits=0.0, hidden=1.0, relative=True)
HELD_OUT = 500  # texts, or a tenth of fewer than 5,000
FEWEST = 10
HOLDS = {"precision": str, "missed": list, "steps": Integral, "seconds": Real, "config": dict}


def read_texts(
    paths: Iterable[str | Path], tokenizer: PreTrainedTokenizerBase, max_length: int = 128
) -> tuple[Dataset, Dataset]:
    """Texts of UTF-8 files as tokens, one a line and each once; a tab parts the two sentences of a pair.

    Args:
        max_length: in tokens; longer texts are cut, and all to what the tokenizer's model reads.
    Returns:
        (to train on, held out): the latter are 500 lines at equal distances, or every tenth.
    Raises:
        BitlabError: for a file that can't be read, and for fewer than ten texts.
    """
    max_length = min(max_length, tokenizer.model_max_length)
    lines: dict[str, None] = {}
    for path in map(files.expanded, paths):
        with files.reading(path, "give UTF-8 files, one text a line"):
            text = path.read_text(encoding="utf-8")
        lines |= dict.fromkeys(line.strip() for line in text.split("\n") if line.strip())
    if len(lines) < FEWEST:
        raise BitlabError(f"{len(lines)} texts are too few to learn from: give at least {FEWEST}, one a line")
    tokens = [dict(tokenizer(*line.split("\t")[:2], truncation=True, max_length=max_length)) for line in lines]
    every = max(FEWEST, len(tokens) // HELD_OUT)
    train = [row for number, row in enumerate(tokens) if number % every]
    return Dataset.from_list(train), Dataset.from_list(tokens[::every])


@torch.no_grad()
def missed(student: nn.Module, teacher: nn.Module, rows: Dataset, collate) -> list[float]:
    """Share of a teacher's hidden states that a student misses on texts: squared error over variance.

    Args:
        rows: the texts as tokens; `collate` makes a padded batch of some of them.
    Returns:
        L + 1 numbers, the embedding output's first. 0: a perfect copy; 1: as far off as the mean over all tokens.
    """
    count = errors = sums = squares = 0
    for start in range(0, len(rows), EVALUATION_BATCH):
        batch = collate([rows[i] for i in range(start, min(start + EVALUATION_BATCH, len(rows)))])
        batch = {name: value.to(student.device) for name, value in batch.items()}
        real = batch["attention_mask"].bool()
        states = (model(**batch, output_hidden_states=True).hidden_states for model in (student, teacher))
        s, t = (torch.stack([layer[real] for layer in layers]).double() for layers in states)  # (L + 1, tokens, width)
        count += t.shape[1]
        errors += (s - t).square().sum((1, 2))
        sums += t.sum(1)
        squares += t.square().sum((1, 2))
    return (errors / (squares - sums.square().sum(1) / count)).tolist()


def distil(general: GeneralDistillation, output: str | Path, again: bool = False, report: Report = print) -> dict:
    """Make a model binary and train it on texts to have the hidden states that it had before.

    Args:
        output: the folder; it ends up holding the encoder in `<precision>/`, an ordinary Hugging Face folder, which
            `Experiment(start=...)` takes. Called again it goes on where it stopped.
        again: train even if the folder holds the finished encoder.
        report: called with one line at a time about what happens.
    Returns:
        What is in `<precision>/stage.json`: precision, missed (see `missed`), steps, seconds, config, versions,
        machine.
    Raises:
        BitlabError: as for `read_texts`, `load_model` and `binarize`, for a folder of another training, and for a
            training that diverged.
    """
    tokenizer, bits = load_tokenizer(general.model), BitConfig.from_precision(general.precision)
    train, held_out = read_texts(general.texts, tokenizer, general.max_length)
    folder = files.expanded(output)
    config = {
        "model": Path(general.model).name,
        "precision": bits.precision,
        "settings": asdict(general.settings),
        "max_length": general.max_length,
        "dropout": general.dropout,
        "seed": general.seed,
        "texts": {"train": len(train), "validation": len(held_out)},
        "tokens": sum(map(len, train["input_ids"])),
        "data_digest": digest(train),
        "model_digest": weights_digest(general.model),
    }
    with files.quiet():
        teacher = load_model(general.model, seed=general.seed)
        student = binarize(copy.deepcopy(teacher), bits)  # refused before anything is written if it can't be
        work = partial(_train, general, student, teacher, tokenizer, train, held_out, folder, config)
        record = partial(record_in, folder / bits.precision / STAGE, HOLDS)
        return run_in(folder, config, [bits.precision], record, work, again, report)


def _train(general, student, teacher, tokenizer, train, held_out, folder: Path, config: dict, report: Report) -> dict:
    started, precision = time.monotonic(), config["precision"]
    collate, training = DataCollatorWithPadding(tokenizer), folder / (precision + TRAINING)
    set_seed(general.seed)
    set_dropout(student, general.dropout)
    options = {"seed": general.seed, "title": precision, "report": report, "distillation": HIDDEN_STATES}
    trained = train_stage(student, [teacher], train, collate, general.settings, training, **options)
    share = [round(each, 4) for each in missed(student.eval(), teacher, held_out, collate)]
    if not all(map(math.isfinite, share)):
        raise diverged("hidden states are no numbers")
    record = {
        "precision": precision,
        "missed": share,
        "steps": trained.steps,
        "seconds": round(trained.earlier + time.monotonic() - started, 1),
        "config": config,
        "versions": environment.versions(),
        "machine": environment.machine(),
    }
    save_stage(folder / precision, student, tokenizer, record, trained.log, training)
    return record


def start_from(student: PreTrainedModel, name: str, alpha: str = "rescale") -> PreTrainedModel:
    """Give a binary student the encoder of another binary model, in place; its pooler and its head stay.

    Args:
        name: folder or hub id of the other model.
        alpha: what becomes of its scales where it has another precision, see `set_precision`.
    Raises:
        BitlabError: if the other model is not binary, is packed, or is not of the student's method and shape.
    """
    own = student.config.quantization_config
    with files.quiet():
        other = load_model(name)
    bits = bit_config(other)
    if bits is None:
        raise BitlabError(f"start {name!r} is not binary: give an encoder made by `bitlab distil`")
    if bits.method != own.method:
        raise BitlabError(f"start {name!r} is of method {bits.method}, this experiment of {own.method}")
    wanted = _without_pooler(student.base_model)
    state = _without_pooler(set_precision(other, own.precision, alpha))
    shapes = [{(key, value.shape) for key, value in encoder.items()} for encoder in (state, wanted)]
    if unlike := shapes[0] ^ shapes[1]:
        raise BitlabError(f"start {name!r} is of another shape than the student: see {min(unlike)[0]}")
    student.base_model.load_state_dict(state, strict=False)
    return student


def _without_pooler(encoder: nn.Module) -> dict[str, Tensor]:
    """No hidden state depends on the pooler, so that general distillation teaches it nothing."""
    return {key: value for key, value in encoder.state_dict().items() if not key.startswith("pooler.")}
