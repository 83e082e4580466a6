"""Data of your own: a CSV, TSV, JSON lines or parquet file, a folder in the hub's layout, or a data set of the hub.

`load_own` finds out what kind of task they are and gives what the GLUE tasks have: a `Task`, and splits with the
hub's column types. A row that is wrong is an error with file, row and column; it is never left out.
"""

import json
import math
import random
import re
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path

from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from bitlab.data.columns import Rows, read_columns
from bitlab.data.settings import OwnData
from bitlab.data.sources import features
from bitlab.data.tasks import SQUAD, TASKS, Task
from bitlab.errors import BitlabError
from bitlab.files import reading

MOST_CLASSES = 100  # a column with more different values is no class, unless its reader says so
FEWEST_ROWS = 10
UNKNOWN_WORDS = 0.1  # share of the words
LOOKED_AT = 1000  # rows, for unknown words
NO_CLASSES = ("nan", "inf", "-inf")  # what programs write where there is no number
FALSE_OR_TRUE = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


def load_own(
    path: str | PathLike,
    text: str | Sequence[str],
    label: str | Sequence[str],
    dev: str | PathLike | None = None,
    dev_share: float = 0.1,
    kind: str | None = None,
    seed: int = 0,
    label_names: Sequence[str] | None = None,
) -> tuple[Task, DatasetDict]:
    """Your own data as a task, with the splits `train` and `validation`.

    Args:
        path: a .csv, .tsv, .jsonl or .parquet file, a folder in the hub's layout, or a data set id of the hub.
        text: the text's column, or two for pairs; "premise,hypothesis" is two as well.
        label: the label's column; several columns of zeros and ones are several labels at once.
        dev: a file like `path` to evaluate on; None: the data's own validation split, or else a share of its rows.
        dev_share: that share, drawn by `seed`.
        kind: "single_label", "multi_label" or "regression". None: several columns or lists are several labels, numbers
            that are not whole are a regression, all else are classes.
        label_names: the classes in the order of the logits; None: all that occur in the training rows, in order.
    Returns:
        tuple: the task, named after the file, and its splits as `load_glue` gives them.
    Raises:
        BitlabError: one line, for a file that can't be read and for a wrong row, with file, row and column.
    """
    texts, labels = _names(text), _names(label)
    OwnData(text, label, dev, dev_share, kind)  # holds them to their bounds
    if not {*texts}.isdisjoint({*labels, "label", "idx"}) or not all((*texts, *labels)):
        raise BitlabError(f"text {','.join(texts)!r} and label {','.join(labels)!r}: give different, named columns")
    splits = read_columns(path, (*texts, *labels))
    if dev is not None:
        splits["validation"] = read_columns(dev, (*texts, *labels))["train"]
    train = splits["train"]
    kind = kind or _kind(train, labels)
    names = None if kind == "regression" else list(label_names or ()) or _class_names(train, labels, kind)
    task = Task(_task_name(path), kind, texts, names)
    found = {split: as_task(rows, task, labels) for split, rows in splits.items() if split in ("train", "validation")}
    if "validation" not in found:
        found |= _divided(found["train"], dev_share, seed, train.where)
    return task, DatasetDict(found)


def read_own(path: str | PathLike, task: Task, label: str | Sequence[str]) -> Dataset:
    """All rows of a file as examples of a known task, to evaluate a trained model on. Errors as for `load_own`."""
    labels = _names(label)
    splits = read_columns(path, (*task.text_columns, *labels))
    return as_task(splits.get("validation") or splits["train"], task, labels)


def check_words(task: Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer to which more than a tenth of the words are unknown: its model reads another language.

    Raises:
        BitlabError: with the share, and with advice.
    """
    if tokenizer.unk_token_id is None:
        return
    part = rows[:LOOKED_AT]
    words = [word for column in task.text_columns for text in part[column] for word in text.split()]
    pieces = dict(zip(words, tokenizer(words, add_special_tokens=False)["input_ids"], strict=True)) if words else {}
    unknown = sum(tokenizer.unk_token_id in pieces[word] for word in words)
    if unknown > UNKNOWN_WORDS * len(words):
        raise BitlabError(
            f"{unknown / len(words):.0%} of the words of {task.title} are unknown to this model's tokenizer: give a "
            f"model of their language, 'minilm' for English (the model 'sample' knows the sample tasks' words alone)"
        )


def _names(columns: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(columns.split(",")) if isinstance(columns, str) else tuple(columns)


def _task_name(path: str | PathLike) -> str:
    name = re.sub(r"\W+", "-", Path(path).stem).strip("-").lower() or "own"
    return f"own-{name}" if name in TASKS or name == SQUAD.name else name


# -------------------------------------------------------------------------------------------------- labels


def _kind(rows: Rows, labels: Sequence[str]) -> str:
    values = rows.columns[labels[0]]
    if len(labels) > 1 or any(isinstance(value, list) for value in values):
        return "multi_label"
    numbers = [number for number in map(_number, values) if number is not None]
    if len(numbers) > len(values) / 2 and any(number % 1 for number in numbers):
        return "regression"  # what is no number among so many is wrong in its row
    return "single_label"


def _number(value) -> float | None:
    """A finite number, also written as text; None for anything else."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _class_names(train: Rows, labels: Sequence[str], kind: str) -> list[str]:
    """All classes, in the order that the file has for them, or else of numbers or of the alphabet."""
    if len(labels) > 1:
        return list(labels)
    if train.names:
        return train.names
    found = {name for _, names in _classes(train, labels[0], kind) for name in names}
    if len(found) > MOST_CLASSES:
        raise BitlabError(
            f"{train.where}: column {labels[0]!r} has {len(found):,} different values, too many for classes: "
            f"is it the right column? (numbers to learn as numbers: kind 'regression')"
        )
    if len(found) < 2 and kind == "single_label":
        raise BitlabError(f"{train.where}: column {labels[0]!r} has one class alone, {min(found)!r}: nothing to learn")
    return sorted(found, key=lambda name: (_number(name) is None, _number(name) or 0.0, name))


def _classes(rows: Rows, column: str, kind: str) -> Iterator[tuple[int, list[str]]]:
    """(row, names of its classes), with every row checked."""
    first = None
    for row, value in enumerate(rows.columns[column]):
        if kind == "multi_label":
            values = _several(value)
            if values is None:
                raise rows.wrong(row, column, f"{value!r:.60}, expected a list of classes")
        else:
            values = [value]
        for each in values:
            problem = "is empty" if _is_empty(each) else f"is {each!r:.60}"
            if not isinstance(each, str | int | float) or _is_empty(each) or str(each).strip().lower() in NO_CLASSES:
                raise rows.wrong(row, column, f"{problem}, expected a class")
            first = each if first is None else first
            if isinstance(each, str) is not isinstance(first, str):
                raise rows.wrong(row, column, f"{problem}, others like {first!r:.60}: write all as text, or as numbers")
        yield row, [_class_name(rows.names, each) for each in values]


def _is_empty(value) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _class_name(names: list[str] | None, value) -> str:
    is_place = names is not None and isinstance(value, int) and 0 <= value < len(names)
    value = int(value) if isinstance(value, float) and value.is_integer() else value
    return names[value] if is_place else str(value).strip()


def _several(value) -> list | None:
    """A list of classes, as a list, or in a CSV file as a JSON list or parted by commas."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.lstrip().startswith("[") else [v for v in value.split(",") if v.strip()]
        except ValueError:
            return None
    return value if isinstance(value, list) else None


def as_task(rows: Rows, task: Task, labels: Sequence[str]) -> Dataset:
    """Rows as a task's examples, each value checked."""
    columns = {column: _texts(rows, column) for column in task.text_columns}
    columns |= {"label": _labels(rows, task, labels), "idx": list(range(len(rows)))}
    with reading(rows.where, "write it again as UTF-8"):  # a lone surrogate is JSON, and no text
        return Dataset.from_dict(columns, features=features(task))


def _texts(rows: Rows, column: str) -> list[str]:
    for row, value in enumerate(rows.columns[column]):
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            problem = "is empty" if _is_empty(value) else f"is {value!r:.60}"
            raise rows.wrong(row, column, f"{problem}, expected text")
    return rows.columns[column]


def _labels(rows: Rows, task: Task, labels: Sequence[str]) -> list:
    if task.kind == "regression":
        numbers = [_number(value) for value in rows.columns[labels[0]]]
        for row, number in enumerate(numbers):
            if number is None:
                raise rows.wrong(row, labels[0], f"{rows.columns[labels[0]][row]!r:.60}, expected a number")
        return numbers
    if len(labels) > 1:
        return [[i for i, column in enumerate(labels) if _is_true(rows, row, column)] for row in range(len(rows))]
    found = []
    for row, names in _classes(rows, labels[0], task.kind):
        unknown = [name for name in names if name not in task.label_names]
        if unknown:
            known = ", ".join(task.label_names)
            raise rows.wrong(row, labels[0], f"{unknown[0]!r:.60}, expected one of {known:.200}")
        numbers = [task.label_names.index(name) for name in names]
        found.append(numbers if task.kind == "multi_label" else numbers[0])
    return found


def _is_true(rows: Rows, row: int, column: str) -> int:
    value = str(rows.columns[column][row]).strip().lower()
    if value not in FALSE_OR_TRUE:
        raise rows.wrong(row, column, f"{value!r:.60}, expected 0 or 1")
    return FALSE_OR_TRUE[value]


def _divided(rows: Dataset, share: float, seed: int, where: str) -> dict[str, Dataset]:
    if len(rows) < FEWEST_ROWS:
        raise BitlabError(f"{where} has {len(rows)} rows, too few to hold some out: give {FEWEST_ROWS}, or a dev file")
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    count = max(1, round(share * len(rows)))
    return {"train": rows.select(sorted(order[count:])), "validation": rows.select(sorted(order[:count]))}
