"""Reading the GLUE tasks from the original files, from the hub's parquet files and from the sample generator."""

import time
from functools import partial
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict
from tiny_models import real, refusal

from bitlab.data import sources
from bitlab.data.glue import encode, load_glue
from bitlab.data.sample import sample_glue, sample_tokenizer
from bitlab.data.sources import resolve_source
from bitlab.data.squad import load_squad
from bitlab.data.tasks import TASKS, Task, get_glue_task, get_task
from bitlab.errors import BitlabError

# One file a task in the original layout: two rows with the labels 1 and 0 of the hub (STS-B: 4.2 and 0).
MNLI_HEADER = "index\tpromptID\tpairID\tgenre\tsentence1\tsentence2\tlabel1\tgold_label\n"
MRPC_HEADER = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
FILES = {
    "cola": "gj04\t1\t\tShe left.\ngj04\t0\t*\tShe leave .\n",
    "sst2": "sentence\tlabel\na lovely film \t1\ndull \t0\n",
    "mrpc": MRPC_HEADER + '1\t1\t2\tHe said " yes .\tHe agreed .\n0\t3\t4\tA .\tB .\n',
    "stsb": "index\tgenre\tsentence1\tsentence2\tscore\n0\tx\tA man.\tA boy.\t4.200\n1\tx\tA cat.\tA car.\t0.000\n",
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n7\t1\t2\tWhy?\tHow come?\t1\n8\t3\t4\tWhy?\tWho?\t0\n",
    "mnli": MNLI_HEADER
    + "0\tn\tn\tn\tHe sat.\tHe rested.\tneutral\tneutral\n1\tn\tn\tn\tA b.\tA.\tneutral\tentailment\n",
    "qnli": "index\tquestion\tsentence\tlabel\n0\tWho?\tIt rained.\tnot_entailment\n1\tWho?\tAnn did.\tentailment\n",
    "rte": "index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\tnot_entailment\n1\tA b.\tA.\tentailment\n",
}
COUNTS = {"cola": (8551, 1043), "sst2": (67349, 872), "mrpc": (3668, 408)}  # train, dev of the original GLUE files
COUNTS |= {"stsb": (5749, 1500), "qnli": (104743, 5463), "rte": (2490, 277)}


def write(root: Path, task: str, text: str, name: str = "train.tsv") -> Path:
    folder = root / TASKS[task].folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(text.encode())
    return folder


fails = partial(refusal, load_glue)


@pytest.mark.parametrize("task", FILES)
def test_every_layout_is_read_with_the_hubs_columns_and_labels(tmp_path, task):
    write(tmp_path, task, FILES[task])
    rows = load_glue(task, tmp_path)["train"]
    assert rows.column_names == [*TASKS[task].text_columns, "label", "idx"]
    assert rows["idx"] == [0, 1]
    if task == "stsb":
        assert rows.features["label"].dtype == "float32"
        assert rows["label"][:] == pytest.approx([4.2, 0.0])
    else:
        assert rows.features["label"] == ClassLabel(names=list(TASKS[task].label_names))
        assert rows["label"] == [1, 0]


def test_label_order_of_mnli_is_the_hubs(tmp_path):
    row = "0\tn\tn\tn\tA.\tB.\tneutral\t{}\n"
    text = MNLI_HEADER + "".join(row.format(name) for name in ("entailment", "neutral", "contradiction"))
    write(tmp_path, "mnli", text, "dev_matched.tsv")
    write(tmp_path, "mnli", text, "dev_mismatched.tsv")
    splits = load_glue("mnli", tmp_path)
    assert sorted(splits) == ["validation_matched", "validation_mismatched"]
    assert splits["validation_matched"]["label"] == [0, 1, 2]


def test_quote_marks_and_other_line_breaks_are_text(tmp_path):
    sentence = 'he said " one\u2028line\u0085here'
    write(tmp_path, "sst2", f"\ufeffsentence\tlabel\r\n{sentence}\t1\r\n")
    assert load_glue("sst2", tmp_path)["train"]["sentence"] == [sentence]


def test_folder_may_be_the_root_the_one_above_or_the_tasks_own(tmp_path):
    folder = write(tmp_path / "glue", "rte", FILES["rte"], "dev.tsv")
    for place in (tmp_path, tmp_path / "glue", folder, str(folder)):
        assert list(load_glue("rte", place)) == ["validation"]


def test_test_split_has_no_labels(tmp_path):
    write(tmp_path, "cola", FILES["cola"])
    write(tmp_path, "cola", "index\tsentence\n0\tBill left.\n", "test.tsv")
    test = load_glue("cola", tmp_path)["test"]
    assert (test["sentence"][0], test["label"][0]) == ("Bill left.", -1)


@pytest.mark.parametrize("name", ["{}-00000-of-00001.parquet", "{}.parquet"])
def test_hub_layout_folder(tmp_path, name):
    sample = sample_glue("rte", 20, 10)
    (tmp_path / "rte").mkdir()
    for split, rows in sample.items():
        rows.to_parquet(tmp_path / "rte" / name.format(split))
    loaded = load_glue("rte", tmp_path)
    assert list(loaded) == ["train", "validation"]
    assert loaded["train"].features == sample["train"].features
    assert loaded["validation"].to_list() == sample["validation"].to_list()


def test_hub_layout_with_another_label_order_is_refused(tmp_path):
    rows = sample_glue("rte", 20, 10)["train"].cast_column("label", ClassLabel(names=["not_entailment", "entailment"]))
    (tmp_path / "rte").mkdir()
    rows.to_parquet(tmp_path / "rte" / "train-00000-of-00001.parquet")
    assert "expected ['entailment', 'not_entailment']" in fails("rte", tmp_path)


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("sentence2", ["a", None], "row 1: column 'sentence2' is empty, expected text"),
        ("sentence1", [1, 2], "column 'sentence1' holds int64, expected text"),
        ("label", [0, None], "row 1: column 'label' is empty, expected a class from 0 to 1"),
        ("label", [0, -1], "row 1: label -1, expected a class from 0 to 1"),
        ("label", [7, 0], "row 0: label 7, expected a class from 0 to 1"),
        ("label", ["yes", "no"], "column 'label' holds string, expected a class from 0 to 1"),
        ("label", [0.5, 1.0], "column 'label' holds double"),
    ],
)
def test_wrong_rows_of_parquet_files_name_split_row_and_column(tmp_path, column, values, expected):
    columns = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [0, 1], "idx": [0, 1]} | {column: values}
    Dataset.from_dict(columns).to_parquet(tmp_path / "train.parquet")
    message = fails("rte", tmp_path)
    assert expected in message and "split 'train'" in message


def test_parquet_files_that_are_none(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and no more")
    assert "train.parquet can't be read" in fails("rte", tmp_path)


def test_a_task_of_your_own(tmp_path):
    """The same reader, checks and metrics as GLUE's."""
    task = Task("reviews", text_columns=("text",), label_names=("bad", "good"))
    assert (task.title, task.metrics, task.problem_type) == ("reviews", ("accuracy",), "single_label_classification")
    (tmp_path / "train.tsv").write_text("text\tlabel\nfine\tgood\nno\tbad\n")
    rows = load_glue(task, tmp_path)["train"]
    assert rows["label"] == [1, 0] and rows.features["label"].names == ["bad", "good"]
    again = load_glue(task, DatasetDict(train=rows.remove_columns("idx").select([1])))["train"]
    assert again.to_list() == [{"text": "no", "label": 0, "idx": 0}]
    (tmp_path / "train.tsv").write_text("text\tlabel\nfine\tgreat\n")
    assert "line 2: label 'great', expected 'bad' or 'good'" in fails(task, tmp_path)
    assert "no task of sample" in fails(task, "sample")


def test_several_labels_and_regressions_of_your_own(tmp_path):
    topics = Task("topics", "multi_label", ("text",), ("art", "war"))
    (tmp_path / "train.tsv").write_text("text\tlabel\na\tart,war\nb\t\n")
    rows = load_glue(topics, tmp_path)["train"]
    assert rows["label"] == [[0, 1], []]
    assert encode(rows, topics, sample_tokenizer())["labels"] == [[1.0, 1.0], [0.0, 0.0]]
    stars = Task("stars", "regression", ("text",))
    (tmp_path / "train.tsv").write_text("text\tlabel\na\t-7.5\n")
    assert load_glue(stars, tmp_path)["train"]["label"] == [-7.5]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"kind": "tokens"}, "kind of task 'tokens' does not exist: choose single_label, multi_label"),
        ({"label_names": ("one",)}, "give 2 label_names or more"),
        ({"label_names": ("one", "one")}, "give 2 label_names or more"),
        ({"kind": "regression", "label_names": ("one",)}, "has no classes"),
        ({"label_names": ("a", "b"), "text_columns": ()}, "has 0 text columns: give one or two"),
    ],
)
def test_tasks_that_make_no_sense(options, expected):
    with pytest.raises(BitlabError, match=expected):
        Task("mine", **options)


@pytest.mark.parametrize(
    ("task", "text", "expected"),
    [
        ("rte", FILES["rte"] + "2\tonly three\tentailment\n", "line 4: expected 4 tab-separated columns"),
        ("rte", FILES["rte"] + "\n2\tA.\tB.\tentailment\n", "line 4: expected 4 tab-separated columns"),
        ("rte", FILES["rte"] + "2\tA.\tB.\tmaybe\n", "line 4: label 'maybe', expected 'entailment' or 'not_entail"),
        ("rte", FILES["rte"] + "2\tA.\t \tentailment\n", "line 4: column 'sentence2' is empty"),
        ("mnli", FILES["mnli"] + "2\tn\tn\tn\tA.\tB.\tneutral\t-\n", "line 4: label '-', expected 'entailment' or"),
        ("mrpc", FILES["mrpc"] + "2\t1\t2\tA .\tB .\n", "line 4: label '2', expected '0' or '1'"),
        ("cola", FILES["cola"] + "gj04\tx\t\tA.\n", "line 3: label 'x', expected '0' or '1'"),
        ("cola", "gj04\t1\tno text\n", "line 1: expected 4 tab-separated columns"),
        ("stsb", FILES["stsb"] + "2\tx\tA.\tB.\thigh\n", "line 4: label 'high', expected a number from 0 to 5"),
        ("stsb", FILES["stsb"] + "2\tx\tA.\tB.\tnan\n", "line 4: label 'nan', expected a number from 0 to 5"),
        ("stsb", FILES["stsb"] + "2\tx\tA.\tB.\t5.1\n", "line 4: label '5.1', expected a number from 0 to 5"),
        ("qqp", FILES["qqp"] + "9\t5\t6\tWhy?\n", "line 4: expected 6 tab-separated columns"),
        ("sst2", "", "is empty"),
        ("sst2", "\n", "is empty"),
        ("sst2", "sentence\tlabel\n", "has no examples"),
    ],
)
def test_wrong_rows_name_file_line_and_what_was_expected(tmp_path, task, text, expected):
    message = fails(task, write(tmp_path, task, text))
    assert expected in message
    assert "train.tsv" in message


@pytest.mark.parametrize("step", [1, 3, 6])
@pytest.mark.parametrize("task", FILES)
def test_another_tasks_file_is_recognised(tmp_path, task, step):
    names = list(FILES)
    other = names[(names.index(task) + step) % len(names)]
    message = fails(task, write(tmp_path, other, FILES[other]))
    assert f"This looks like {TASKS[other].title}." in message
    assert "line 1" in message


def test_text_that_is_no_utf8(tmp_path):
    folder = write(tmp_path, "sst2", FILES["sst2"])
    (folder / "dev.tsv").write_bytes(b"sentence\tlabel\nfine\t1\ncaf\xe9\t1\n")
    assert "dev.tsv, line 3: not UTF-8" in fails("sst2", tmp_path)


def test_missing_folder_and_missing_files(tmp_path):
    assert "does not exist" in fails("rte", tmp_path / "nowhere")
    message = fails("rte", tmp_path)
    assert "no RTE files" in message
    assert "RTE/train.tsv or dev.tsv" in message
    (tmp_path / "file").write_text("x")
    assert "is a file, not a folder" in fails("rte", tmp_path / "file")


def test_a_complete_qqp_may_have_a_few_broken_rows(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("bitlab.data.glue.QQP_COMPLETE", 4)
    write(tmp_path, "qqp", FILES["qqp"] + "9\t5\t6\tcut\n")
    assert load_glue("qqp", tmp_path)["train"].num_rows == 2
    assert "line 4" in caplog.text
    monkeypatch.setattr("bitlab.data.glue.QQP_BROKEN", 0)
    assert "line 4" in fails("qqp", tmp_path)


def test_auto_prefers_the_folder_then_the_hub_then_sample(tmp_path, monkeypatch):
    monkeypatch.delenv("BITLAB_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source, why = resolve_source("auto")
    assert source == "sample"
    assert "switched off" in why
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(sources, "_hub_answers", lambda endpoint: True)
    assert resolve_source()[0] == "hub"
    monkeypatch.setattr(sources, "_hub_answers", lambda endpoint: False)
    assert resolve_source()[0] == "sample"
    monkeypatch.setenv("BITLAB_DATA", str(tmp_path))
    assert resolve_source("auto")[0] == str(tmp_path)
    assert resolve_source("sample")[0] == "sample"
    monkeypatch.setenv("BITLAB_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(BitlabError, match="BITLAB_DATA"):
        resolve_source("auto")


def test_hub_check_gives_up_in_time(monkeypatch):
    def hang(*args, **kwargs):
        time.sleep(5)
        raise OSError

    monkeypatch.setattr(sources, "HUB_CHECK_SECONDS", 0.2)
    monkeypatch.setattr(sources.urllib.request, "urlopen", hang)
    sources._hub_answers.cache_clear()
    started = time.perf_counter()
    assert sources._hub_answers("http://hub.invalid") is False
    assert time.perf_counter() - started < 2
    sources._hub_answers.cache_clear()


def test_hub_that_fails_is_one_line(monkeypatch):
    def fail(*args):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(sources, "load_dataset", fail)
    assert "no route" in fails("rte", "hub")
    with pytest.raises(BitlabError, match="could not load rajpurkar/squad from the hub"):
        load_squad("hub")


@pytest.mark.parametrize("task", TASKS)
def test_encode_keeps_order_cuts_and_does_not_pad(task):
    split, tokenizer = sample_glue(task, 30, 10)["train"], sample_tokenizer()
    tokenizer.model_max_length = 8
    rows = encode(split, task, tokenizer)
    assert set(rows.column_names) == {"input_ids", "token_type_ids", "attention_mask", "labels"}
    assert rows["labels"] == split["label"][:]
    assert max(len(ids) for ids in rows["input_ids"]) <= 8
    assert all(len(row["input_ids"]) == sum(row["attention_mask"]) for row in rows)
    pair = len(get_task(task).text_columns) == 2
    assert {t for row in rows for t in row["token_type_ids"]} == ({0, 1} if pair else {0})


def test_encode_in_chunks_equals_encode_at_once(monkeypatch):
    rows = sample_glue("sst2", 30, 10)["train"]
    whole = encode(rows, "sst2", sample_tokenizer())
    monkeypatch.setattr("bitlab.data.glue.ENCODE_CHUNK", 7)
    assert encode(rows, "sst2", sample_tokenizer()).to_list() == whole.to_list()


def test_unknown_tasks_name_the_known_and_the_nearest():
    with pytest.raises(BitlabError, match=r"unknown task 'mrcp': known are cola, .*Did you mean 'mrpc'"):
        get_task("mrcp")
    assert get_task("SST-2") is TASKS["sst2"]
    with pytest.raises(BitlabError, match="no GLUE task"):
        get_glue_task("squad")


def real_folder(task: str) -> Path:
    folder = TASKS[task].folder
    return real(folder, f"glue/{folder}", f"glue-partial/{folder}")


@pytest.mark.parametrize("task", COUNTS)
def test_counts_of_the_real_files(task):
    splits = load_glue(task, real_folder(task))
    expected = dict(zip(("train", "validation"), COUNTS[task], strict=True))
    found = {split: rows.num_rows for split, rows in splits.items() if split in expected}
    assert found == {split: expected[split] for split in found}
    assert "validation" in found


@pytest.mark.parametrize(("task", "split"), [("mnli", "validation_matched"), ("qqp", "validation")])
def test_partial_real_files_are_read_completely(task, split):
    folder = real_folder(task)
    name = "dev_matched.tsv" if task == "mnli" else "dev.tsv"
    lines = (folder / name).read_bytes().count(b"\n")
    assert load_glue(task, folder)[split].num_rows == lines - 1
