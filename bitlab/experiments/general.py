"""General distillation: an encoder made binary on plain text, before any task, for every task to start from.

Source of the idea: TinyBERT (Jiao et al., 2020, arXiv 1909.10351), which makes a small encoder in this way before it
sees a task; here it is one of the same shape and of one bit. The teacher is the pretrained encoder, and the loss is
that of its hidden states, each over its variance (`DistillationConfig.relative`): no labels, no answers.
"""

import copy
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from bitlab import files
from bitlab.config import BitConfig, DistillationConfig
from bitlab.convert import binarize, set_precision
from bitlab.errors import BitlabError
from bitlab.experiments import environment
from bitlab.experiments.schedule import StageSettings
from bitlab.experiments.stage import EVALUATION_BATCH, processes, save_stage, set_dropout, train_stage
from bitlab.models import load_model, load_tokenizer, quiet, weights_digest

HIDDEN_STATES = DistillationConfig(logits=0.0, hidden=1.0, relative=True)
HELD_OUT = 500  # texts, or a tenth of fewer than 5,000
FEWEST = 10
SHORTEST = 5  # tokens: [CLS], one of each sentence, two [SEP]
SETTINGS = StageSettings(epochs=1, batch_size=32, learning_rate=2e-3, alpha_learning_rate=1e-2, group_by_length=True)


@dataclass
class Texts:
    """Texts as tokens: what `train_stage` asks of data."""

    tokenizer: PreTrainedTokenizerBase
    train: Dataset
    evaluations: dict[str, Dataset]
    augmented: None = None

    def collate(self, rows: list[dict]) -> dict[str, Tensor]:
        """Pad a batch to its longest text."""
        return DataCollatorWithPadding(self.tokenizer)(rows)


def read_texts(paths: Iterable[str | Path], tokenizer: PreTrainedTokenizerBase, max_length: int = 128) -> Texts:
    """Texts of UTF-8 files, one a line and each once; a tab parts the two sentences of a pair.

    Args: max_length: in tokens; longer texts are cut, and all to what the tokenizer's model reads.
    Held out, in "validation": 500 lines at equal distances, or every tenth.
    Errors: BitlabError for a file that can't be read, for fewer than ten texts, and for a length that leaves no room.
    """
    if max_length < SHORTEST:
        raise BitlabError(f"max_length is {max_length}: give {SHORTEST} tokens or more")
    max_length = min(max_length, tokenizer.model_max_length)
    lines: dict[str, None] = {}
    for path in paths:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise BitlabError(f"text file {path} can't be read ({error}): give UTF-8 files, one text a line") from None
        lines |= dict.fromkeys(line.strip() for line in text.split("\n") if line.strip())
    if len(lines) < FEWEST:
        raise BitlabError(f"{len(lines)} texts are too few to learn from: give at least {FEWEST}, one a line")
    tokens = [tokenizer(*line.split("\t")[:2], truncation=True, max_length=max_length) for line in lines]
    every = max(FEWEST, len(tokens) // HELD_OUT)
    train = Dataset.from_list([dict(row) for number, row in enumerate(tokens) if number % every])
    return Texts(tokenizer, train, {"validation": Dataset.from_list([dict(row) for row in tokens[::every]])})


@torch.no_grad()
def missed(student: nn.Module, teacher: nn.Module, texts: Texts) -> list[float]:
    """Share of a teacher's hidden states that a student misses on the texts held out: squared error over variance.

    Returns: L + 1 numbers, the embedding output's first. 0: a perfect copy; 1: as far off as the mean over all tokens.
    """
    count = errors = sums = squares = 0
    rows = texts.evaluations["validation"]
    for start in range(0, len(rows), EVALUATION_BATCH):
        batch = texts.collate([rows[i] for i in range(start, min(start + EVALUATION_BATCH, len(rows)))])
        batch = {name: value.to(student.device) for name, value in batch.items()}
        real = batch["attention_mask"].bool()
        states = (model(**batch, output_hidden_states=True).hidden_states for model in (student, teacher))
        s, t = (torch.stack([layer[real] for layer in layers]).double() for layers in states)  # (L + 1, tokens, width)
        count += t.shape[1]
        errors += (s - t).square().sum((1, 2))
        sums += t.sum(1)
        squares += t.square().sum((1, 2))
    return (errors / (squares - sums.square().sum(1) / count)).tolist()


def distil(
    paths: Iterable[str | Path],
    output: str | Path,
    model: str = "minilm",
    precision: str = "W1A1",
    settings: StageSettings = SETTINGS,
    max_length: int = 128,
    dropout: float | None = 0.0,
    seed: int = 0,
    again: bool = False,
    report: Callable[[str], None] = print,
) -> dict:
    """Make `model` binary and train it on texts to have the hidden states that it had before.

    Args:
        paths: see `read_texts`. output: the folder; it ends up holding the encoder in `<precision>/`, an ordinary
            Hugging Face folder, which `Experiment(start=...)` takes. Called again it goes on where it stopped.
        model: as in `Experiment`. dropout: of the student in training; the model's own if None.
        settings: epochs or steps, batch and rates. again: train even if the folder holds the finished encoder.
        report: called with one line at a time about what happens.
    Returns: what is in `<precision>/stage.json`: precision, missed (see `missed`), steps, seconds, config, versions,
        machine.
    Errors: BitlabError as for `read_texts`, `load_model` and `binarize`, and for a folder of another training.
    """
    texts = read_texts(paths, load_tokenizer(model), max_length)
    with quiet():
        teacher = load_model(model, seed=seed)
    bits = BitConfig.from_precision(precision)
    student = binarize(copy.deepcopy(teacher), bits)  # refused before anything is written if it can't be
    config = {
        "model": Path(model).name,
        "precision": bits.precision,
        "settings": asdict(settings),
        "max_length": max_length,
        "dropout": dropout,
        "seed": seed,
        "texts": {"train": len(texts.train), "validation": len(texts.evaluations["validation"])},
        "tokens": sum(map(len, texts.train["input_ids"])),
        "data_digest": files.digest(texts.train),
        "model_digest": weights_digest(model),
    }
    main = processes().is_main_process
    with quiet(), files.claim(Path(output), config, again) if main else nullcontext():
        processes().wait_for_everyone()
        record = files.read_json(Path(output) / bits.precision / files.STAGE)
        if record is not None:
            report(f"{output} holds this encoder already (--again trains it again)")
            return record
        set_seed(seed)
        set_dropout(student, dropout)
        return _train(student, teacher, texts, settings, Path(output), config, report if main else lambda line: None)


def _train(student, teacher, texts: Texts, settings: StageSettings, output: Path, config: dict, report) -> dict:
    precision, training = config["precision"], output / f"{config['precision']}.training"
    options = {"seed": config["seed"], "title": precision, "report": report, "distillation": HIDDEN_STATES}
    log, steps, started = train_stage(student, [teacher], texts, settings, training, **options)
    record = {
        "precision": precision,
        "missed": [round(share, 4) for share in missed(student.eval(), teacher, texts)],
        "steps": steps,
        "seconds": round(time.monotonic() - started, 1),
        "config": config,
        "versions": environment.versions(),
        "machine": environment.machine(),
    }
    save_stage(output / precision, student, texts.tokenizer, record, log)
    if processes().is_main_process:
        shutil.rmtree(training, ignore_errors=True)
    return record


def start_from(student: PreTrainedModel, name: str, alpha: str = "rescale") -> PreTrainedModel:
    """Give a binary student the encoder of another binary model, in place; its pooler and its head stay.

    Args: name: folder or hub id of the other model. alpha: what becomes of its scales where it has another precision,
        see `set_precision`.
    Errors: BitlabError if the other model is not binary, is packed, or is not of the student's method and shape.
    """
    own = student.config.quantization_config
    with quiet():
        other = load_model(name)
    bits = getattr(other.config, "quantization_config", None)
    if not isinstance(bits, BitConfig):
        raise BitlabError(f"start {name!r} is not binary: give an encoder made by `bitlab distil`")
    if bits.method != own.method:
        raise BitlabError(f"start {name!r} is of method {bits.method}, this experiment of {own.method}")
    wanted = _without_pooler(student.base_model)
    state = _without_pooler(set_precision(other, own.precision, alpha))
    unlike = [key for key in {*state, *wanted} if _shape(state, key) != _shape(wanted, key)]
    if unlike:
        raise BitlabError(f"start {name!r} is of another shape than the student: see {min(unlike)}")
    student.base_model.load_state_dict(state, strict=False)
    return student


def _without_pooler(encoder: nn.Module) -> dict[str, Tensor]:
    """No hidden state depends on the pooler, so that general distillation teaches it nothing."""
    return {key: value for key, value in encoder.state_dict().items() if not key.startswith("pooler.")}


def _shape(state: dict[str, Tensor], key: str) -> torch.Size | None:
    return state[key].shape if key in state else None
