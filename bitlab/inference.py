"""Asking a trained model, and scoring it: float, binary and packed ones alike.

predict("runs/reviews/packed", ["a lovely film"])    [{"label": "good", "probability": 0.93, ...}]
evaluate("runs/rte/W1A1", "rte")                     {"score": 0.62, ..., "sentences_per_second": 410.0}
"""

import os
import time
from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from torch.special import expit
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitlab.config import bit_config
from bitlab.data.sources import features
from bitlab.data.tasks import SQUAD, Task, get_task
from bitlab.errors import BitlabError, check_choice, check_number
from bitlab.experiments.prepared import load_splits, prepare
from bitlab.experiments.schedule import FULL
from bitlab.files import quiet
from bitlab.heads import task_of
from bitlab.models import load_any, load_tokenizer

Texts = Sequence[str] | Sequence[tuple[str, str]]


def predict(
    model: str | os.PathLike | PreTrainedModel,
    texts: Texts,
    context: str | Sequence[str] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    batch_size: int = 32,
) -> list[dict]:
    """What a model says to texts, one dictionary a text, in their order.

    Args:
        model: a folder or a name as `load_any` takes, or a loaded model with its tokenizer.
        texts: texts or pairs; to a question answerer, questions.
        context: the paragraph or paragraphs that a question answerer reads.
    Returns:
        list: of a classifier `label`, `probability` and `probabilities` by label; of one with several labels `labels`
            (those above a half) and `probabilities`; of a regression `value`; of a question answerer `answer` and
            `probability`.
    Raises:
        BitlabError: for a model that answers nothing, and for texts that are no texts.
    """
    model, tokenizer = _loaded(model, tokenizer)
    task = task_of(model)
    texts = [texts] if isinstance(texts, str) else list(texts)
    check_number("batch_size", batch_size, at_least=1, whole=True)
    if (context is not None) != (task.kind == "span"):
        raise BitlabError("a context goes with a question answerer, and it with a context: give both, or neither")
    if not texts:
        return []
    if task.kind == "span":
        return _answers(model, tokenizer, texts, context, batch_size)
    limits = {"truncation": True, "max_length": tokenizer.model_max_length}
    rows = Dataset.from_dict(dict(tokenizer(*_columns(texts), **limits)))
    found = logits(model, rows, tokenizer, batch_size)
    return [_said(task, torch.from_numpy(row)) for row in found]


def evaluate(
    model: str | os.PathLike,
    task: str | Task,
    data: str | os.PathLike | DatasetDict | Dataset = "auto",
    batch_size: int = 32,
    split: str | None = None,
) -> dict:
    """Score any model on a task's dev split or splits, or on another: on "train", to see what it knows by heart.

    Args:
        model: a folder or a name as `load_any` takes; its labels are brought into the task's order.
        task: a name, or a `Task` of your own.
        data: where the task's data are, see `load_glue`; or the data: all splits, or the rows to score on.
        split: the only split to score on, in place of dev.
    Returns:
        dict: `task`, `split`, `model`, `precision`, `metrics`, `score` (their mean), `examples`, `seconds` (of the
            model alone, tokens to logits) and `sentences_per_second`.
    Raises:
        BitlabError: as `load_any` and `load_glue` do, for data without the split, and for a test split.
    """
    task = get_task(task)
    tokenizer = load_tokenizer(model)
    loaded = _on_its_device(load_any(model, task))
    if split:
        data = _split(task, data, split)
    if isinstance(data, Dataset):
        data = DatasetDict({task.eval_splits[0]: data})
    dev = prepare(task, data, tokenizer, train_examples=0)
    started = time.perf_counter()
    found = {name: logits(loaded, rows, dev.tokenizer, batch_size) for name, rows in dev.evaluations.items()}
    seconds, metrics = time.perf_counter() - started, dev.metrics(found)
    bits = bit_config(loaded)
    return {
        "task": task.name,
        "split": split,
        "model": os.path.basename(os.fspath(model)),
        "precision": bits.precision if bits else FULL,
        "score": dev.score(metrics),
        "metrics": metrics,
        "examples": dev.scored,
        "seconds": round(seconds, 3),
        "sentences_per_second": round(dev.scored / seconds, 1),
    }


def _split(task: Task, data: str | os.PathLike | DatasetDict | Dataset, split: str) -> Dataset:
    if isinstance(data, Dataset):
        raise BitlabError(f"these rows have no split {split!r}: name a task, or leave the split out")
    splits = load_splits(task, data)
    scored = [name for name in splits if not name.startswith("test")]  # test rows come without their labels
    check_choice(f"{task.title} split", split, scored)
    return splits[split]


@torch.inference_mode()
def logits(
    model: PreTrainedModel, rows: Dataset, tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """A model's logits on tokenized rows, in their order: one array (N, C), or of a question answerer two, (N, tokens).

    Rows of like length share a batch, so that little is padding; logits of padding are 0.
    """
    inputs = rows.select_columns([name for name in tokenizer.model_input_names if name in rows.column_names]).to_list()
    order = sorted(range(len(inputs)), key=lambda i: -len(inputs[i]["input_ids"]))
    found: tuple[np.ndarray, ...] = ()
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        with quiet():
            batch = tokenizer.pad([inputs[i] for i in places], padding_side="right", return_tensors="pt")
        batch = batch.to(model.device)
        output = model(**batch)
        parts = (output.logits,) if "logits" in output else (output.start_logits, output.end_logits)
        found = found or tuple(np.zeros((len(order), part.shape[1]), np.float32) for part in parts)
        for values, part in zip(found, parts, strict=True):
            values[places, : part.shape[1]] = part.float().cpu().numpy()
    return found if len(found) > 1 else found[0]


def _loaded(model, tokenizer) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if isinstance(model, PreTrainedModel):
        if tokenizer is None:
            raise BitlabError("a loaded model needs its tokenizer: give tokenizer=..., or the model's folder")
        return model.eval(), tokenizer
    return _on_its_device(load_any(model)), tokenizer or load_tokenizer(model)


def _on_its_device(model: PreTrainedModel) -> PreTrainedModel:
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _columns(texts: Texts) -> list[list[str]]:
    """One column of texts, or two of pairs."""
    if isinstance(texts[0], str):
        return [_checked(texts)]
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in texts):
        raise BitlabError("some texts are no pairs, others are: give texts, or pairs of texts")
    return [_checked(column) for column in zip(*texts, strict=True)]


def _checked(texts: Sequence) -> list[str]:
    wrong = [text for text in texts if not isinstance(text, str)]
    if wrong:
        raise BitlabError(f"{wrong[0]!r:.60} is no text: give texts, or pairs of texts")
    return list(texts)


def _said(task: Task, row: torch.Tensor) -> dict:
    if task.kind == "regression":
        return {"value": row[0].item()}
    several = task.kind == "multi_label"
    probabilities = dict(zip(task.label_names, (expit(row) if several else row.softmax(0)).tolist(), strict=True))
    if several:
        return {"labels": [name for name, p in probabilities.items() if p > 0.5], "probabilities": probabilities}
    label = max(probabilities, key=probabilities.get)
    return {"label": label, "probability": probabilities[label], "probabilities": probabilities}


def _answers(model, tokenizer, questions: Sequence[str], context, batch_size: int) -> list[dict]:
    contexts = [context] * len(questions) if isinstance(context, str) else list(context)
    if len(contexts) != len(questions):
        raise BitlabError(f"{len(questions)} questions and {len(contexts)} contexts: give one for all, or one for each")
    columns = {"id": [str(i) for i in range(len(questions))], "title": [""] * len(questions)}
    columns |= {"question": _checked(questions), "context": _checked(contexts)}
    columns["answers"] = [{"text": [""], "answer_start": [0]}] * len(questions)
    rows = Dataset.from_dict(columns, features=features(SQUAD))
    asked = prepare(SQUAD, DatasetDict(validation=rows), tokenizer, train_examples=0)
    ranked = asked.answers({"": logits(model, asked.windows.tokens, asked.tokenizer, batch_size)})
    return [{"answer": best["text"], "probability": best["probability"]} for best, *_ in ranked.values()]
