"""The metrics of GLUE and SQuAD. All are fractions: 0.914 where the papers and the official scripts print 91.4."""

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from bitlab.data.tasks import Task, get_glue_task
from bitlab.errors import BitlabError


def _correlation(function, labels: np.ndarray, predictions: np.ndarray) -> float:
    # A constant has no correlation; 0 says "nothing learned", where scipy warns and returns NaN.
    if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return function(labels, predictions).statistic


_METRICS = {
    "accuracy": accuracy_score,
    "f1": partial(f1_score, zero_division=0.0),
    "f1_micro": partial(f1_score, average="micro", zero_division=0.0),
    "f1_macro": partial(f1_score, average="macro", zero_division=0.0),
    "matthews_correlation": matthews_corrcoef,
    "pearson": partial(_correlation, pearsonr),
    "spearman": partial(_correlation, spearmanr),
}


def predicted(task: Task, logits) -> np.ndarray:
    """What logits say.

    Args:
        logits: (N, C). What has no logits any more, (N,) or the zeros and ones of several labels, stays as it is.
    Returns:
        np.ndarray: (N,) class numbers; (N,) values of a regression; (N, C) zeros and ones where each class is a
            question of its own: 1 for logits above 0, which are probabilities above a half.
    """
    values = np.asarray(logits)
    if task.kind == "multi_label":
        return (values > 0).astype(int)
    if values.ndim == 2:
        values = values[:, 0] if task.kind == "regression" else values.argmax(axis=1)
    return values


def glue_metrics(task: str | Task, predictions, labels) -> dict[str, float]:
    """The task's metrics by name, in the published order.

    Args:
        predictions: (N, C) logits or (N,) class numbers; for a regression (N, 1) or (N,) values.
        labels: (N,) in the hub's order; (N, C) zeros and ones for several labels at once.
    Returns:
        dict: accuracy; f1 of class 1 (0 where it is undefined); f1_micro and f1_macro; matthews_correlation; pearson
            and spearman, which are 0 for constant predictions.
    Raises:
        BitlabError: for no examples, lengths that differ, labels of -1 (a test split), or predictions that are not
            finite, because none of these has a score.
    """
    task = get_glue_task(task)
    check_predictions(task, predictions)
    predictions, labels = predicted(task, predictions), np.asarray(labels)
    if len(predictions) != len(labels) or not len(labels):
        raise BitlabError(f"{task.title}: {len(predictions)} predictions for {len(labels)} labels.")
    if (labels < 0).any() and (task.has_classes or task.label_range):
        raise BitlabError(f"{task.title}: labels of -1, a test split has none to score against.")
    return {name: float(_METRICS[name](labels, predictions)) for name in task.metrics}


def check_predictions(task: Task, *predictions) -> None:
    """Refuse logits that are no numbers: the training has diverged."""
    if not all(np.isfinite(np.asarray(each, dtype=float)).all() for each in predictions):
        raise BitlabError(f"{task.title}: predictions hold NaN or infinity, the training has diverged.")


def commonest(task: Task, labels) -> np.ndarray:
    """What a model says that has learned nothing but labels: the most frequent class, or none, or a constant."""
    labels = np.asarray(labels)
    if task.kind == "regression":
        return np.zeros(len(labels))
    if task.kind == "multi_label":
        return np.tile(labels.mean(axis=0) >= 0.5, (len(labels), 1)).astype(int)
    return np.full(len(labels), np.bincount(labels).argmax())


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """SQuAD's normal form: lower case, no ASCII punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _exact(prediction: str, answer: str) -> float:
    return float(normalize_answer(prediction) == normalize_answer(answer))


def _overlap(prediction: str, answer: str) -> float:
    """F1 of the two bags of words."""
    found, wanted = normalize_answer(prediction).split(), normalize_answer(answer).split()
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted)) if common else 0.0


def row_names(ids: Iterable[str]) -> list[str]:
    """Ids as names of rows: where one comes again it is marked, "q1", "q1#2", so that no row takes another's place."""
    again, names = Counter(), {}
    for known in ids:
        name = known
        while name in names:
            again[known] += 1
            name = f"{known}#{again[known] + 1}"
        names[name] = None
    return list(names)


def squad_metrics(predictions: Mapping[str, str], references: Iterable[Mapping]) -> dict[str, float]:
    """Exact match and F1 of SQuAD v1.1, as fractions (the official script prints them times 100).

    Args:
        predictions: {question id: answer text}; a question without a prediction scores 0, as it does officially.
            Of rows that share an id each has its own (see `row_names`), or else that of the id.
        references: rows with `id` and `answers` {"text": [str, ...]}: a split of `load_squad` as it is.

    A prediction scores its best over the reference answers; the metric is the mean over all questions.
    """
    references = list(references)
    if not references:
        raise BitlabError("SQuAD: no questions to score.")
    exact = f1 = 0.0
    for row, name in zip(references, row_names(row["id"] for row in references), strict=True):
        prediction = predictions.get(name, predictions.get(row["id"]))
        if prediction is not None:
            exact += max(_exact(prediction, answer) for answer in row["answers"]["text"])
            f1 += max(_overlap(prediction, answer) for answer in row["answers"]["text"])
    return {"exact_match": exact / len(references), "f1": f1 / len(references)}
