"""Your own data from the command line: train, pack, ask and score; and broken files, one line each."""

import io
import json

import pytest
from tiny_models import refused, silent

from bitlab import cli
from bitlab.data.sample import sample_glue
from bitlab.data.tasks import METRICS, Task
from bitlab.experiments import Experiment, run

pytestmark = pytest.mark.usefixtures("cheap", "here")
HEADER = "review\tverdict\n"


TRAIN = "--text review --label verdict --model sample --max-steps 3 --batch-size 8 --schedule W1A2 --output run"
ANSWERS = {"single_label": {"label", "probability", "probabilities"}, "multi_label": {"labels", "probabilities"}}
ANSWERS |= {"regression": {"value"}}


@pytest.mark.parametrize("kind", ANSWERS)
def test_from_a_file_to_a_packed_model_that_answers(here, capsys, monkeypatch, kind):
    rows = sample_glue("sst2", 80, 5)["train"]
    texts, classes = rows["sentence"][:], [("bad", "good")[label] for label in rows["label"]]
    topics = [[word for word in ("not", "really", "film") if word in text] for text in texts]
    labels = {"single_label": classes, "multi_label": topics, "regression": [len(text) / 7 for text in texts]}[kind]
    lines = [json.dumps({"review": text, "verdict": label}) for text, label in zip(texts, labels, strict=True)]
    (here / "reviews.jsonl").write_text("\n".join(lines))
    for _ in range(2):  # the second time it is there already: printed, not run
        assert cli.main(["train", "reviews.jsonl", *TRAIN.split(), "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
    assert (result["task"], result["data"], result["schedule"]) == ("reviews", "reviews.jsonl", "W32A32 -> W1A2")
    assert result["config"]["examples"] == {"train": 72, "validation": 8}
    assert set(result["stages"][1]["metrics"]) == set(METRICS[kind])

    assert cli.main(["pack", "run/W1A2", "packed", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["precision"] == "W1A2" and printed.err == ""
    assert "| W1A2 |" in (here / "packed" / "README.md").read_text()

    monkeypatch.setattr("sys.stdin", io.StringIO("a fine film\na dull film\n"))
    assert cli.main(["predict", "packed"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert cli.main(["predict", "packed", "a fine film", "a dull film", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [set(answer) for answer in answers] == [ANSWERS[kind]] * len(lines) and len(lines) == 2
    assert kind != "single_label" or [line[0] for line in lines] == [answer["label"] for answer in answers]

    scores = []
    for model in ("packed", "run/W1A2"):
        command = ["evaluate", model, "reviews.jsonl", "--text", "review", "--label", "verdict"]
        assert cli.main([*command, "--json"]) == 0
        scores.append(json.loads(capsys.readouterr().out)["score"])
    assert scores[0] == pytest.approx(scores[1], abs=0.01)
    assert cli.main(command) == 0 and "a second" in capsys.readouterr().out


def test_a_task_of_ones_own_in_a_program():
    task = Task("verdicts", text_columns=("sentence",), label_names=("negative", "positive"))
    splits = sample_glue("sst2")
    splits["train"] = splits["train"].select(range(32))
    budget = {"max_steps": 1, "batch_size": 8, "schedule": "W1A1"}
    result = run(Experiment(task, data="mine", **budget), "run", report=silent, splits=splits)
    assert result["task"] == "verdicts" and result["config"]["own_task"]["name"] == "verdicts"


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        ("", "", "reviews.tsv is empty"),
        ("a film\tgood\na cup\tbad\n" * 9, "--kind regression", "'good', expected a number"),
        ("a film\tgood\na cup\tbad\n" * 9, "--dev-share 1", "dev_share is 1.0"),
        ("a film\tgood\na cup\tbad\n" * 9, "--dev nowhere.tsv", "there is no file 'nowhere.tsv'"),
        ("ein Film\tgut\neine Tasse\tschlecht\n" * 9, "", "are unknown to this model's tokenizer"),
    ],
)
def test_broken_files(here, capsys, content, options, says):
    """Each kind of fault that test_own.py makes is refused alike from here."""
    (here / "reviews.tsv").write_text(content and HEADER + content)
    assert says in refused(capsys, "train", "reviews.tsv", *TRAIN.split(), *options.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("predict nowhere/run hello", "nowhere"),
        ("predict sample hello", "untrained"),
        ("evaluate nowhere/run rte", "nowhere"),
        ("evaluate sample imdb", "unknown task 'imdb'"),
        ("evaluate sample x.tsv --text a", "give --text and --label"),
        ("train x.tsv --text a", "required: --label"),
        ("train x.tsv --text a --label a", "give different, named columns"),
    ],
)
def test_bad_arguments(capsys, arguments, says):
    assert says in refused(capsys, *arguments.split())
