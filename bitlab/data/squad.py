"""SQuAD v1.1: its files with the hub's columns, windows of tokens to train on, and answers from logits.

A paragraph may be longer than what a model reads, so it is cut into windows that overlap. The model gives every token
of a window two numbers, how likely it is to start and to end the answer; the best pair over all windows is the answer.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict
from scipy.special import softmax
from transformers import PreTrainedTokenizerBase

from bitlab.data.metrics import row_names
from bitlab.data.sample import sample_squad
from bitlab.data.sources import features, load_hub, logger, resolve_source
from bitlab.data.tasks import SQUAD
from bitlab.errors import BitlabError
from bitlab.files import read_json, reading

HUB_ID = "rajpurkar/squad"
# Pairs of files that belong together, the first found wins. The small pair splits dev-v1.1's own articles between
# training and evaluation: a model trained on train-small must never be scored on dev-v1.1.
PAIRS = (
    {"train": "train-v1.1.json", "validation": "dev-v1.1.json"},
    {"train": "train-small.json", "validation": "dev-small.json"},
    {"validation": "dev-v1.1.json"},
    {"train": "train-v1.1.json"},
)
CHUNK = 1000  # questions tokenized at once
N_BEST = 20
MAX_ANSWER_LENGTH = 30  # tokens

Answer = dict[str, str | float]


def load_squad(source: str | PathLike = "auto") -> DatasetDict:
    """SQuAD v1.1 as a DatasetDict: id, title, context, question, answers {text: [str], answer_start: [int]}.

    Args:
        source: "sample", "hub", "auto" (see `bitlab.data.sources.resolve_source`), or a folder with the original
            files, or with a `squad/` that has them. Which files are read, in this order: train-v1.1.json with
            dev-v1.1.json; else train-small.json with dev-small.json; else the one of the v1.1 files that is
            there. train-small is never paired with dev-v1.1, whose articles it contains.
    Returns:
        DatasetDict: `answer_start` counts characters in the context.
    Raises:
        BitlabError: one line, for files that are missing, no JSON, of version 2 (unanswerable questions), lack a key,
            or have an answer that is not where it says it is.
    """
    source, why = resolve_source(source)
    logger.info(why)
    if source == "sample":
        return sample_squad()
    return load_hub(HUB_ID) if source == "hub" else _from_folder(Path(source))


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
    document = read_json(path, remedy="give a SQuAD v1.1 file")
    rows = [
        _row(qa, f"{path}, data[{a}].paragraphs[{p}].qas[{q}]", article, paragraph)
        for a, article in enumerate(_get(document, "data", f"{path}, top level", list))
        for p, paragraph in enumerate(_get(article, "paragraphs", f"{path}, data[{a}]", list))
        for q, qa in enumerate(_get(paragraph, "qas", f"{path}, data[{a}].paragraphs[{p}]", list))
    ]
    if not rows:
        raise BitlabError(f"{path}: no question in it.")
    with reading(path, "give a SQuAD v1.1 file"):  # a lone surrogate is JSON, and no text
        return Dataset.from_list(rows, features=features(SQUAD))


def _get(node, key: str, where: str, kind: type):
    """What a part of a file's JSON has under a key; `where` are the file and the place in it, for errors."""
    value = node.get(key) if isinstance(node, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        found = "is missing" if value is None else f"is {type(value).__name__}, expected {kind.__name__}"
        raise BitlabError(f"{where}: {key!r} {found}.")
    return value


def _row(qa: dict, where: str, article: dict, paragraph: dict) -> dict:
    in_article, in_paragraph, _ = where.rsplit(".", 2)
    context = _get(paragraph, "context", f"{in_article}.{in_paragraph}", str)
    answers = _get(qa, "answers", where, list)
    if qa.get("is_impossible") or not answers:
        raise BitlabError(f"{where}: a question without an answer, as in SQuAD v2.0; bitlab reads v1.1.")
    texts, starts = [], []
    for n, answer in enumerate(answers):
        place = f"{where}.answers[{n}]"
        text, start = _get(answer, "text", place, str), _get(answer, "answer_start", place, int)
        if not text or start < 0 or context[start : start + len(text)] != text:
            raise BitlabError(f"{place}: the context does not have {text[:40]!r} at character {start}.")
        texts.append(text)
        starts.append(start)
    return {
        "id": _get(qa, "id", where, str),
        "title": _get(article, "title", in_article, str),
        "context": context,
        "question": _get(qa, "question", where, str),
        "answers": {"text": texts, "answer_start": starts},
    }


# ------------------------------------------------------------------------------------------------- windows


@dataclass(frozen=True)
class WindowSizes:
    """How paragraphs are cut.

    Args:
        max_length: tokens of a window: [CLS] question [SEP] part of the paragraph [SEP].
        stride: tokens that a window shares with the one before it (the fast tokenizers' meaning of the word).
        question_length: longer questions are cut after so many tokens.
    """

    max_length: int = SQUAD.max_length
    stride: int = SQUAD.stride
    question_length: int = SQUAD.question_length

    @classmethod
    def fitting(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None = None,
        stride: int | None = None,
        question_length: int | None = None,
    ) -> "WindowSizes":
        """The sizes that are asked for; where one is None the task's, in proportion for models that read less.

        Raises:
            BitlabError: for windows longer than the model reads, or without room for anything new in the next.
        """
        limit = tokenizer.model_max_length
        if max_length is not None and max_length > limit:
            raise BitlabError(f"windows of {max_length} tokens are too long: this model reads {limit} at most")
        length = max_length or min(SQUAD.max_length, limit)
        sizes = cls(
            length,
            length * SQUAD.stride // SQUAD.max_length if stride is None else stride,
            question_length or max(1, length * SQUAD.question_length // SQUAD.max_length),
        )
        room = length - sizes.question_length - tokenizer.num_special_tokens_to_add(pair=True)
        if sizes.stride >= room:
            raise BitlabError(
                f"windows of {length} tokens with questions of {sizes.question_length} leave {room} for the "
                f"paragraph, and a stride of {sizes.stride} repeats them all: choose a smaller stride or longer windows"
            )
        return sizes


@dataclass
class Windows:
    """Tokenized questions; a question has one window or several, which follow each other.

    Args:
        tokens: one row a window: the model's inputs, `start_positions` and `end_positions`: the first and last token
            of the first reference answer, or both the [CLS] where the window does not hold all of it.
        questions: (windows,) int: the row each window was made from.
        offsets: for each window (tokens, 2) int32: first character of a token in its paragraph, and the one after its
            last; -1 for tokens that are not the paragraph's.
    """

    tokens: Dataset
    questions: np.ndarray
    offsets: list[np.ndarray]


def encode_windows(rows: Dataset, tokenizer: PreTrainedTokenizerBase, sizes: WindowSizes) -> Windows:
    """Tokenize a split of `load_squad`. Not padded; order is kept; nothing is cached on disk.

    Raises:
        BitlabError: for a tokenizer that does not know which characters a token stands for.
    """
    if not tokenizer.is_fast:
        raise BitlabError(f"{type(tokenizer).__name__} gives no character offsets: SQuAD needs a fast tokenizer")
    tokenizer = right_sided(tokenizer)
    tokens, questions, offsets = [], [], []
    for first in range(0, len(rows), CHUNK):
        chunk = rows[first : first + CHUNK]
        encoded = tokenizer(
            [_cut(question, tokenizer, sizes.question_length) for question in chunk["question"]],
            list(chunk["context"]),
            truncation="only_second",
            max_length=sizes.max_length,
            stride=sizes.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        sources, characters = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
        for window, question in enumerate(sources):
            of_paragraph = np.array([part == 1 for part in encoded.sequence_ids(window)])
            places = np.where(of_paragraph[:, None], np.array(characters[window], dtype=np.int32), np.int32(-1))
            inputs = {name: values[window] for name, values in encoded.items()}
            ids, cls = inputs["input_ids"], tokenizer.cls_token_id
            nowhere = ids.index(cls) if cls in ids else 0  # some tokenizers have no [CLS]
            start, end = _span(places, chunk["answers"][question]) or (nowhere, nowhere)
            tokens.append(inputs | {"start_positions": start, "end_positions": end})
            questions.append(first + question)
            offsets.append(places)
    return Windows(Dataset.from_list(tokens), np.array(questions), offsets)


def right_sided(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, made to pad and to cut on the right: the place of a token is counted from the left."""
    tokenizer = copy.copy(tokenizer)
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    return tokenizer


def _cut(question: str, tokenizer: PreTrainedTokenizerBase, length: int) -> str:
    """The question's first tokens. To some tokenizers blanks are tokens, and a run of them could be all there is."""
    question = " ".join(question.split())
    ends = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return question[: ends[length - 1][1]] if len(ends) > length else question


def _span(offsets: np.ndarray, answers: dict) -> tuple[int, int] | None:
    """First and last token of the first reference answer, None if the window does not hold it whole."""
    first, text = answers["answer_start"][0], answers["text"][0]
    first, last = first + len(text) - len(text.lstrip()), first + len(text.rstrip())
    (own,) = np.nonzero(offsets[:, 0] >= 0)
    if not len(own) or first < offsets[own[0], 0] or last > offsets[own[-1], 1]:
        return None
    start = np.searchsorted(offsets[own, 0], first, side="right") - 1
    end = np.searchsorted(offsets[own, 1], last, side="left")
    return int(own[start]), int(own[max(start, end)])


# ------------------------------------------------------------------------------------------------- answers


def best_answers(
    rows: Dataset,
    windows: Windows,
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    n_best: int = N_BEST,
    max_answer_length: int = MAX_ANSWER_LENGTH,
) -> dict[str, list[Answer]]:
    """The best answers to each question, by question id, the best first.

    Args:
        rows: a split of `load_squad`.
        windows: made from it by `encode_windows`.
        start_logits, end_logits: (windows, tokens), padded on the right; padding is not looked at.
        n_best: answers kept, and the number of starts and of ends in a window that are combined to answers.
        max_answer_length: in tokens.
    Returns:
        dict: of lists of dicts with `text` (cut out of the paragraph), `start_logit`, `end_logit`, and `probability`,
            the softmax over the kept answers of the sum of both logits. Questions that share an id are told apart as
            `row_names` tells them.

    As in BERT's program for SQuAD: an answer starts and ends within the paragraph, in one window, and does not end
    before it starts. A question for which no start goes with any end has the empty answer.
    Source: Devlin et al., 2019 (arXiv 1810.04805), section 4.2.
    """
    found: list[dict[tuple[int, int], tuple[float, float]]] = [{} for _ in rows["id"]]
    for window, (question, offsets) in enumerate(zip(windows.questions, windows.offsets, strict=True)):
        start, end = start_logits[window, : len(offsets)], end_logits[window, : len(offsets)]
        own = offsets[:, 0] >= 0
        ends = [j for j in np.argsort(-end, kind="stable")[:n_best] if own[j]]
        for i in np.argsort(-start, kind="stable")[:n_best]:
            for j in ends:
                if own[i] and i <= j < i + max_answer_length:
                    place, logits = (int(offsets[i, 0]), int(offsets[j, 1])), (float(start[i]), float(end[j]))
                    # two windows may hold the same answer: the one that is surer of it counts
                    found[question][place] = max(logits, found[question].get(place, logits), key=sum)
    named = zip(row_names(rows["id"]), rows["context"], found, strict=True)
    return {name: _texts(context, spans, n_best) for name, context, spans in named}


def _texts(context: str, spans: dict, n_best: int) -> list[Answer]:
    ranked = sorted(spans.items(), key=lambda item: -sum(item[1]))[:n_best]
    if not ranked:
        return [{"text": "", "probability": 1.0, "start_logit": 0.0, "end_logit": 0.0}]
    probabilities = softmax([sum(logits) for _, logits in ranked])
    return [
        {
            "text": context[first:last],
            "probability": round(float(probability), 6),
            "start_logit": round(start, 4),
            "end_logit": round(end, 4),
        }
        for ((first, last), (start, end)), probability in zip(ranked, probabilities, strict=True)
    ]


def best_texts(answers: dict[str, Sequence[Answer]]) -> dict[str, str]:
    """{question id: text of its best answer}: the official predictions file."""
    return {name: str(ranked[0]["text"]) for name, ranked in answers.items()}
