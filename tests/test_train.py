"""Your own data from the command line: train, pack, ask and score; and broken files, one line each."""

import io
import json

import pytest
import torch

from bitlab import cli
from bitlab.data.sample import sample_glue
from bitlab.data.tasks import Task, get_task
from bitlab.experiments import Experiment, run

HEADER = "review\tverdict\n"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BITLAB_COMPILE", "off")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


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
    result = run(Experiment(task, data="mine", **budget), "run", report=lambda line: None, splits=splits)
    assert result["task"] == "verdicts" and result["config"]["own_task"]["name"] == "verdicts"


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        (HEADER, "", "reviews.tsv has no rows"),
        ("", "", "reviews.tsv is empty"),
        (HEADER + "a film\tgood\n" * 20, "", "one class alone"),
        (HEADER + "a film\tgood\n\tbad\n" * 9, "", "line 3, column 'review': is empty"),
        (HEADER + "a film\tgood\textra\n" * 9, "", "line 2: 3 columns, expected the header's 2"),
        (HEADER + "a film\tgood\na cup\tbad\n" * 9, "--kind regression", "'good', expected a number"),
        (HEADER + "a film\tgood\na cup\tbad\n", "", "too few to hold some out"),
        (HEADER + "a film\tgood\na cup\tbad\n" * 9, "--dev-share 1", "dev_share is 1.0"),
        (HEADER + "a film\tgood\na cup\tbad\n" * 9, "--dev nowhere.tsv", "there is no file 'nowhere.tsv'"),
        (HEADER + "ein Film\tgut\neine Tasse\tschlecht\n" * 9, "", "are unknown to this model's tokenizer"),
        (b"review\tverdict\n\xff\xfe\tgood\n", "", "reviews.tsv can't be read"),
    ],
)
def test_broken_files(here, capsys, content, options, says):
    path = here / "reviews.tsv"
    path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)
    assert cli.main(["train", "reviews.tsv", *TRAIN.split(), *options.split()]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1 and not (here / "run").exists()


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
    assert cli.main(arguments.split()) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1
