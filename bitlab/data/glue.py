"""The eight GLUE tasks, with the hub's columns and label order, from wherever they are.

`load_glue(task, source)` reads the original files, the hub, a folder in the hub's parquet layout, or the sample
generator. A row that is wrong is an error with file and line; it never becomes class 0.
"""

import math
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset

from bitlab.data.sample import sample_glue
from bitlab.data.schema import glue_features
from bitlab.data.sources import announce, logger
from bitlab.data.tasks import TASKS, Task, get_glue_task
from bitlab.errors import BitlabError

HUB_ID = "nyu-mll/glue"
FILES = {"train": ("train.tsv",), "validation": ("dev.tsv",), "test": ("test.tsv",)}
MNLI_FILES = {
    "train": ("train.tsv",),
    "validation_matched": ("dev_matched.tsv",),
    "validation_mismatched": ("dev_mismatched.tsv",),
    "test_matched": ("test_matched.tsv",),
    "test_mismatched": ("test_mismatched.tsv",),
}
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

# QQP's complete train.tsv (about 364,000 rows) has a handful of rows that are cut or have an empty question; its
# known readers leave them out, the hub's too. Only a file of that size may have any, and each is reported.
QQP_COMPLETE, QQP_BROKEN = 300_000, 20


def load_glue(task: str | Task, source: str | PathLike = "auto") -> DatasetDict:
    """A GLUE task as a DatasetDict with the hub's column names, `label` and `idx`.

    task    "cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli" or "rte"
    source  "sample", "hub", "auto" (see `bitlab.data.sources.resolve_source`), or a folder: the GLUE root that
            holds `RTE/`, the folder above it, the task's folder itself, or a copy of the hub's parquet files.

    `label` is a ClassLabel in the hub's order, for STS-B a float32 between 0 and 5, and -1 in test splits;
    `idx` is the row's number in its file. A split whose file is absent is absent from the result.
    Raises BitlabError, one line, for a missing file or a wrong row (with its file, line and what was expected).
    """
    task = get_glue_task(task)
    source = announce(source)
    if source == "sample":
        return sample_glue(task)
    if source == "hub":
        return _from_hub(task)
    return _from_folder(task, Path(source))


def _from_hub(task: Task) -> DatasetDict:
    try:
        splits = load_dataset(HUB_ID, task.name)
    except Exception as error:  # the hub's client raises a dozen kinds, and each may span many lines
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BitlabError(
            f"could not load {HUB_ID} {task.name!r} from the hub ({reason}): "
            "check the network, or use the data source 'sample' or a folder."
        ) from error
    return _checked(splits, task, HUB_ID)


def _from_folder(task: Task, root: Path) -> DatasetDict:
    places = [
        root / task.folder,
        root / "glue" / task.folder,
        root / task.name,
        root / "glue" / task.name,
        root,
    ]
    files = MNLI_FILES if task.name == "mnli" else FILES
    for place in places:
        found = {split: place / name for split, (name,) in files.items() if (place / name).is_file()}
        if any(not split.startswith("test") for split in found):
            return DatasetDict({split: _read_tsv(task, path) for split, path in found.items()})
        if place.is_dir() and any(place.glob("train*.parquet")):
            return _from_parquet(task, place)
    wanted = " or ".join(name for split, (name,) in files.items() if not split.startswith("test"))
    raise BitlabError(f"no {task.title} files in {str(root)!r}: expected {task.folder}/{wanted} there.")


def _from_parquet(task: Task, folder: Path) -> DatasetDict:
    import pyarrow.parquet as parquet

    splits: dict[str, list[Dataset]] = {}
    for path in sorted(folder.glob("*.parquet")):
        splits.setdefault(path.name.split("-")[0], []).append(Dataset(parquet.read_table(path)))
    return _checked(DatasetDict({s: concatenate_datasets(parts) for s, parts in splits.items()}), task, folder)


def _checked(splits: DatasetDict, task: Task, where) -> DatasetDict:
    """Refuse data whose columns or label order are not the task's: a silent mix-up is the worst error."""
    wanted = glue_features(task)
    for split, rows in splits.items():
        missing = [column for column in wanted if column not in rows.features]
        if missing:
            raise BitlabError(f"{where}, split {split!r}: no column {missing[0]!r}, which {task.name} needs.")
        names = getattr(rows.features["label"], "names", None)
        if names is not None and tuple(names) != task.label_names:
            raise BitlabError(f"{where}, split {split!r}: labels are {names}, expected {list(task.label_names or ())}.")
    return splits.select_columns(list(wanted)).cast(wanted)


def _read_tsv(task: Task, path: Path) -> Dataset:
    """One original file as a Dataset. See the module's note on wrong rows."""
    lines = _lines(path)
    header, first = _header(task, path, lines)
    layout = LAYOUTS[task.name]
    text_at = [header.index(column) for column in layout.text]
    label_at = header.index(layout.label) if layout.label in header else None
    columns: dict[str, list] = {column: [] for column in (*task.text_columns, "label", "idx")}
    broken: list[BitlabError] = []
    for number, line in enumerate(lines[first:], first + 1):
        try:
            texts, label = _row(task, f"{path}, line {number}", line.split("\t"), header, text_at, label_at)
        except _CutRow as error:
            broken.append(error)
            continue
        for column, text in zip(task.text_columns, texts, strict=True):
            columns[column].append(text)
        columns["label"].append(label)
        columns["idx"].append(number - first - 1)
    _judge_broken(task, broken, len(lines))
    if not columns["idx"]:
        raise BitlabError(f"{path} has no examples, only a header.")
    return Dataset.from_dict(columns, features=glue_features(task))


def _lines(path: Path) -> list[str]:
    """The file's lines, cut at newlines only: sentences may hold other Unicode line breaks."""
    lines = []
    for number, raw in enumerate(path.read_bytes().rstrip(b"\r\n").split(b"\n"), 1):
        try:
            lines.append(raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r"))
        except UnicodeDecodeError as error:
            raise BitlabError(f"{path}, line {number}: not UTF-8 text (byte {error.start + 1}).") from error
    if lines == [""]:
        raise BitlabError(f"{path} is empty: expected one example a line.")
    return lines


def _header(task: Task, path: Path, lines: list[str]) -> tuple[list[str], int]:
    """(column names, index of the first data line). Raises when the file is another task's."""
    names = lines[0].split("\t")
    looks_like = _task_of(names)
    is_test = path.name.startswith("test")
    layout = LAYOUTS[task.name]
    needed = set(layout.text) | (set() if is_test else {layout.label})
    if task.name == "cola" and not is_test and looks_like in (None, "cola"):
        return COLA_COLUMNS, 0
    if needed <= set(names) and (is_test or looks_like == task.name):
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


class _CutRow(BitlabError):
    """A row with too few or too many columns, or without text."""


def _row(
    task: Task, where: str, fields: list[str], header: list[str], text_at: list[int], label_at: int | None
) -> tuple[list[str], int | float]:
    if len(fields) != len(header):
        raise _CutRow(
            f"{where}: expected {len(header)} tab-separated columns ({', '.join(header)}), found {len(fields)}."
        )
    texts = [fields[i] for i in text_at]
    for i, text in zip(text_at, texts, strict=True):
        if not text.strip():
            raise _CutRow(f"{where}: column {header[i]!r} is empty, expected text.")
    return texts, NO_LABEL if label_at is None else _label(task, where, fields[label_at])


def _label(task: Task, where: str, text: str) -> int | float:
    if task.is_regression:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value <= 5:
            raise BitlabError(f"{where}: label {text!r}, expected a number from 0 to 5.")
        return value
    names = task.label_names if LAYOUTS[task.name].words else ("0", "1")
    if text not in names:
        raise BitlabError(f"{where}: label {text!r}, expected {' or '.join(map(repr, names))}.")
    return names.index(text)


def _judge_broken(task: Task, broken: list[_CutRow], lines: int) -> None:
    if not broken:
        return
    if task.name != "qqp" or lines < QQP_COMPLETE or len(broken) > QQP_BROKEN:
        raise broken[0]
    for error in broken:
        logger.warning("left out: %s", error)


def encode(rows: Dataset | DatasetDict, task: str | Task, tokenizer, max_length: int | None = None):
    """Tokenize a split, or every split of a DatasetDict.

    Returns the same kind, with `input_ids`, `attention_mask`, where the tokenizer gives them `token_type_ids`,
    and `labels`. Examples are cut at `max_length` tokens (None: the task's, or what the model reads) and not padded:
    the trainer pads a batch. Order is kept. Nothing is cached on disk, so edited data or another tokenizer can't meet
    stale files.
    """
    task = get_glue_task(task)
    if isinstance(rows, DatasetDict):
        return DatasetDict({split: encode(part, task, tokenizer, max_length) for split, part in rows.items()})
    length = min(task.max_length, tokenizer.model_max_length) if max_length is None else max_length
    parts = []
    for start in range(0, len(rows), ENCODE_CHUNK):
        chunk = rows[start : start + ENCODE_CHUNK]
        texts = [list(chunk[column]) for column in task.text_columns]
        encoded = tokenizer(*texts, truncation=True, max_length=length)
        parts.append(Dataset.from_dict({**encoded, "labels": chunk["label"]}))
    return concatenate_datasets(parts)
