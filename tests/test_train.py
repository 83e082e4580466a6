"""Your own data from the command line: train, pack, ask and score; and broken files, one line each."""

import io
import json

import pytest
from tiny_models import refused, silent

from bitlab import cli
from bitlab.data.sample import sample_glue
from bitlab.data.tasks import Task, get_task
from bitlab.experiments import Experiment, run

pytestmark = pytest.mark.usefixtures("cheap", "here")
HEADER = "review\tverdict\n"


@pytest.fixture
def reviews(here):
    rows = sample_glue(get_task("sst2"))["train"].select(range(80))
    lines = [f"{row['sentence']}\t{('bad', 'good')[row['label']]}\n" for row in rows]
    (here / "reviews.tsv").write_text(HEADER + "".join(lines))
    return here / "reviews.tsv"


TRAIN = "--text review --label verdict --model sample --max-steps 3 --batch-size 8 --schedule W1A2 --output run"


def test_from_a_file_to_a_packed_model_that_answers(reviews, capsys, monkeypatch):
    assert cli.main(["train", str(reviews), *TRAIN.split(), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["task"], result["data"], result["schedule"]) == ("reviews", "reviews.tsv", "W32A32 -> W1A2")
    assert result["config"]["examples"] == {"train": 72, "validation": 8}
    assert result["config"]["own_task"]["label_names"] == ["bad", "good"]
    assert cli.main(["train", str(reviews), *TRAIN.split(), "--json"]) == 0  # finished: printed, not run
    assert json.loads(capsys.readouterr().out) == result

    assert cli.main(["pack", "run/W1A2", "packed", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["precision"] == "W1A2" and printed.err == ""

    monkeypatch.setattr("sys.stdin", io.StringIO("a fine film\na dull film\n"))
    assert cli.main(["predict", "packed"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2 and all(label in ("bad", "good") and 0.5 <= float(p) <= 1 for label, p in lines)
    assert cli.main(["predict", "packed", "a fine film", "a dull film", "--json"]) == 0
    assert [each["label"] for each in json.loads(capsys.readouterr().out)] == [label for label, _ in lines]

    scores = {}
    for model in ("packed", "run/W1A2"):
        command = ["evaluate", model, str(reviews), "--text", "review", "--label", "verdict"]
        assert cli.main([*command, "--json"]) == 0
        scores[model] = json.loads(capsys.readouterr().out)["score"]
    assert scores["packed"] == scores["run/W1A2"]
    assert cli.main(command) == 0
    assert "a second" in capsys.readouterr().out


def test_a_task_of_ones_own_in_a_program(reviews):
    task = Task("verdicts", text_columns=("sentence",), label_names=("negative", "positive"))
    splits = sample_glue(get_task("sst2"))
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
