"""Questions with their paragraphs as tokens: long paragraphs are cut into windows that overlap."""

from dataclasses import dataclass

import numpy as np
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from bitlab.data.tasks import SQUAD
from bitlab.errors import BitlabError

CHUNK = 1000  # questions tokenized at once


@dataclass(frozen=True)
class WindowSizes:
    """How paragraphs are cut. All in tokens.

    max_length  of a window: [CLS] question [SEP] part of the paragraph [SEP]
    stride      what a window shares with the one before it (the fast tokenizers' meaning of the word)
    question_length  longer questions are cut
    """

    max_length: int = SQUAD.max_length
    stride: int = SQUAD.stride
    question_length: int = SQUAD.max_query_length

    @classmethod
    def fitting(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None = None,
        stride: int | None = None,
        question_length: int | None = None,
    ) -> "WindowSizes":
        """The sizes that are asked for; where one is None the task's, in proportion for models that read less.

        Errors: BitlabError for windows longer than the model reads, or without room for anything new in the next.
        """
        limit = tokenizer.model_max_length
        for name, value in (("max_length", max_length), ("stride", stride), ("question_length", question_length)):
            if value is not None and value < (name != "stride"):
                raise BitlabError(f"{name} is {value}: give {'0' if name == 'stride' else '1'} or a number above")
        if max_length is not None and max_length > limit:
            raise BitlabError(f"windows of {max_length} tokens are too long: this model reads {limit} at most")
        max_length = max_length or min(SQUAD.max_length, limit)
        sizes = cls(
            max_length,
            max_length * SQUAD.stride // SQUAD.max_length if stride is None else stride,
            max_length * SQUAD.max_query_length // SQUAD.max_length if question_length is None else question_length,
        )
        room = max_length - sizes.question_length - tokenizer.num_special_tokens_to_add(pair=True)
        if sizes.stride >= room:
            raise BitlabError(
                f"windows of {max_length} tokens with questions of {sizes.question_length} leave {room} for the "
                f"paragraph, and a stride of {sizes.stride} repeats them all: choose a smaller stride or longer windows"
            )
        return sizes


@dataclass
class Windows:
    """Tokenized questions; a question has one window or several, which follow each other.

    tokens    one row a window: the model's inputs, `start_positions` and `end_positions`: the first and last token of
              the first reference answer, or both the [CLS] where the window does not hold all of it
    questions (windows,) int: the row each window was made from
    offsets   for each window (tokens, 2) int32: first character of a token in its paragraph, and the one after its
              last; -1 for tokens that are not the paragraph's
    """

    tokens: Dataset
    questions: np.ndarray
    offsets: list[np.ndarray]


def encode_windows(rows: Dataset, tokenizer: PreTrainedTokenizerBase, sizes: WindowSizes) -> Windows:
    """Tokenize a split of `load_squad`. Not padded; order is kept; nothing is cached on disk.

    Errors: BitlabError for a tokenizer that does not know which characters a token stands for.
    """
    if not tokenizer.is_fast:
        raise BitlabError(f"{type(tokenizer).__name__} gives no character offsets: SQuAD needs a fast tokenizer")
    parts, questions, offsets = [], [], []
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        encoded = tokenizer(
            _cut(chunk["question"], tokenizer, sizes.question_length),
            list(chunk["context"]),
            truncation="only_second",
            max_length=sizes.max_length,
            stride=sizes.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        sources = encoded.pop("overflow_to_sample_mapping")
        places = [_of_paragraph(o, encoded.sequence_ids(i)) for i, o in enumerate(encoded.pop("offset_mapping"))]
        cls = [ids.index(tokenizer.cls_token_id) for ids in encoded["input_ids"]]
        spans = [_span(p, chunk["answers"][i]) or (c, c) for p, i, c in zip(places, sources, cls, strict=True)]
        starts, ends = zip(*spans, strict=True)
        parts.append(Dataset.from_dict({**encoded, "start_positions": starts, "end_positions": ends}))
        questions += [start + i for i in sources]
        offsets += places
    return Windows(concatenate_datasets(parts), np.array(questions), offsets)


def _cut(questions: list[str], tokenizer: PreTrainedTokenizerBase, length: int) -> list[str]:
    """Questions cut after so many tokens."""
    ends = tokenizer(list(questions), add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [
        text[: tokens[length - 1][1]] if len(tokens) > length else text
        for text, tokens in zip(questions, ends, strict=True)
    ]


def _of_paragraph(offsets: list[tuple[int, int]], sequences: list[int | None]) -> np.ndarray:
    own = np.array([sequence == 1 for sequence in sequences])
    return np.where(own[:, None], np.array(offsets, dtype=np.int32), np.int32(-1))


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
