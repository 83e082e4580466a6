"""Asking and scoring trained models: float, binary and packed, of every kind of task."""

import json
import re

import pytest
import torch
from datasets import Dataset, DatasetDict
from tiny_models import same, save, warm_up
from transformers import pipeline

from bitlab import BitConfig, binarize, cli, files
from bitlab.data.sample import sample_glue, sample_squad, sample_tokenizer
from bitlab.data.tasks import SQUAD, TASKS, Task, get_task
from bitlab.errors import BitlabError
from bitlab.experiments import evaluate as evaluate_prepared
from bitlab.experiments.card import card
from bitlab.experiments.prepared import prepare
from bitlab.heads import task_of
from bitlab.inference import evaluate, predict
from bitlab.models import load_any, load_model, load_tokenizer
from bitlab.packed import backends, load_packed, save_packed

TEXTS = ["the plot is not dull", "the hero is warm and the music is really very lovely", "the film is cold"]
PAIRS = [("the red cup is in the garden", "the cup is red"), ("the girl sold the lamp", "the lamp is not blue")]
TOPICS = Task("topics", "multi_label", ("text",), ("art", "war", "sea"))
KINDS = ["float", "binary", "packed"]


def saved(folder, task, kind="float"):
    """A folder with a model of the task, its weights random, its alphas set."""
    model = load_model("sample", task)
    if kind != "float":
        inputs = sample_tokenizer()(TEXTS, padding=True, return_tensors="pt")
        warm_up(binarize(model, BitConfig(1, 1)), **inputs)
    (save_packed if kind == "packed" else save)(model, folder)
    sample_tokenizer().save_pretrained(folder)
    return folder


def logits(folder, *texts):
    """One text at a time, without padding."""
    with torch.no_grad():
        return torch.cat([load_any(folder)(**sample_tokenizer()(*row, return_tensors="pt")).logits for row in texts])


@pytest.mark.parametrize("kind", KINDS)
def test_a_classifier_says_label_and_probabilities_in_the_order_of_the_texts(tmp_path, kind):
    folder = saved(tmp_path / "model", "sst2", kind)
    found = predict(folder, TEXTS, batch_size=2)
    for row, answer in zip(logits(folder, *([text] for text in TEXTS)).softmax(1), found, strict=True):
        assert list(answer["probabilities"]) == ["negative", "positive"]
        assert list(answer["probabilities"].values()) == pytest.approx(row.tolist(), abs=1e-4)
        assert answer["label"] == ["negative", "positive"][row.argmax()]
        assert answer["probability"] == answer["probabilities"][answer["label"]]
    assert predict(load_any(folder), TEXTS[0], tokenizer=sample_tokenizer()) == predict(folder, TEXTS[:1])
    assert predict(folder, []) == []


def test_padding_stands_on_the_right_whatever_the_tokenizer_says(tmp_path):
    """A head reads the first token of a sentence, not of its padding."""
    folder, left = saved(tmp_path, "sst2"), sample_tokenizer()
    expected = predict(folder, TEXTS)
    left.padding_side = "left"
    assert predict(load_any(folder), TEXTS, tokenizer=left) == expected
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    files.write_json(folder / "tokenizer_config.json", settings | {"padding_side": "left"})
    assert predict(folder, TEXTS) == expected
    assert load_tokenizer(folder).padding_side == "right"


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_pipelines_take_the_models(tmp_path, kind):
    folder = saved(tmp_path / "model", "sst2", kind)
    found = pipeline("text-classification", model=str(folder))(TEXTS)
    for theirs, ours in zip(found, predict(folder, TEXTS), strict=True):
        assert theirs["label"] == ours["label"] and theirs["score"] == pytest.approx(ours["probability"], abs=1e-4)


def test_pairs_regressions_and_several_labels(tmp_path):
    folder = saved(tmp_path / "pairs", "rte")
    expected = logits(folder, *PAIRS).softmax(1)
    assert [a["probabilities"]["entailment"] for a in predict(folder, PAIRS)] == pytest.approx(expected[:, 0].tolist())
    folder = saved(tmp_path / "number", "stsb")
    expected = logits(folder, *PAIRS)[:, 0].tolist()
    assert [a["value"] for a in predict(folder, PAIRS)] == pytest.approx(expected, abs=1e-5)
    folder = saved(tmp_path / "topics", TOPICS)
    answers, rows = predict(folder, TEXTS), logits(folder, *([text] for text in TEXTS))
    for answer, row in zip(answers, rows, strict=True):
        assert list(answer["probabilities"].values()) == pytest.approx(row.sigmoid().tolist(), abs=1e-5)
        assert answer["labels"] == [name for name, value in zip(TOPICS.label_names, row) if value > 0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_question_answerer_reads_its_context(tmp_path, kind):
    folder = saved(tmp_path / "model", "squad", kind)
    several_windows = "the king sold the red lamp . the boy is happy . " * 12
    contexts = ["the cook is in the kitchen .", several_windows]
    found = predict(folder, ["where is the cook ?", "what did the king sell ?"], contexts)
    assert all(answer["answer"] and answer["answer"] in text for answer, text in zip(found, contexts, strict=True))
    assert predict(folder, ["where is the cook ?"], contexts[0]) == found[:1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["mnli", "stsb", "squad"])
def test_a_score_is_that_of_the_experiments(tmp_path, task, kind):
    folder = saved(tmp_path / "model", task, kind)
    result = evaluate(folder, task, "sample")
    data = prepare(SQUAD if task == "squad" else TASKS[task], "sample", sample_tokenizer(), train_examples=8)
    trainable = saved(tmp_path / "latent", task, "binary") if kind == "packed" else folder
    score, metrics = evaluate_prepared(load_any(trainable), data)
    assert result["metrics"] == pytest.approx(metrics, abs=0.003) and result["score"] == pytest.approx(score, abs=0.003)
    assert result["precision"] == ("W32A32" if kind == "float" else "W1A1") and result["task"] == task
    assert result["examples"] == (1000 if task == "mnli" else 500) and result["sentences_per_second"] > 0


@pytest.mark.parametrize(("task", "splits"), [("mnli", sample_glue("mnli", 40, 20)), ("squad", sample_squad(40, 20))])
def test_any_split_is_scored_that_has_labels(tmp_path, capsys, task, splits):
    folder = saved(tmp_path / "model", task)
    for name in splits:
        found, rows = evaluate(folder, task, splits, split=name), evaluate(folder, task, splits[name])
        assert found["metrics"] == rows["metrics"] and found["examples"] == len(splits[name])
    splits = DatasetDict(splits, test=splits["train"])
    for data, name, says in (
        (splits, "dev", "split 'dev' does not exist: choose train"),
        (splits, "test", "'test' does not exist"),
        (splits["train"], "train", "have no split 'train'"),
    ):
        with pytest.raises(BitlabError, match=says):
            evaluate(folder, task, data, split=name)
    assert cli.main(["evaluate", str(folder), task, "--data", "sample", "--split", "train"]) == 0
    assert f"on {task}, train:" in capsys.readouterr().out


def test_a_model_is_scored_in_its_own_label_order_on_data_of_your_own(tmp_path):
    rows = sample_glue("rte", 5, 40)["validation"]
    own = Task("mine", text_columns=("sentence1", "sentence2"), label_names=("not_entailment", "entailment"))
    folder = saved(tmp_path / "model", own)
    swapped = evaluate(folder, "rte", rows)
    mine = Dataset.from_dict({c: rows[c] for c in own.text_columns} | {"label": [1 - label for label in rows["label"]]})
    assert evaluate(folder, own, mine)["metrics"] == swapped["metrics"]


@pytest.mark.parametrize("task", ["sst2", "rte", "squad"])
def test_a_model_card_says_what_the_model_is_and_its_program_runs(tmp_path, monkeypatch, task):
    monkeypatch.chdir(tmp_path)
    model = load_any(saved(tmp_path / "W1A1", task, "binary"))
    record = {"precision": "W1A1", "score": 0.5, "metrics": {"f1": 0.25, "exact_match": 0.75}, "steps": 1200}
    text = card(model, get_task(task), "W1A1", record, schedule="W32A32 -> W1A1", teacher="W32A32", start=None)
    assert "| teacher | W32A32 |" in text and "0.500 (f1 0.250" in text and "start" not in text
    (program,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(program, {})


def test_what_answers_nothing_is_one_line(tmp_path):
    folder = saved(tmp_path / "model", "sst2")
    save(load_model("sample"), tmp_path / "encoder")
    for call, says in (
        (lambda: predict(tmp_path / "encoder", TEXTS), "a BertModel answers nothing"),
        (lambda: evaluate(tmp_path / "encoder", "sst2", "sample"), "not trained for sst2"),
        (lambda: predict("sample", TEXTS), "'sample' is untrained"),
        (lambda: predict(load_any(folder), TEXTS), "needs its tokenizer"),
        (lambda: predict(folder, TEXTS, "a context"), "a context goes with a question answerer"),
        (lambda: predict(folder, [*TEXTS, 5]), "5 is no text"),
        (lambda: predict(folder, [*PAIRS, "one"]), "some texts are no pairs"),
        (lambda: predict(folder, TEXTS, batch_size=0), "batch_size is 0"),
        (lambda: evaluate(folder, "rte", "sample"), "has the labels negative, positive; rte has entailment"),
    ):
        with pytest.raises(BitlabError, match=says):
            call()


def test_the_task_of_a_model():
    for task in (TASKS["mnli"], TASKS["stsb"], TOPICS, SQUAD):
        found = task_of(load_model("sample", task))
        assert (found.kind, found.label_names) == (task.kind, task.label_names)


# ------------------------------------------------------------------------------------------------ shipped models

REVIEWS = """a lovely film. the plot is dull. it is not bad at all. I would watch it again tomorrow. two hours that I
will never get back. the cast tries hard, but the script lets everybody down. funny, warm and never too long. who paid
for this? a small story, told with great care. the music is the best of it. nothing happens, and then it ends. one of
the year's finest. slow. an honest portrait of a town that nobody visits. it looks expensive and feels cheap. my
children laughed from beginning to end. neither clever nor kind. the ending saves it. you have seen all of this before,
and better. a joy""".replace("\n", " ").split(". ")


def test_a_shipped_model_is_loaded_asked_and_scored_by_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(files, "ZOO", tmp_path)
    folder = saved(tmp_path / "tiny-w1a1", "sst2", "packed")
    monkeypatch.chdir(tmp_path.parent)
    assert same(load_packed("tiny-w1a1").state_dict(), load_packed(folder).state_dict())
    assert predict("tiny-w1a1", TEXTS) == predict(folder, TEXTS)
    assert cli.main(["predict", "tiny-w1a1", TEXTS[0]]) == 0
    assert re.match(r"(negative|positive)", capsys.readouterr().out)
    assert evaluate("tiny-w1a1", "sst2", "sample")["precision"] == "W1A1"


def test_options_stand_anywhere_and_columns_are_asked_for(tmp_path, capsys):
    folder = str(saved(tmp_path / "tiny", "sst2", "packed"))
    assert cli.main(["predict", folder, "--json", TEXTS[0]]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1
    rows = tmp_path / "rows.csv"
    rows.write_text("review,kind\na film,positive\n")
    assert cli.main(["evaluate", folder, str(rows)]) == 2
    assert "--text COLUMN --label COLUMN" in capsys.readouterr().err


@pytest.mark.parametrize("name", files.zoo())  # skipped while none is shipped
def test_a_shipped_model_answers_alike_in_every_backend(name):
    model, found = load_any(name), {}
    texts = list(zip(REVIEWS, reversed(REVIEWS), strict=True)) if name.startswith("stsb") else REVIEWS
    for backend in backends.available():
        with backends.use(backend):
            found[backend] = predict(name, texts)
    first, *others = found.values()
    assert len(first) == len(REVIEWS) > 15
    for other in others:
        for a, b in zip(first, other, strict=True):
            assert a.get("label") == b.get("label")
            numbers = [list(answer.get("probabilities", {"value": answer.get("value")}).values()) for answer in (a, b)]
            assert numbers[0] == pytest.approx(numbers[1], abs=1e-4)
    assert model.config.quantization_config.quant_method == "bitlab_packed"
    assert (files.ZOO / name / "README.md").is_file()


def test_what_is_shipped_is_small():
    assert sum(file.stat().st_size for file in files.ZOO.rglob("*") if file.is_file()) <= 16 * 2**20
