"""SQuAD v1.1 with the hub's columns, from the original JSON files, the hub, or the sample generator."""

import json
from os import PathLike
from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset

from bitlab.data.sample import sample_squad
from bitlab.data.schema import SQUAD_FEATURES
from bitlab.data.sources import announce
from bitlab.errors import BitlabError

HUB_ID = "rajpurkar/squad"
# Pairs of files that belong together, the first found wins. The small pair splits dev-v1.1's own articles between
# training and evaluation: a model trained on train-small must never be scored on dev-v1.1.
PAIRS = (
    {"train": "train-v1.1.json", "validation": "dev-v1.1.json"},
    {"train": "train-small.json", "validation": "dev-small.json"},
    {"validation": "dev-v1.1.json"},
    {"train": "train-v1.1.json"},
)


def load_squad(source: str | PathLike = "auto") -> DatasetDict:
    """SQuAD v1.1 as a DatasetDict: id, title, context, question, answers {text: [str], answer_start: [int]}.

    source  "sample", "hub", "auto" (see `bitlab.data.sources.resolve_source`), or a folder with the original
            files, or with a `squad/` that has them. Which files are read, in this order: train-v1.1.json with
            dev-v1.1.json; else train-small.json with dev-small.json; else the one of the v1.1 files that is
            there. train-small is never paired with dev-v1.1, whose articles it contains.

    `answer_start` counts characters in the context. Raises BitlabError, one line, for files that are missing, no
    JSON, of version 2 (unanswerable questions), lack a key, or have an answer that is not where it says it is.
    """
    source = announce(source)
    if source == "sample":
        return sample_squad()
    if source == "hub":
        return _from_hub()
    return _from_folder(Path(source))


def _from_hub() -> DatasetDict:
    try:
        return load_dataset(HUB_ID)
    except Exception as error:  # the hub's client raises a dozen kinds, and each may span many lines
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BitlabError(
            f"could not load {HUB_ID} from the hub ({reason}): "
            "check the network, or use the data source 'sample' or a folder."
        ) from error


def _from_folder(root: Path) -> DatasetDict:
    for pair in PAIRS:
        for folder in (root, root / "squad"):
            paths = {split: folder / name for split, name in pair.items()}
            if all(path.is_file() for path in paths.values()):
                return DatasetDict({split: read_squad(path) for split, path in paths.items()})
    raise BitlabError(
        f"no SQuAD files in {str(root)!r}: expected train-v1.1.json and dev-v1.1.json (or both -small.json)."
    )


def read_squad(path: str | PathLike) -> Dataset:
    """One original SQuAD v1.1 file, one row a question. See `load_squad` for columns and errors."""
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BitlabError(f"{path}: no readable JSON file ({error}).") from error
    reader = _Reader(path)
    rows = [
        reader.question(qa, f"data[{a}].paragraphs[{p}].qas[{q}]", article, paragraph)
        for a, article in enumerate(reader.list(document, "data", ""))
        for p, paragraph in enumerate(reader.list(article, "paragraphs", f"data[{a}]"))
        for q, qa in enumerate(reader.list(paragraph, "qas", f"data[{a}].paragraphs[{p}]"))
    ]
    if not rows:
        raise BitlabError(f"{path}: no question in it.")
    return Dataset.from_list(rows, features=SQUAD_FEATURES)


class _Reader:
    """Reads parts of one file's JSON; an error names the file and the place in it."""

    def __init__(self, path: Path):
        self.path = path

    def fail(self, where: str, problem: str):
        raise BitlabError(f"{self.path}, {where or 'top level'}: {problem}.")

    def get(self, node, key: str, where: str, kind: type):
        value = node.get(key) if isinstance(node, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            found = "is missing" if value is None else f"is {type(value).__name__}, expected {kind.__name__}"
            self.fail(where, f"{key!r} {found}")
        return value

    def list(self, node, key: str, where: str) -> list:
        return self.get(node, key, where, list)

    def question(self, qa: dict, where: str, article: dict, paragraph: dict) -> dict:
        context = self.get(paragraph, "context", where.rpartition(".")[0], str)
        answers = self.list(qa, "answers", where)
        if qa.get("is_impossible") or not answers:
            self.fail(where, "a question without an answer, as in SQuAD v2.0; bitlab reads v1.1")
        texts, starts = [], []
        for n, answer in enumerate(answers):
            text = self.get(answer, "text", f"{where}.answers[{n}]", str)
            start = self.get(answer, "answer_start", f"{where}.answers[{n}]", int)
            if not text or start < 0 or context[start : start + len(text)] != text:
                self.fail(f"{where}.answers[{n}]", f"the context does not have {text[:40]!r} at character {start}")
            texts.append(text)
            starts.append(start)
        return {
            "id": self.get(qa, "id", where, str),
            "title": self.get(article, "title", where.split(".")[0], str),
            "context": context,
            "question": self.get(qa, "question", where, str),
            "answers": {"text": texts, "answer_start": starts},
        }
