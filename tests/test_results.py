"""The table of results: cells over seeds, budgets kept apart, what is missing, formats, and broken files."""

import csv
import io
import json
import random
import shlex
import statistics
from collections import Counter
from dataclasses import asdict

import pandas as pd
import pytest
from tiny_models import real, refused, save

from bitlab import BitlabError, cli, files, results
from bitlab.cli import program
from bitlab.data.glue import load_glue
from bitlab.data.tasks import TASKS, Task, get_task
from bitlab.experiments import Experiment
from bitlab.models import load_model
from bitlab.results import GLUE, SQUAD, frame, load, published, report, tabulate
from bitlab.terminal.options import given

TEACHER, STUDENT = 0.9, 0.7


def result(task="rte", seed=0, score=STUDENT, full=TEACHER, **options):
    """A result file's content, with the configuration that a run would write."""
    options = {"model": "sample", "data": "sample", "schedule": "W1A1"} | options
    experiment = Experiment(task, seed=seed, **options)
    precisions = experiment.precisions
    names = list(get_task(task).metrics) + (["accuracy_mismatched"] if task == "mnli" else [])
    stages = []
    for number, precision in enumerate(precisions):
        value = score if number else full
        record = {"precision": precision, "score": value, "metrics": dict.fromkeys(names, value)}
        stages.append(record | {"steps": 100 * (number + 1), "seconds": 60.0})
    settings = {precision: vars(experiment.settings(precision)) for precision in precisions}
    config = {**vars(experiment), "settings": settings, "examples": {"train": 320, "validation": 50}}
    told = {key: config[key] for key in ("task", "method", "model", "data", "seed", "schedule")}
    machine = {"processor": "some processor", "threads": 1}
    return json.loads(json.dumps({**told, "stages": stages, "config": config, "versions": {}, "machine": machine}))


def store(folder, *contents):
    for number, content in enumerate(contents):
        (folder / f"{number:02}.json").write_text(json.dumps(content))
    return folder


def rows(found, columns=GLUE):
    return list(tabulate(frame(found), columns).itertuples(index=False))


def scores(found, column="RTE", method=None):
    """The column's means, of the students alone, or of one method."""
    lines = tabulate(frame(found))
    lines = lines[lines.method != "full precision" if method is None else lines.method == method]
    return [value for value in lines[column] if not pd.isna(value)]


def students(found, columns=GLUE):
    return [row for row in rows(found, columns) if row.method != "full precision"]


# ------------------------------------------------------------------------------------------------ the frame


def test_the_frame_has_a_row_a_stage():
    """Its numbers are the stage's own; a path counts what its students took, not what their teacher did."""
    runs = frame([result(schedule="W1A4 -> W1A2 -> W1A1", seed=7, epochs=2), result("stsb", teacher="somewhere")])
    assert list(runs.precision) == ["W32A32", "W1A4", "W1A2", "W1A1", "W32A32", "W1A1"]
    assert list(runs.path[:3]) == ["W32A32", "W32A32 -> W1A4", "W32A32 -> W1A4 -> W1A2"]
    assert list(runs.steps[:4]) == [100, 200, 300, 400] and list(runs.total_steps[:4]) == [100, 200, 500, 900]
    assert list(runs.given) == [False] * 4 + [True, False]
    assert (runs.epochs[1], runs.batch_size[1]) == (200 * 32 / 320, 32)  # as trained, not as asked for
    assert runs.spearman[5] == STUDENT and pd.isna(runs.accuracy[5]) and runs.seed[0] == 7
    assert frame([]).empty and set(runs.columns) >= set(frame([]).columns)


def test_a_task_of_ones_own_is_in_the_frame_and_not_in_the_table():
    own = result()
    own["task"], own["config"]["own_task"] = "reviews", asdict(Task("reviews", label_names=("bad", "good")))
    runs = frame(json.loads(json.dumps([own, result()])))
    assert list(runs.task) == ["reviews", "reviews", "rte", "rte"] and runs.accuracy[1] == STUDENT
    assert len(tabulate(runs)) == 2 and "own task" not in report(runs)
    del own["config"]["own_task"]
    with pytest.raises(BitlabError, match="unknown task"):
        frame([own])


def test_own_results_are_read_beside_those_that_come_with_bitlab(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = load()
    assert len(shipped) > 200 and load(results.SHIPPED).equals(shipped)
    run = finished(tmp_path / "mine", result())
    assert cli.main(["results", str(run)]) == 0  # goes to ./results, never into the package
    assert (tmp_path / "results" / "mine.json").exists()
    assert list(load().name.drop_duplicates()) == sorted([*shipped.name.drop_duplicates(), "mine"])
    (tmp_path / "results" / "mine.json").rename(tmp_path / "results" / f"{shipped.name[0]}.json")
    assert set(load().name) == set(shipped.name) and len(load()) < len(shipped) + 2


def test_measurements_are_there_or_refused():
    assert results.measurement("tuning/stsb")["runs"]
    with pytest.raises(BitlabError, match=r"'tuning/nothing'.*choose .*tuning/stsb"):
        results.measurement("tuning/nothing")


# ------------------------------------------------------------------------------------------------ commands


def asked_for(command):
    """The experiment that a command line asks for."""
    name, *words = shlex.split(command)
    assert name == "bitlab"
    return Experiment(**given(Experiment, program.parser().parse_args(words)))


@pytest.mark.parametrize("stored", results.records(results.SHIPPED), ids=lambda stored: stored["name"])
def test_the_command_of_a_stored_row_asks_for_its_experiment(stored):
    found = asked_for(results.command(stored | {"command": None}))  # also where it was stored as it was typed
    assert found == results.experiment(stored)
    trained = found.precisions[1:] if found.teacher else found.precisions
    for precision, settings in ((name, stored["config"]["settings"][name]) for name in trained):
        today = vars(found.settings(precision))
        assert {name: today[name] for name in settings} == settings, "as it was trained then"


def test_a_command_as_it_was_typed_goes_before_the_one_that_follows_from_the_configuration(tmp_path, capsys):
    typed = result(seed=1) | {"command": "bitlab glue rte --seed=1 --schedule W1A1"}
    store(tmp_path, typed, result("cola", epochs=1.5, bf16=True, stage_teacher="full"))
    assert cli.main(["results", "--folder", str(tmp_path), "--commands"]) == 0
    first, second = (line.split("  # ") for line in capsys.readouterr().out.splitlines())
    assert first == [typed["command"], "00"]
    options = {"epochs": 1.5, "bf16": True, "stage_teacher": "full"}
    assert asked_for(second[0]) == Experiment("cola", schedule="W1A1", data="sample", **options)


# ------------------------------------------------------------------------------------------------ rows


def test_mean_and_standard_deviation_over_seeds():
    found = [result(seed=seed, score=score) for seed, score in enumerate((0.70, 0.72, 0.77))]
    line = tabulate(frame(found)).iloc[1]
    assert pytest.approx(73) == line.RTE and line["RTE sd"] == pytest.approx(statistics.stdev([70, 72, 77]))
    assert pd.isna(tabulate(frame(found[:1])).iloc[1]["RTE sd"])


def test_a_complete_row_is_averaged_over_tasks_with_mnli_once():
    scores = {task: 0.5 + number / 100 for number, task in enumerate(TASKS)}
    found = [result(task, seed, score + seed / 50) for task, score in scores.items() for seed in (0, 1)]
    for each in found:
        if each["task"] == "mnli":
            each["stages"][-1]["metrics"]["accuracy_mismatched"] = 0.0
    line = tabulate(frame(found)).iloc[1]
    assert line.missing == "" and line.avg == pytest.approx(100 * statistics.mean(scores.values()) + 1)
    assert line["avg sd"] == pytest.approx(2**0.5 / 8**0.5)
    assert pd.isna(tabulate(frame(found[:-1])).iloc[1]["avg sd"])
    incomplete = tabulate(frame([each for each in found if each["task"] in ("rte", "mrpc")])).iloc[1]
    assert incomplete.missing == "MNLI-m MNLI-mm QQP QNLI SST-2 CoLA STS-B" and pd.isna(incomplete.avg)


def test_tasks_of_very_different_budgets_are_not_averaged():
    """Quick everywhere: equal epochs. As in the paper: equal shares. Both are even; 20 epochs beside 2 are neither."""
    two = [result("rte", preset="full"), result("mrpc", preset="full")]
    for steps, even in ((200, True), (1000, True), (2000, False)):
        two[0]["stages"][1]["steps"] = steps
        row = rows(two, {column: GLUE[column] for column in ("RTE", "MRPC")})[1]
        assert ("different times" in row.notes) is not even and pd.isna(row.avg) is not even
    cola = result("cola", preset="full")  # 50 epochs in the paper, RTE has 20
    cola["stages"][1]["steps"] = 500
    two[0]["stages"][1]["steps"] = 200
    assert not pd.isna(rows([two[0], cola], {column: GLUE[column] for column in ("RTE", "CoLA")})[1].avg)


def test_averages_over_chosen_tasks_are_of_these_alone_also_for_published_rows():
    text = report(frame([result("rte", score=0.6), result("cola", score=0.3)]), ("RTE", "cola"), "csv")
    lines = {(line["method"], line["precision"], line["data"]): line for line in csv.DictReader(io.StringIO(text))}
    assert float(lines["bit", "W1A1", "sample"]["avg"]) == pytest.approx(45)
    assert float(lines["BiT", "W1A1", "published"]["avg"]) == pytest.approx((62.1 + 32.9) / 2)
    assert "SST-2" not in text and "EM" not in text


@pytest.mark.parametrize(
    "other",
    [
        *({"preset": "full"}, {"max_steps": 7}, {"train_examples": 100}, {"epochs": 2, "preset": "full"}),
        *({"learning_rate": 1e-5}, {"batch_size": 4}, {"selection": "best"}, {"hidden_weight": 0.0}),
        *({"model": "minilm"}, {"data": "hub"}, {"method": "bit-released"}, {"schedule": "W1A2 -> W1A1"}),
    ],
    ids=str,
)
def test_runs_of_other_budgets_recipes_and_options_are_kept_apart(other):
    found = students([result(seed=0, score=0.5), result(seed=1, score=0.9, **other)])
    assert sorted(row.RTE for row in found if row.precision == "W1A1") == pytest.approx([50, 90])


def test_the_recipe_that_saw_most_is_in_the_first_row_and_the_other_stays_in_its_own():
    short, long = result(score=0.5, preset="full", epochs=1), result(score=0.6, preset="full", epochs=9)
    short["stages"][1]["steps"] = 5
    lines = tabulate(frame([short, long, result("sst2", preset="full")]))[1:]
    assert list(lines["RTE"]) == pytest.approx([60, 50])
    assert lines["SST-2"].iloc[0] == pytest.approx(70) and pd.isna(lines["SST-2"].iloc[1])


def test_one_seed_counts_once():
    """Two files of the same numbers are one run; with other numbers, another row."""
    assert [row.seeds for row in students([result(), result()])] == ["1"]
    assert [row.seeds for row in students([result(), result(score=0.1), result(seed=1)])] == ["2", "1"]


def test_a_stage_on_the_way_is_a_result_of_its_own_schedule():
    found = [result(schedule="W1A2 -> W1A1", preset="full"), result(schedule="W1A2", preset="full", alpha="carry")]
    assert [row.schedule for row in students(found)] == ["W32A32 -> W1A2", "W32A32 -> W1A2 -> W1A1"]
    assert students(found)[0].seeds == "1"  # the one-step run repeats the stage of the other


def test_full_precision_has_one_row_and_a_teacher_that_was_given_counts_once():
    own = [result(seed=seed, full=0.8 + seed / 10) for seed in (0, 1)] + [result(method="bit-released", full=0.8)]
    assert scores(own, method="full precision") == pytest.approx([85])
    given = [result(seed=seed, teacher="rte") for seed in (0, 1, 2)]
    full = next(row for row in rows(given) if row.method == "full precision")
    assert pytest.approx(90) == full.RTE and full.seeds == "1" and "RTE 1 given model, 100 steps" in full.notes
    given[1]["stages"][0] |= {"seconds": 61.0, "metrics": {"accuracy": 0.8}}
    assert scores(given, method="full precision") == pytest.approx([85])  # two models
    trained = [result(), result(seed=3, teacher="W32A32")]  # one of these runs has trained the other's teacher
    assert next(row for row in rows(trained) if row.method == "full precision").seeds == "1"


def test_mnli_mismatched_alone_does_not_stand_for_matched():
    content = result("mnli")
    content["config"]["examples"] = {"train": 320, "validation_mismatched": 50}
    for stage in content["stages"]:
        del stage["metrics"]["accuracy_mismatched"]
    assert scores([content], "MNLI-m") == [] and scores([content], "MNLI-mm") == pytest.approx([70])


def test_an_option_that_is_new_marks_its_row_and_a_setting_that_is_new_and_usual_does_not():
    new, plain = result(seed=1), result(seed=0)
    del plain["config"]["settings"]["W1A1"]["bf16"]
    assert len(students([new, plain])) == 1
    new["config"]["surprise"] = 20
    assert [row.options for row in students([new, plain])] == ["", "surprise 20"]


def test_augmented_runs_are_rows_of_their_own():
    augmented = result(seed=1)
    augmented["config"] |= {"augment": {"name": "x", "table": "abc"}, "examples": {"train": 320, "augmented": 3200}}
    teacher, plain, other = rows([result(seed=0), augmented])
    assert teacher.method == "full precision", "one row: the teacher is not trained on augmented sentences"
    assert (plain.options, other.options) == ("", "augmented") and pytest.approx(70) == other.RTE
    assert list(frame([augmented]).epochs) == [100 * 32 / 320, 200 * 32 / 3200]


# ------------------------------------------------------------------------------------------------ formats


def test_squad_is_a_table_of_its_own():
    content = result("squad", schedule="W1A1")
    content["stages"][1]["metrics"] = {"exact_match": 0.5, "f1": 0.6}
    (row,) = students([content, result()], SQUAD)
    assert (row.EM, row.F1) == (50, 60) and "RTE" not in report(frame([content, result()]), ("squad",))


def test_the_formats_agree(tmp_path, capsys):
    """Every number of the table of CSV is in the others, rounded to what is shown."""
    found = [result(seed=seed, score=score) for seed, score in enumerate((0.70, 0.75))] + [result("mrpc")]
    store(tmp_path, *found)
    printed = {}
    for name in ("text", "markdown", "csv"):
        assert cli.main(["results", "--folder", str(tmp_path), "--format", name]) == 0
        printed[name] = capsys.readouterr().out
    glue, _ = printed["csv"].rstrip().split("\n\n")
    lines = list(csv.DictReader(io.StringIO(glue)))
    ours = [line for line in lines if line["source"] == "bitlab"]
    assert [(line["RTE"], line["RTE sd"]) for line in ours] == [("90.00", "0.00"), ("72.50", "3.54")]
    assert {(line["method"], line["RTE"]) for line in lines} >= {("BiT", "62.10")}
    for name in ("text", "markdown"):
        assert "72.5 ±3.5" in printed[name]
        assert all(f"{float(line[c]):.1f}" in printed[name] for line in lines for c in GLUE if line[c])
    rows = [line for line in printed["markdown"].splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 2  # of two tables


def test_published_rows_have_the_averages_of_their_scores():
    assert len(published("glue")) == 9 and len(published("glue_augmented")) == 6
    for line in published("glue").to_dict("records"):  # what published/README.md says of the averages
        eight, nine = ([c for c in GLUE if c != left_out] for left_out in ("MNLI-mm", None))
        means = [statistics.mean(line[column] for column in columns) for columns in (eight, nine)]
        if (line["method"], line["precision"]) != ("BinaryBERT", "W1A4"):
            assert abs(means[not line["method"].startswith("BiT")] - line["avg"]) <= 0.06, line["method"]


# ------------------------------------------------------------------------------------------------ files


def edits(content, choose, count=80):
    """Copies of a result in which one value, anywhere, is gone or is another kind of thing."""
    text = json.dumps(content)
    for _ in range(count):
        edited = place = json.loads(text)
        while True:
            key = choose.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not isinstance(place[key], (dict, list)) or not place[key] or choose.random() < 0.2:
                break
            place = place[key]
        if choose.random() < 0.4:
            del place[key]
        else:
            place[key] = choose.choice([None, "many", -1, 1e400, [], {}, [1], {"a": 1}, 5, "", True])
        yield edited


def test_whatever_a_stored_file_holds_is_a_table_or_one_clear_line(tmp_path, capsys):
    contents = [[], {}, 5, None, {"task": "rte"}, *edits(result(schedule="W1A2 -> W1A1"), random.Random(0))]
    texts = ["{", "", "[" * 100_000, *map(json.dumps, contents)]
    refused = 0
    for text in texts:
        (tmp_path / "broken.json").write_text(text)
        code = cli.main(["results", "--folder", str(tmp_path), "--tasks", "rte"])
        err = capsys.readouterr().err
        refused += code == 2
        assert code == 0 or (err.startswith("bitlab: broken.json is no stored result (") and err.count("\n") == 1), text
    assert 30 < refused < len(texts)


def finished(folder, content):
    """A run's folder that holds its result and none of its models."""
    files.write_json(folder / "result.json", content)
    return folder


@pytest.mark.parametrize("content", [{}, [], result() | {"stages": []}], ids=["empty", "list", "stages"])
def test_a_run_without_a_result_is_one_clear_line(here, capsys, content):
    run = finished(here / "run", content)
    assert str(run / "result.json") in refused(capsys, "results", run, "--folder", "stored")


@pytest.mark.parametrize("arguments", [["--format", "html"], ["--tasks", "rte,colla"], ["nowhere"]], ids=str)
def test_bad_arguments(here, capsys, arguments):
    assert arguments[-1].split(",")[-1] in refused(capsys, "results", "--folder", here, *arguments)


def test_storing_a_run_keeps_curves_and_the_cost_of_its_models(tmp_path):
    from bitlab import binarize

    run = finished(tmp_path / "my-run", result())
    for precision in ("W32A32", "W1A1"):
        model = load_model("sample", "rte")
        model = binarize(model) if precision == "W1A1" else model
        save(model, run / precision)
        files.write_json(run / precision / "log.json", [{"step": step, "loss": 1 / step} for step in range(1, 101)])
    path = results.store(run, tmp_path / "a" / "b")
    assert path == tmp_path / "a" / "b" / "my-run.json"
    (stored,) = results.records(tmp_path / "a" / "b")
    assert stored == json.loads(json.dumps(results.collect(run)))
    full, student = load(tmp_path / "a" / "b").itertuples()
    assert student.name == "my-run" and len(student.curve) == 10 and student.curve[-1][0] == 100
    assert full.mib > 8 * student.mib
    (tmp_path / "file").touch()
    with pytest.raises(BitlabError, match="can't be written"):
        results.store(run, tmp_path / "file")
    for entry in ({"loss": 1.0}, {"loss": "1", "step": 1}, 5):
        files.write_json(run / "W1A1" / "log.json", [entry])
        with pytest.raises(BitlabError, match=r"W1A1/log\.json is damaged \(.*\): delete it"):
            results.collect(run)


def test_a_stored_result_is_not_replaced_by_another_runs(tmp_path):
    stored = results.store(finished(tmp_path / "a" / "run", result()), tmp_path)
    before = stored.read_text()
    assert results.store(tmp_path / "a" / "run", tmp_path) == stored and stored.read_text() == before
    slower = result()
    slower["stages"][1]["seconds"] = 99.0  # the same run, measured again
    results.store(finished(tmp_path / "b" / "run", slower), tmp_path)
    assert load(tmp_path).seconds[1] == 99
    for other in (result(score=0.1), result(seed=1), result("mrpc"), result(learning_rate=1e-5)):
        with pytest.raises(BitlabError, match=r"run\.json is not this run's result: rename .* or move"):
            results.store(finished(tmp_path / "c" / "run", other), tmp_path)
        assert load(tmp_path).seconds[1] == 99
    for content in ("{", '{"years": "of work"}'):
        stored.write_text(content)
        with pytest.raises(BitlabError, match=r"run\.json is not this run's result"):
            results.store(tmp_path / "c" / "run", tmp_path)
        assert stored.read_text() == content


def test_a_general_distillation_is_no_result(here, capsys):
    files.write_json(here / "general" / "experiment.json", {"model": "minilm", "precision": "W1A1"})
    files.write_json(here / "begun" / "experiment.json", {"task": "rte", "model": "minilm"})
    for name, says in (("general", "holds a general distillation"), ("begun", "to finish it")):
        assert says in refused(capsys, "results", name, "--folder", "stored")


@pytest.mark.parametrize("column", ["SST-2", "MRPC", "RTE"])
def test_what_always_the_same_answer_scores(column):
    """The others are correlations, which are 0 for an answer that never changes."""
    labels = load_glue(GLUE[column][0], real("glue"))["validation"]["label"]
    assert round(100 * max(Counter(labels).values()) / len(labels), 1) == results.CONSTANT[column]
