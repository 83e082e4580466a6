"""TinyBERT's data augmentation: a training set with new sentences, made by replacing words of its own.

For each sentence, N tries; in each, every word that is no stop word is replaced with probability 0.4 by one of its (up
to 15) candidates. Candidates of a word that is one piece of the masked language model's vocabulary are what the model
predicts in its place, of other words the nearest by word vectors; without such a model, word vectors serve for all.
Labels are kept: in distillation the teacher gives the new rows its own.

Source: TinyBERT (Jiao et al., 2019, arXiv 1909.10351), section 3.2 and algorithm 1; N per task as BiT takes it.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from os import PathLike
from pathlib import Path

import numpy as np
from datasets import Dataset

from bitlab import files
from bitlab.data.candidates import MaskedLM, read_vectors, replaceable
from bitlab.data.glue import layout, load_glue
from bitlab.data.rewriting import Job, Settings, make_parts, read_parts
from bitlab.data.tasks import Task, get_glue_task
from bitlab.errors import BitlabError

TRIES = {"cola": 30, "mrpc": 30, "rte": 30, "stsb": 30, "sst2": 20, "qnli": 20}  # BiT leaves MNLI and QQP as they are
TABLE, RECORD, PARTS = "train.tsv", "augment.json", "parts"
PROGRAM = 1  # one more whenever the same inputs make another table


def settings_for(task: Task, tries: int | None = None, **options) -> Settings:
    """The settings of a task, with its own number of tries unless one is given."""
    if tries is None and task.name not in TRIES:
        raise BitlabError(
            f"{task.title} is large enough and not augmented by default: give --tries to do it all the same"
        )
    return Settings(TRIES[task.name] if tries is None else tries, **options)


def augment(
    task: str | Task,
    source: str | PathLike,
    vectors: str | PathLike,
    settings: Settings | None = None,
    masked_lm: Callable[[], tuple] | None = None,
    processes: int = 1,
    output: str | PathLike | None = None,
    report: Callable[[str], None] = print,
) -> tuple[Path, dict]:
    """Augment a GLUE task's training set, go on with an interrupted augmentation, or find it done.

    Args:
        source: as for `load_glue`.
        vectors: a GloVe text file.
        settings: None for the task's own.
        masked_lm: called for (tokenizer, model), in each process: `partial(load_masked_lm, name)` of `bitlab.models`.
            None: candidates come from the word vectors alone.
        processes: the table does not depend on it.
        output: a folder, `runs/augment-<task>-<fingerprint>` if None; the fingerprint is of training set, vectors,
            model, settings and program, so other inputs go elsewhere.
        report: called with one line at a time about what happens.
    Returns:
        tuple: folder and record. `load_glue(task, folder)` reads the table, `<TASK>/train.tsv`: the original rows,
            then the new ones, with the number of the row they come from in the first column; the record lies beside
            it. Rows whose texts are there already are dropped.
    Raises:
        BitlabError: for bad inputs (nothing is written then), and for a folder that holds anything else.
    """
    task = get_glue_task(task)
    settings = settings or settings_for(task)
    if processes < 1:
        raise BitlabError(f"processes is {processes}: give a whole number above 0")
    rows, labels = _training_set(task, source)
    nearest = read_vectors(vectors)
    model = MaskedLM(*masked_lm()) if masked_lm else None
    config = {
        "augments": task.name,
        "rows": _digest(rows, labels),
        "vectors": nearest.digest[:16],
        "masked_lm": model and model.digest()[:16],
        **asdict(settings),
        "program": PROGRAM,
    }
    folder = Path(output or Path("runs") / f"augment-{task.name}-{_digest(config)[:8]}")
    done = files.read_json(folder / files.CONFIG) == config and (folder / task.folder / TABLE).is_file()
    record = files.read_json(folder / task.folder / RECORD) if done else None
    if record is None:
        job = _job(task, rows, nearest, settings, model, report)
        with files.claim(folder, config):
            make_parts(job, rows, masked_lm, processes, folder / PARTS, report)
            record = _write_table(task, rows, labels, folder, config)
    report(f"{folder / task.folder / TABLE}: {record['original']:,} original rows and {record['new']:,} new ones")
    return folder, record


def load_augmented(task: Task, path: str | PathLike) -> tuple[Dataset, dict]:
    """A table that `augment` wrote, or any training set in the original layout, and what is known of it.

    Args:
        path: the folder, the task's folder in it, or its train.tsv.
    Returns:
        tuple: the rows, and a record: the table's name, the digest of its content, and where `augment` wrote it the
            settings.
    """
    path = Path(path).expanduser()
    places = (path, path / task.folder / TABLE, path / TABLE)
    table = next((place for place in places if place.is_file() and place.name == TABLE), None)
    if table is None:
        raise BitlabError(f"no augmented {task.title} at {str(path)!r}: give the folder that bitlab augment wrote")
    with open(table, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    record = {"name": path.name, "table": digest[:16], **(files.read_json(table.with_name(RECORD)) or {})}
    return load_glue(task, table.parent)["train"], record


def _digest(*content) -> str:
    """16 characters that stand for the content."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _training_set(task: Task, source: str | PathLike) -> tuple[list[tuple[str, ...]], list]:
    """(texts, labels) of the rows. A line break or tab inside a text, possible outside TSV files, becomes a space."""
    splits = load_glue(task, source)
    if "train" not in splits:
        raise BitlabError(f"{task.title} has no train split in this data: augmentation needs its train.tsv")
    columns = splits["train"][:]
    texts = zip(*(columns[column] for column in task.text_columns), strict=True)
    return [tuple(re.sub(r"[\t\r\n]", " ", text) for text in row) for row in texts], columns["label"]


def _job(task: Task, rows, vectors, settings: Settings, model: MaskedLM | None, report) -> Job:
    words = {word[0] for texts in rows for sentence in texts for word in replaceable(sentence)}
    single = {word for word in words if model and model.is_single_piece(word)}
    others = {word.lower() for word in words - single}
    neighbours = vectors.neighbours(others, settings.candidates)
    none = f"none of the {len(words):,} words of {task.title}"
    if model is None and not neighbours:
        raise BitlabError(f"{none} has a word vector: give vectors of the data's language")
    if model is not None and not single:
        raise BitlabError(f"{none} is one piece of the masked language model's vocabulary: it has another tokenizer")
    if model is None:
        report("no masked language model: the candidates of every word come from the word vectors alone")
    else:
        report(f"{len(single):,} words are one piece of the masked language model, the others go by word vectors")
    report(f"{len(neighbours):,} of {len(others):,} words have a word vector")
    return Job(settings, neighbours, model)


def _write_table(task: Task, rows, labels, folder: Path, config: dict) -> dict:
    """Put the table and its record in place, both or none, and drop the parts."""
    seen = {_key(texts) for texts in rows}
    new = 0
    with files.whole_folder(folder / task.folder) as place:
        with open(place / TABLE, "w", encoding="utf-8", newline="\n") as file:
            file.write(_header(task))
            for number, texts in enumerate(rows):
                file.write(_line(task, number, texts, labels[number]))
            for number, texts in read_parts(folder / PARTS, len(rows)):
                key = _key(texts)
                if key not in seen:
                    seen.add(key)
                    new += 1
                    file.write(_line(task, number, texts, labels[number]))
        record = {"original": len(rows), "new": new, **config}
        files.write_json(place / RECORD, record)
    shutil.rmtree(folder / PARTS)
    return record


def _key(texts) -> bytes:
    """Eight bytes for a row's texts: millions of them are to be held."""
    return hashlib.blake2b("\t".join(texts).encode(), digest_size=8).digest()


def _header(task: Task) -> str:
    written = layout(task)
    return "" if task.name == "cola" else "\t".join(("index", *written.text, written.label)) + "\n"


def _line(task: Task, number: int, texts, label) -> str:
    if task.kind == "regression":
        label = np.float32(label)  # prints as it was read: 4.2, not 4.199999809
    elif layout(task).words:
        label = task.label_names[label]
    fields = (number, label, "", *texts) if task.name == "cola" else (number, *texts, label)
    return "\t".join(map(str, fields)) + "\n"
