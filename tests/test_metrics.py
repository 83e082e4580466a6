"""The metrics against numbers worked out by hand, and at their edges."""

import math
import warnings

import numpy as np
import pytest
from tiny_models import real

from bitlab.data.metrics import commonest, glue_metrics, normalize_answer, squad_metrics
from bitlab.data.sample import sample_glue
from bitlab.data.squad import read_squad
from bitlab.data.tasks import TASKS, Task
from bitlab.errors import BitlabError


def test_accuracy_and_f1():
    # true positives 2, false positives 1, false negatives 2: F1 = 4 / (4 + 1 + 2)
    metrics = glue_metrics("mrpc", [1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 1, 0])
    assert metrics == pytest.approx({"accuracy": 0.5, "f1": 4 / 7})


def test_matthews_correlation():
    # tp 3, tn 2, fp 1, fn 2: (3 * 2 - 1 * 2) / sqrt(4 * 5 * 3 * 4)
    metrics = glue_metrics("cola", [1, 1, 1, 0, 0, 1, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0])
    assert metrics == pytest.approx({"matthews_correlation": 4 / math.sqrt(240)})


def test_correlations():
    metrics = glue_metrics("stsb", [[1.0], [2.0], [3.0], [10.0]], [0.0, 1.0, 2.0, 3.0])
    # deviations (-3, -2, -1, 6) and (-1.5, -.5, .5, 1.5): 14 / sqrt(50 * 5)
    assert metrics == pytest.approx({"pearson": 14 / math.sqrt(250), "spearman": 1.0})


def test_several_labels_at_once():
    task = Task("topics", "multi_label", ("text",), ("art", "war", "sea"))
    labels = [[1, 0, 1], [0, 1, 0]]
    # logits above 0 are yes: art right twice; war missed; sea wrong in the second row. tp 2, fp 1, fn 1
    found = glue_metrics(task, [[3.0, -1.0, 0.1], [-2.0, -0.1, 5.0]], labels)
    assert found == pytest.approx({"f1_micro": 2 / 3, "f1_macro": (1 + 0 + 2 / 3) / 3})
    assert commonest(task, [[1, 0], [1, 1], [0, 0]]).tolist() == [[1, 0]] * 3


@pytest.mark.parametrize("task", TASKS)
def test_perfect_predictions_score_1_and_logits_are_understood(task):
    labels = np.array(sample_glue(task, 5, 50)[TASKS[task].eval_splits[0]]["label"])
    logits = labels[:, None] if task == "stsb" else np.eye(TASKS[task].num_labels)[labels]
    assert all(value == pytest.approx(1.0) for value in glue_metrics(task, logits, labels).values())
    assert glue_metrics(task, logits, labels) == glue_metrics(task, labels, labels)


@pytest.mark.parametrize("task", TASKS)
def test_constant_predictions_have_a_score_and_no_warning(task):
    labels = sample_glue(task, 5, 50)[TASKS[task].eval_splits[0]]["label"][:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics = glue_metrics(task, np.zeros(50), labels)
    for name in {"f1", "matthews_correlation", "pearson", "spearman"} & set(metrics):
        assert metrics[name] == 0.0


@pytest.mark.parametrize(
    ("predictions", "labels", "expected"),
    [
        ([[0.0, np.nan]], [1], "diverged"),
        ([0, 1], [1], "2 predictions for 1 labels"),
        ([], [], "0 predictions"),
        ([0, 1], [-1, -1], "test split"),
    ],
)
def test_what_has_no_score_is_an_error(predictions, labels, expected):
    with pytest.raises(BitlabError, match=expected):
        glue_metrics("rte", predictions, labels)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat, sat.", "cat sat"),
        ("an Apple a day", "apple day"),
        ("theatre", "theatre"),
        ("U.S.-based", "usbased"),
        ("\u201cquoted\u201d", "\u201cquoted\u201d"),  # the official script knows ASCII punctuation only
        ("the", ""),
    ],
)
def test_normal_form_of_answers(text, normal):
    assert normalize_answer(text) == normal


def row(name, *texts):
    return {"id": name, "answers": {"text": list(texts), "answer_start": [0] * len(texts)}}


def test_squad_scores_the_best_reference():
    references = [row("a", "in Paris", "Paris"), row("b", "two red cats"), row("c", "Rome"), row("d", "Oslo")]
    predictions = {"a": "the Paris!", "b": "red cats sat there", "c": "Bonn", "x": "not asked"}
    # a: exact. b: 2 common words of 4 and 3, F1 = 4 / 7. c: 0. d: no prediction, 0.
    assert squad_metrics(predictions, references) == pytest.approx({"exact_match": 1 / 4, "f1": (1 + 4 / 7) / 4})


def test_squad_counts_repeated_words_once_each():
    # "na na" against "na": one word in common, F1 = 2 / 3
    assert squad_metrics({"a": "na na"}, [row("a", "na")])["f1"] == pytest.approx(2 / 3)


def test_squad_empty_answers_and_no_questions():
    assert squad_metrics({"a": ""}, [row("a", "yes")]) == {"exact_match": 0.0, "f1": 0.0}
    with pytest.raises(BitlabError, match="no questions"):
        squad_metrics({}, [])


def test_squad_on_the_complete_dev_file():
    rows = list(read_squad(real("dev-v1.1.json", "squad/dev-v1.1.json")))
    copies = {row["id"]: row["answers"]["text"][0] for row in rows}
    assert squad_metrics(copies, rows) == {"exact_match": 1.0, "f1": 1.0}
    assert squad_metrics({}, rows) == {"exact_match": 0.0, "f1": 0.0}
    # Three questions have "." among their references, which in normal form is the empty answer, officially too.
    assert squad_metrics(dict.fromkeys(copies, ""), rows) == {"exact_match": 3 / 10570, "f1": 0.0}
    half = {key: text for i, (key, text) in enumerate(copies.items()) if i % 2}
    assert squad_metrics(half, rows)["exact_match"] == 0.5
