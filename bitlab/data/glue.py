"""The eight GLUE tasks, with the hub's columns and label order, from wherever they are.

`load_glue(task, source)` reads the original files, the hub, a folder in the hub's parquet layout, or the sample
generator. A row that is wrong is an error with file and line; it never becomes class 0.
"""

import math
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from datasets import Dataset, DatasetDict, concatenate_datasets
from datasets.table import table_cast
from transformers import PreTrainedTokenizerBase

from bitlab.data.sample import sample_glue
from bitlab.data.sources import features, load_hub, logger, resolve_source
from bitlab.data.tasks import TASKS, Task, get_glue_task
from bitlab.errors import BitlabError, either
from bitlab.files import reading

HUB_ID = "nyu-mll/glue"
ENCODE_CHUNK = 10_000  # rows tokenized at once: bounds the memory that Python lists take
NO_LABEL = -1  # the hub's mark for the rows of a test split, whose labels are not published


@dataclass(frozen=True)
class Layout:
    """How an original file names its columns; `words`: labels are written out, not as 0 and 1."""

    text: tuple[str, ...]
    label: str
    words: bool = False


LAYOUTS = {
    "cola": Layout(("sentence",), "label"),  # of its files only test.tsv has a header
    "sst2": Layout(("sentence",), "label"),
    "mrpc": Layout(("#1 String", "#2 String"), "Quality"),
    "stsb": Layout(("sentence1", "sentence2"), "score"),
    "qqp": Layout(("question1", "question2"), "is_duplicate"),
    "mnli": Layout(("sentence1", "sentence2"), "gold_label", words=True),
    "qnli": Layout(("question", "sentence"), "label", words=True),
    "rte": Layout(("sentence1", "sentence2"), "label", words=True),
}
COLA_COLUMNS = ["source", "label", "note", "sentence"]


def layout(task: Task) -> Layout:
    """How a task's file is written; those of your own tasks have its columns, `label`, and labels as words."""
    return LAYOUTS.get(task.name) or Layout(task.text_columns, "label", words=True)


def file_names(task: Task) -> dict[str, str]:
    """The original file of each split: {"train": "train.tsv", "validation_matched": "dev_matched.tsv", ...}."""
    tests = [split.replace("validation", "test") for split in task.eval_splits]
    return {split: f"{split.replace('validation', 'dev')}.tsv" for split in ("train", *task.eval_splits, *tests)}


# QQP's complete train.tsv (about 364,000 rows) has a handful of rows that are cut or have an empty question; its
# known readers leave them out, the hub's too. Only a file of that size may have any, and each is reported.
QQP_COMPLETE, QQP_BROKEN = 300_000, 20


def load_glue(task: str | Task, source: str | PathLike | DatasetDict = "auto") -> DatasetDict:
    """A GLUE task, or one of your own, as a DatasetDict with the hub's column names, `label` and `idx`.

    Args:
        task: "cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli" or "rte"; or a `Task`.
        source: "sample", "hub", "auto" (see `bitlab.data.sources.resolve_source`), or a folder: the GLUE root that
            holds `RTE/`, the folder above it, the task's folder itself, or a copy of the hub's parquet files; or
            a DatasetDict, which is checked.
    Returns:
        DatasetDict: `label` is a ClassLabel in the hub's order, a list of them for several at once, or a float32 (for
        STS-B between 0 and 5), and -1 in test splits; `idx` is the row's number in its file. A split whose file is
        absent is absent from the result.
    Raises:
        BitlabError: one line, for a missing file or a wrong row (with its file, line and what was expected).
    """
    task = get_glue_task(task)
    if isinstance(source, DatasetDict):
        return check_splits(source, task, f"the data of {task.name}")
    source, why = resolve_source(source)
    logger.info(why)
    if source in ("sample", "hub") and task.name not in TASKS:
        raise BitlabError(f"{task.name!r} is no task of {source}: give a folder of its files")
    if source == "sample":
        return sample_glue(task)
    if source == "hub":
        return check_splits(load_hub(HUB_ID, task.name), task, HUB_ID)
    return _from_folder(task, Path(source))


def _from_folder(task: Task, root: Path) -> DatasetDict:
    places = [root / task.folder, root / "glue" / task.folder, root / task.name, root / "glue" / task.name, root]
    names = file_names(task)
    for place in places:
        found = {split: place / name for split, name in names.items() if (place / name).is_file()}
        if any(not split.startswith("test") for split in found):
            return DatasetDict({split: _read_tsv(task, path) for split, path in found.items()})
        if any(place.glob("train*.parquet")):
            return _from_parquet(task, place)
    wanted = either(name for split, name in names.items() if not split.startswith("test"))
    raise BitlabError(f"no {task.title} files in {str(root)!r}: expected {task.folder}/{wanted} there.")


def _from_parquet(task: Task, folder: Path) -> DatasetDict:
    """The hub's layout: train-00000-of-00001.parquet, ..., or train.parquet."""
    found = DatasetDict()
    for split in file_names(task):
        parts = []
        for path in sorted(folder.glob(f"{split}.parquet")) + sorted(folder.glob(f"{split}-*.parquet")):
            with reading(path, "copy it again"):
                parts.append(Dataset(parquet.read_table(path)))
        if parts:
            with reading(folder, f"give files of split {split!r} with the same columns"):
                found[split] = concatenate_datasets(parts)
    return check_splits(found, task, folder)


def check_splits(splits: DatasetDict, task: Task, where) -> DatasetDict:
    """Data with the task's columns and types, checked row by row: a silent mix-up is the worst error.

    Raises:
        BitlabError: naming `where`, split, row and column of what is absent, of another type or out of range.
    """
    wanted = features(task)
    checked = {}
    for split, rows in splits.items():
        place = f"{where}, split {split!r}"
        if "idx" not in rows.features:
            rows = rows.add_column("idx", np.arange(len(rows), dtype=np.int32))
        missing = [column for column in wanted if column not in rows.features]
        if missing:
            raise BitlabError(f"{place}: no column {missing[0]!r}, which {task.name} needs.")
        names = getattr(rows.features["label"], "names", None)
        if names is not None and tuple(names) != task.label_names:
            raise BitlabError(f"{place}: labels are {names}, expected {list(task.label_names or ())}.")
        table = rows.with_format("arrow")[:]
        for column in task.text_columns:
            _check_column(table, column, place, ("string", "large_string"), "text")
        _check_labels(table, task, place, is_test=split.startswith("test"))
        with reading(place, f"its columns should be {', '.join(wanted)}"):
            checked[split] = Dataset(table_cast(table.select(list(wanted)), wanted.arrow_schema))
    return DatasetDict(checked)


def _check_column(table: pa.Table, column: str, place: str, types: tuple[str, ...], expected: str) -> None:
    values = table.column(column)
    if not str(values.type).startswith(types):
        raise BitlabError(f"{place}: column {column!r} holds {values.type}, expected {expected}.")
    if values.null_count:
        row = values.is_null().to_pylist().index(True)
        raise BitlabError(f"{place}, row {row}: column {column!r} is empty, expected {expected}.")


def _check_labels(table: pa.Table, task: Task, place: str, is_test: bool) -> None:
    if task.has_classes:
        low, high, expected = 0, task.num_labels - 1, f"a class from 0 to {task.num_labels - 1}"
        types = ("list", "large_list") if task.kind == "multi_label" else ("int", "uint")
    else:
        low, high = task.label_range or (-math.inf, math.inf)
        types, expected = ("int", "uint", "float", "double"), f"a number from {low:g} to {high:g}"
    _check_column(table, "label", place, types, expected)
    for row, label in enumerate(table.column("label").to_pylist()):
        for value in label if task.kind == "multi_label" else [label]:
            fits = value is not None and math.isfinite(value) and low <= value <= high
            if not fits and not (is_test and value == NO_LABEL):
                raise BitlabError(f"{place}, row {row}: label {value!r}, expected {expected}.")


def _read_tsv(task: Task, path: Path) -> Dataset:
    """One original file as a Dataset. See the module's note on wrong rows."""
    lines = _lines(path)
    header, first = _header(task, path, lines)
    columns_of = layout(task)
    text_at = [header.index(column) for column in columns_of.text]
    label_at = header.index(columns_of.label) if columns_of.label in header else None
    columns: dict[str, list] = {column: [] for column in (*task.text_columns, "label", "idx")}
    broken = []
    for number, line in enumerate(lines[first:], first + 1):
        where, fields = f"{path}, line {number}", line.split("\t")
        if problem := _broken(fields, header, text_at):
            broken.append(f"{where}: {problem}")
            continue
        for column, at in zip(task.text_columns, text_at, strict=True):
            columns[column].append(fields[at])
        columns["label"].append(NO_LABEL if label_at is None else _label(task, where, fields[label_at]))
        columns["idx"].append(number - first - 1)
    if broken and (task.name != "qqp" or len(lines) < QQP_COMPLETE or len(broken) > QQP_BROKEN):
        raise BitlabError(broken[0])
    for problem in broken:
        logger.warning("left out: %s", problem)
    if not columns["idx"]:
        raise BitlabError(f"{path} has no examples, only a header.")
    return Dataset.from_dict(columns, features=features(task))


def _lines(path: Path) -> list[str]:
    """The file's lines, cut at newlines only: sentences may hold other Unicode line breaks."""
    with reading(path, "give a file of UTF-8 text"):
        content = path.read_bytes().rstrip(b"\r\n")
    try:
        lines = [line.rstrip("\r") for line in content.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        before = error.object[: error.start].split(b"\n")
        raise BitlabError(f"{path}, line {len(before)}: not UTF-8 text (byte {len(before[-1]) + 1}).") from error
    if lines == [""]:
        raise BitlabError(f"{path} is empty: expected one example a line.")
    return lines


def _header(task: Task, path: Path, lines: list[str]) -> tuple[list[str], int]:
    """(column names, index of the first data line). Raises when the file is another task's."""
    names = lines[0].split("\t")
    looks_like = _task_of(names)
    is_test = path.name.startswith("test")
    own = layout(task)
    needed = set(own.text) | (set() if is_test else {own.label})
    if task.name == "cola" and not is_test and looks_like in (None, "cola"):
        return COLA_COLUMNS, 0
    if needed <= set(names) and (is_test or looks_like == task.name or task.name not in TASKS):
        return names, 1
    guess = f" This looks like {TASKS[looks_like].title}." if looks_like not in (None, task.name) else ""
    columns = "4 columns, no header" if task.name == "cola" else f"a header with {', '.join(map(repr, sorted(needed)))}"
    raise BitlabError(f"{path}, line 1: no {task.title} file, expected {columns}.{guess}")


def _task_of(names: list[str]) -> str | None:
    """The task whose file starts with these columns, if any: the one with most columns found."""
    if len(names) == len(COLA_COLUMNS) and names[1] in ("0", "1"):
        return "cola"
    fits = [name for name, x in LAYOUTS.items() if name != "cola" and {*x.text, x.label} <= set(names)]
    return max(fits, key=lambda name: len(LAYOUTS[name].text), default=None)


def _broken(fields: list[str], header: list[str], text_at: list[int]) -> str | None:
    """What is wrong with a row of too few or too many columns, or without text; None if nothing is."""
    if len(fields) != len(header):
        return f"expected {len(header)} tab-separated columns ({', '.join(header)}), found {len(fields)}."
    empty = [header[i] for i in text_at if not fields[i].strip()]
    return f"column {empty[0]!r} is empty, expected text." if empty else None


def _label(task: Task, where: str, text: str) -> int | float | list[int]:
    if task.kind == "regression":
        low, high = task.label_range or (-math.inf, math.inf)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and low <= value <= high):
            bounds = f" from {low:g} to {high:g}" if task.label_range else ""
            raise BitlabError(f"{where}: label {text!r}, expected a number{bounds}.")
        return value
    names = task.label_names if layout(task).words else ("0", "1")
    several = task.kind == "multi_label"  # separated by commas; there may be none
    words = [word for word in text.split(",") if word] if several else [text]
    if not set(words) <= set(names):
        raise BitlabError(f"{where}: label {text!r}, expected {' or '.join(map(repr, names))}.")
    found = [names.index(word) for word in words]
    return found if several else found[0]


def encode(rows: Dataset, task: str | Task, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Tokenize a split: `input_ids`, `attention_mask`, where the tokenizer gives them `token_type_ids`, and `labels`.

    Examples are cut at the task's `max_length` or what the model reads, and not padded: the trainer pads a batch.
    Several labels at once become a row of zeros and ones. Order is kept. Nothing is cached on disk, so edited data or
    another tokenizer can't meet stale files.
    """
    task = get_glue_task(task)
    length = min(task.max_length, tokenizer.model_max_length)
    parts = []
    for start in range(0, len(rows), ENCODE_CHUNK):
        chunk = rows[start : start + ENCODE_CHUNK]
        texts = [list(chunk[column]) for column in task.text_columns]
        encoded = tokenizer(*texts, truncation=True, max_length=length)
        labels = chunk["label"]
        if task.kind == "multi_label":
            labels = [[float(number in row) for number in range(task.num_labels)] for row in labels]
        parts.append(Dataset.from_dict({**encoded, "labels": labels}))
    return concatenate_datasets(parts)
