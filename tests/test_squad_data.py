"""Reading SQuAD v1.1."""

import copy
import json
from functools import partial
from pathlib import Path

import pytest
from tiny_models import real, refusal

from bitlab.data.sources import features
from bitlab.data.squad import load_squad, read_squad
from bitlab.data.tasks import SQUAD

QA = {"id": "q1", "question": "Who sat?", "answers": [{"text": "Ann", "answer_start": 0}]}
PARAGRAPH = {"context": "Ann sat. Ann rose.", "qas": [QA]}
DOCUMENT = {"version": "1.1", "data": [{"title": "Sitting", "paragraphs": [PARAGRAPH]}]}


def write(folder: Path, name: str, document=DOCUMENT) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return path


fails = partial(refusal, load_squad)


def test_rows_have_the_hubs_columns(tmp_path):
    rows = read_squad(write(tmp_path, "dev-v1.1.json"))
    assert rows.features == features(SQUAD)
    assert rows.to_list() == [
        {
            "id": "q1",
            "title": "Sitting",
            "context": "Ann sat. Ann rose.",
            "question": "Who sat?",
            "answers": {"text": ["Ann"], "answer_start": [0]},
        }
    ]


def named(*ids):
    return [edited([*Q, "id"], name) for name in ids]


def test_train_small_never_meets_dev_v11(tmp_path):
    small, small_dev, dev, train = named("small", "small-dev", "dev", "train")
    write(tmp_path, "train-small.json", small)
    write(tmp_path, "dev-v1.1.json", dev)
    assert {s: r["id"][:] for s, r in load_squad(tmp_path).items()} == {"validation": ["dev"]}
    write(tmp_path, "dev-small.json", small_dev)
    assert {s: r["id"][:] for s, r in load_squad(tmp_path).items()} == {"train": ["small"], "validation": ["small-dev"]}
    write(tmp_path, "train-v1.1.json", train)
    assert {s: r["id"][:] for s, r in load_squad(tmp_path).items()} == {"train": ["train"], "validation": ["dev"]}


def test_folder_may_hold_a_squad_folder(tmp_path):
    write(tmp_path / "squad", "dev-v1.1.json")
    assert load_squad(tmp_path)["validation"].num_rows == 1


def edited(path: list, value) -> dict:
    document = copy.deepcopy(DOCUMENT)
    node = document
    for key in path[:-1]:
        node = node[key]
    if value is None:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return document


Q = ["data", 0, "paragraphs", 0, "qas", 0]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("{", "can't be read"),
        ("[]", "it holds list, expected dict"),
        ("[" * 200_000, "can't be read"),
        (edited([*Q, "question"], "\ud800?"), "surrogates not allowed"),
        (edited([*Q, "answers", 0, "answer_start"], 10**30), "the context does not have 'Ann'"),
        ({"data": {}}, "top level: 'data' is dict, expected list"),
        ({"data": []}, "no question"),
        (edited(["data", 0, "paragraphs"], None), "data[0]: 'paragraphs' is missing"),
        (edited(["data", 0, "title"], None), "data[0]: 'title' is missing"),
        (edited(["data", 0, "paragraphs", 0, "context"], None), "data[0].paragraphs[0]: 'context' is missing"),
        (edited([*Q, "question"], None), "data[0].paragraphs[0].qas[0]: 'question' is missing"),
        (edited([*Q, "answers", 0, "text"], None), "qas[0].answers[0]: 'text' is missing"),
        (edited([*Q, "answers", 0, "answer_start"], "0"), "'answer_start' is str, expected int"),
        (edited([*Q, "answers", 0, "answer_start"], 1), "the context does not have 'Ann' at character 1"),
        (edited([*Q, "answers", 0, "answer_start"], -18), "the context does not have 'Ann' at character -18"),
        (edited([*Q, "answers"], []), "SQuAD v2.0"),
        (edited([*Q, "is_impossible"], True), "SQuAD v2.0"),
    ],
)
def test_wrong_files_are_one_line_with_the_place(tmp_path, document, expected):
    write(tmp_path, "train-v1.1.json", document)
    message = fails(tmp_path)
    assert expected in message and "train-v1.1.json" in message


def test_folder_without_files(tmp_path):
    assert "no SQuAD files" in fails(tmp_path)


def test_sample_source():
    splits = load_squad("sample")
    assert {split: rows.num_rows for split, rows in splits.items()} == {"train": 2000, "validation": 500}


@pytest.mark.parametrize(("name", "count"), [("dev-v1.1", 10570), ("train-small", 13601), ("dev-small", 1339)])
def test_counts_of_the_real_files(name, count):
    assert read_squad(real(f"{name}.json", f"squad/{name}.json")).num_rows == count
