"""From start and end logits to text: the n best answers to each question, and the files that hold them."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from bitlab.data.windows import Windows

N_BEST = 20
MAX_ANSWER_LENGTH = 30  # tokens

Answer = dict[str, str | float]


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
        rows: a split of `load_squad`; windows: made from it by `encode_windows`.
        start_logits, end_logits: (windows, tokens); what lies beyond a window's own tokens is not looked at.
        n_best: answers kept, and the number of starts and of ends in a window that are combined to answers.
        max_answer_length: in tokens.
    Returns: dicts with `text` (cut out of the paragraph), `start_logit`, `end_logit`, and `probability`, the softmax
        over the kept answers of the sum of both logits.

    As in BERT's program for SQuAD: an answer starts and ends within the paragraph, in one window, and does not end
    before it starts. A question for which no start goes with any end has the empty answer.
    Source: Devlin et al., 2019 (arXiv 1810.04805), section 4.2.
    """
    found: list[dict[tuple[int, int], tuple[float, float]]] = [{} for _ in rows["id"]]
    for number, (question, offsets) in enumerate(zip(windows.questions, windows.offsets, strict=True)):
        spans = _spans(start_logits[number], end_logits[number], offsets, n_best, max_answer_length)
        for place, logits in spans:
            # two windows may hold the same answer: the one that is surer of it counts
            found[question][place] = max(logits, found[question].get(place, logits), key=sum)
    named = zip(rows["id"], rows["context"], found, strict=True)
    return {name: _texts(context, spans, n_best) for name, context, spans in named}


def _spans(start: np.ndarray, end: np.ndarray, offsets: np.ndarray, n_best: int, longest: int):
    """((first, last character), (start logit, end logit)) of one window's answers."""
    start, end = start[: len(offsets)], end[: len(offsets)]
    starts, ends = (np.argsort(-logits, kind="stable")[:n_best] for logits in (start, end))
    i, j = (grid.ravel() for grid in np.meshgrid(starts, ends, indexing="ij"))
    fits = (offsets[i, 0] >= 0) & (offsets[j, 0] >= 0) & (i <= j) & (j - i < longest)
    for a, b in zip(i[fits], j[fits], strict=True):
        yield (int(offsets[a, 0]), int(offsets[b, 1])), (float(start[a]), float(end[b]))


def _texts(context: str, spans: dict, n_best: int) -> list[Answer]:
    ranked = sorted(spans.items(), key=lambda item: -sum(item[1]))[:n_best]
    if not ranked:
        return [{"text": "", "probability": 1.0, "start_logit": 0.0, "end_logit": 0.0}]
    scores = np.array([sum(logits) for _, logits in ranked])
    weights = np.exp(scores - scores.max())
    return [
        {
            "text": context[first:last],
            "probability": round(float(weight), 6),
            "start_logit": round(start, 4),
            "end_logit": round(end, 4),
        }
        for ((first, last), (start, end)), weight in zip(ranked, weights / weights.sum(), strict=True)
    ]


def best_texts(answers: dict[str, Sequence[Answer]]) -> dict[str, str]:
    """{question id: text of its best answer}: the official predictions file."""
    return {name: str(ranked[0]["text"]) for name, ranked in answers.items()}
