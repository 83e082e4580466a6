"""Data of your own: every kind of file gives the same task; a wrong row names file, row and column."""

import json
from functools import partial

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from tiny_models import refusal

from bitlab.data.own import check_words, load_own, read_own
from bitlab.data.sample import sample_glue, sample_tokenizer
from bitlab.data.tasks import TASKS
from bitlab.errors import BitlabError

REVIEWS = [(f'a "fine", film {i}\nof two lines', "good") if i % 3 else (f"dull {i}", "bad") for i in range(30)]


def table(rows, *names):
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def written(folder, ending, columns):
    """The same columns as any kind of file."""
    path, rows = folder / f"Reviews 2.{ending}", Dataset.from_dict(columns)
    if ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif ending == "tsv":
        lines = [columns, *zip(*columns.values(), strict=True)]
        path.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines))
    else:
        (rows.to_csv if ending == "csv" else rows.to_parquet)(path)
    return path


fails = partial(refusal, load_own)


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_file_gives_the_same_task(tmp_path, ending):
    rows = [(text.replace("\n", " "), label) for text, label in REVIEWS] if ending == "tsv" else REVIEWS
    path = written(tmp_path, ending, table(rows, "review", "verdict"))
    task, splits = load_own(path, "review", "verdict")
    assert (task.name, task.kind, task.text_columns) == ("reviews-2", "single_label", ("review",))
    assert task.label_names == ("bad", "good")
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 27, "validation": 3}
    found = {(row["review"], task.label_names[row["label"]]) for split in splits.values() for row in split}
    assert found == set(rows)
    again = load_own(path, ["review"], ["verdict"], seed=1)[1]["validation"]
    assert again["review"] != splits["validation"]["review"][:]  # another seed holds out others
    assert len(load_own(path, "review", "verdict", dev=path)[1]["validation"]) == 30
    assert read_own(path, task, "verdict").features == splits["train"].features


@pytest.mark.parametrize(
    ("labels", "kind", "names"),
    [
        ([0, 1], "single_label", ("0", "1")),
        ([10, 9], "single_label", ("9", "10")),
        ([True, False], "single_label", ("False", "True")),
        ([0.0, 1.0], "single_label", ("0", "1")),
        ([0.5, 2.0], "regression", None),
        ([["war", "art"], []], "multi_label", ("art", "war")),
        ([[3], [10, 3]], "multi_label", ("3", "10")),
    ],
)
def test_the_kind_follows_from_the_column(tmp_path, labels, kind, names):
    path = written(tmp_path, "jsonl", {"text": list("abcdefghijkl"), "label_": labels * 6})
    task, splits = load_own(path, "text", "label_")
    assert (task.kind, task.label_names) == (kind, names)
    classes = names and ClassLabel(names=list(names))
    kinds = {"single_label": classes, "multi_label": List(classes), "regression": Value("float32")}
    assert splits["train"].features["label"] == kinds[kind]


def test_the_kind_may_be_named_and_numbers_be_written_as_text(tmp_path):
    columns = {"text": list("abcdefghijkl"), "stars": [1, 2] * 6, "topics": ["a, b", '["b"]'] * 6}
    path = written(tmp_path, "csv", columns)
    assert load_own(path, "text", "stars")[0].label_names == ("1", "2")
    task, splits = load_own(path, "text", "stars", kind="regression")
    assert task.label_names is None and set(splits["train"]["label"]) == {1.0, 2.0}
    task, splits = load_own(path, "text", "topics", kind="multi_label")
    assert task.label_names == ("a", "b") and {tuple(row) for row in splits["train"]["label"]} == {(0, 1), (1,)}


def test_several_columns_are_several_labels_and_two_texts_a_pair(tmp_path):
    columns = {name: list("abcdefghijkl") for name in ("one", "two")}
    columns |= {"toxic": [0, 1] * 6, "rude": ["true", "false"] * 6}
    task, splits = load_own(written(tmp_path, "jsonl", columns), "one,two", "toxic,rude")
    assert (task.kind, task.text_columns, task.label_names) == ("multi_label", ("one", "two"), ("toxic", "rude"))
    assert {tuple(row) for row in splits["train"]["label"]} == {(0,), (1,)}


def test_a_folder_in_the_hubs_layout(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    rows = Dataset.from_dict({"text": list("abcd"), "label": [0, 1, 1, 0]}, features=features)
    (tmp_path / "mine" / "data").mkdir(parents=True)
    for split in ("train", "validation", "test"):
        rows.to_parquet(tmp_path / "mine" / "data" / f"{split}-00000-of-00001.parquet")
    task, splits = load_own(tmp_path / "mine", "text", "label")
    assert task.label_names == ("no", "yes") and list(splits) == ["train", "validation"]
    assert splits["validation"]["label"] == [0, 1, 1, 0]


BAD = [
    ("a.csv", "text,label\nx,a\ny\n", "a.csv, line 3: 1 columns, expected the header's 2"),
    ("a.csv", 'text,label\nx,a\n"y,b\n', "unexpected end of data"),
    ("a.csv", "text,label\nx,a\n ,b\n", "a.csv, line 3, column 'text': is empty, expected text"),
    ("a.csv", "text,label\nx,a\ny,\n", "a.csv, line 3, column 'label': is empty, expected a class"),
    ("a.csv", "words,label\nx,a\n", "no column 'text'; it has 'words', 'label'"),
    ("a.csv", "text,text,label\nx,a,b\n", "two columns of one name"),
    ("a.csv", "", "a.csv is empty: give a file with a row of column names"),
    ("a.csv", "text;label\nx;a\n", "no column 'text'; it has 'text;label', parted by ';': .csv wants commas"),
    ("a.csv", "text,label\nx,a\n" + "x" * 200_000 + ",b\n", "field larger than field limit (131072)"),
    ("a.csv", "text,label\nx,a\nn\0,b\n", "line 3, column 'text': is 'n\\x00', expected text"),
    ("a.csv", "text,label\nx,a\ny, \n", "a.csv, line 3, column 'label': is empty, expected a class"),
    ("a.csv", "text,label\nx,1\ny,0\nz,NaN\n", "line 4, column 'label': is 'NaN', expected a class"),
    ("a.csv", "text,label\nx,1.5\ny,0\nz,inf\n", "line 4, column 'label': 'inf', expected a number"),
    ("a.csv", "text,label\n", "has no rows"),
    ("a.csv", "text,label\nx,a\ny,a\n", "one class alone, 'a'"),
    ("a.csv", "text,label\nx,a\ny,b\n", "has 2 rows, too few to hold some out"),
    ("a.csv", "text,label\n" + "".join(f"x,c{i}\n" for i in range(101)), "101 different values, too many for classes"),
    ("a.csv", b"text,label\ncaf\xe9,a\n", "a.csv can't be read"),
    ("a.csv", "text,label\nx,a\n".encode("utf-16"), "a.csv can't be read"),
    ("a.tsv", "text\tlabel\nx\ta\tb\n", "a.tsv, line 2: 3 columns"),
    ("a.jsonl", '{"text": "x", "label": 1}\n{"text"\n', "a.jsonl, line 2 can't be read"),
    ("a.jsonl", '{"text": "x", "label": 1}\n[1]\n', "line 2 can't be read (it holds list, expected an object)"),
    ("a.jsonl", '{"text": "x", "label": 1}\n{"text": "x"}\n', "a.jsonl, line 2: no column 'label'"),
    ("a.jsonl", '{"text": 5, "label": 1}\n{"text": "x", "label": 2}\n', "line 1, column 'text': is 5, expected text"),
    ("a.jsonl", '{"text": "x", "label": null}\n', "line 1, column 'label': is empty, expected a class"),
    ("a.jsonl", '{"text": "x", "label": ["a"]}\n{"text": "x", "label": 7}\n', ": 7, expected a list"),
    ("a.jsonl", '{"text": "x", "label": 1}\n{"text": "y", "label": "a"}\n', "is 'a', others like 1: write all as text"),
    ("a.jsonl", '{"text": "x", "label": {}}\n', "line 1, column 'label': is {}, expected a class"),
    ("a.jsonl", '{"text": "\\ud800", "label": 1}\n{"text": "x", "label": 2}\n', "surrogates not allowed"),
    ("a.jsonl", "[" * 100_000, "a.jsonl, line 1 can't be read"),
    ("a.parquet", b"PAR1", "a.parquet can't be read"),
    ("a.xlsx", "", "a.xlsx' is no file of a kind that is read here: give .csv"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "expected"), BAD)
def test_broken_files_are_one_line(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert expected in fails(tmp_path / name, "text", "label")


def test_labels_that_do_not_fit(tmp_path):
    path = written(tmp_path, "csv", {"text": ["a", "b"] * 6, "label": ["x", "y"] * 6, "n": ["1.5", "high"] * 6})
    assert "line 3, column 'n': 'high', expected a number" in fails(path, "text", "n", kind="regression")
    assert "line 2, column 'label': 'x', expected 0 or 1" in fails(path, "text", "label,n")
    dev = tmp_path / "dev.csv"
    dev.write_text("text,label\na,x\nb,z\n")
    assert "dev.csv, line 3, column 'label': 'z', expected one of x, y" in fails(path, "text", "label", dev=dev)
    assert "different, named columns" in fails(path, "text", "text")
    assert "dev_share is 1.0: give a number above 0 and below 1" in fails(path, "text", "label", dev_share=1.0)
    assert "kind 'words' does not exist" in fails(path, "text", "label", kind="words")
    assert "there is no file" in fails(tmp_path / "none.csv", "text", "label")
    assert "there is no file" in fails(tmp_path / "none", "text", "label")
    (tmp_path / "folder.csv").mkdir()
    assert "could not load folder" in (line := fails(tmp_path / "folder.csv", "text", "label")), line
    assert line.endswith("a folder of such or an id of the hub")


def test_a_column_of_a_table_with_an_unknown_class(tmp_path):
    rows = DatasetDict(train=Dataset.from_dict({"text": ["a"] * 12, "label": [0, -1] * 6}))["train"]
    rows.cast_column("label", ClassLabel(names=["no", "yes"])).to_parquet(tmp_path / "a.parquet")
    assert "row 1, column 'label': '-1', expected one of no, yes" in fails(tmp_path / "a.parquet", "text", "label")


def test_a_tokenizer_that_does_not_know_the_words_is_refused(tmp_path):
    rows = sample_glue("sst2", 50, 5)["train"]
    check_words(TASKS["sst2"], rows, sample_tokenizer())
    strange = rows.map(lambda row: {"sentence": row["sentence"] + " xylophone" * 2})
    with pytest.raises(BitlabError, match=r"\d\d% of the words of SST-2 are unknown .* 'minilm' for English"):
        check_words(TASKS["sst2"], strange, sample_tokenizer())
