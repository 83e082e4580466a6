"""The table of results: cells over seeds, budgets kept apart, what is missing, formats, and broken files."""

import copy
import csv
import io
import json
import os
import statistics
from collections import Counter
from pathlib import Path

import pytest

from bitlab import BitlabError, cli, files, results
from bitlab.data.glue import load_glue
from bitlab.data.tasks import TASKS, get_task
from bitlab.experiments import Experiment
from bitlab.models import load_model, load_tokenizer
from bitlab.results import load, published
from bitlab.results.rows import GLUE, rows, spread
from bitlab.results.table import report

TEACHER, STUDENT = 0.9, 0.7
REAL = Path(os.environ.get("BITLAB_DATA") or Path(__file__).parents[2] / "shared" / "data")


def result(task="rte", seed=0, score=STUDENT, full=TEACHER, **options):
    """A result file's content, with the configuration that a run would write."""
    options = {"model": "sample", "data": "sample", "schedule": "W1A1"} | options
    experiment = Experiment(task, seed=seed, **options)
    precisions = experiment.path.precisions
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


def save(folder, *contents):
    for number, content in enumerate(contents):
        (folder / f"{number:02}.json").write_text(json.dumps(content))
    return folder


def students(found):
    return [row for row in rows(found) if row.method != "full precision"]


def test_mean_and_standard_deviation_over_seeds():
    (row,) = students(result(seed=seed, score=score) for seed, score in enumerate((0.70, 0.72, 0.77)))
    assert row.values("RTE") == pytest.approx([70, 72, 77])
    assert spread(row.values("RTE")) == pytest.approx(statistics.stdev([70, 72, 77])) == pytest.approx(3.6056, abs=1e-4)
    assert row.values("RTE", drop=True) == pytest.approx([20, 18, 13])
    text = report([result(seed=seed, score=score) for seed, score in enumerate((0.70, 0.72, 0.77))])
    assert "73.0 ±3.6" in text and "RTE seeds 0, 1, 2, 200 steps (epochs 20, batch 32, rate 0.0005)" in text
    assert spread([70.0]) is None


def test_a_rate_of_the_scales_that_is_not_usual_is_told():
    assert "(epochs 20, batch 32, rate 0.0005, alpha rate 0.005)" in report([result(alpha_learning_rate=5e-3)])
    assert "alpha rate" not in report([result()])


def test_a_row_says_what_is_missing_and_has_no_average():
    found = [result("rte"), result("mrpc")]
    (row,) = students(found)
    assert row.missing == ["MNLI-m", "MNLI-mm", "QQP", "QNLI", "SST-2", "CoLA", "STS-B"]
    assert row.average is None and row.average_spread is None
    line = next(line for line in report(found).splitlines() if line.startswith("[2] "))
    assert line.count(" - ") >= 7
    assert "without an average: MNLI-m, MNLI-mm, QQP, QNLI, SST-2, CoLA, STS-B" in report(found)


def test_a_complete_row_is_averaged_over_tasks_with_mnli_once():
    scores = {task: 0.5 + number / 100 for number, task in enumerate(TASKS)}
    found = [result(task, seed, score + seed / 50) for task, score in scores.items() for seed in (0, 1)]
    for each in found:
        if each["task"] == "mnli":
            each["stages"][-1]["metrics"]["accuracy_mismatched"] = 0.0
    (row,) = students(found)
    assert row.missing == []
    assert row.average == pytest.approx(100 * statistics.mean(scores.values()) + 1)
    assert row.average_spread == pytest.approx(2**0.5 / 8**0.5)
    del found[-2:]
    assert students(found)[0].average is None


def test_tasks_of_very_different_budgets_are_not_averaged():
    """Quick everywhere: equal epochs. As in the paper: equal shares. Both are even; 20 epochs beside 2 are neither."""
    two = [result("rte", preset="full"), result("mrpc", preset="full")]
    for steps, even in ((200, True), (1000, True), (2000, False)):
        two[0]["stages"][1]["steps"] = steps
        row = rows(two, {column: GLUE[column] for column in ("RTE", "MRPC")})[1]
        assert row.uneven is not even and (row.average is not None) is even
    assert "very different times" in report(two, ("rte", "mrpc"))
    cola = result("cola", preset="full")  # 50 epochs in the paper, RTE has 20
    cola["stages"][1]["steps"] = 500
    two[0]["stages"][1]["steps"] = 200
    assert not rows([two[0], cola], {column: GLUE[column] for column in ("RTE", "CoLA")})[1].uneven


def test_averages_over_chosen_tasks_are_of_these_alone_also_for_published_rows():
    text = report([result("rte", score=0.6), result("cola", score=0.3)], ("RTE", "cola"), "csv")
    lines = {(line["method"], line["precision"], line["data"]): line for line in csv.DictReader(io.StringIO(text))}
    assert float(lines["bit", "W1A1", "sample"]["avg"]) == pytest.approx(45)
    assert float(lines["BiT", "W1A1", "published"]["avg"]) == pytest.approx((62.1 + 32.9) / 2)
    assert "SST-2" not in text and "EM" not in text


@pytest.mark.parametrize(
    "other",
    [
        {"preset": "full"},
        {"max_steps": 7},
        {"train_examples": 100},
        {"epochs": 2, "preset": "full"},
        {"learning_rate": 1e-5},
        {"batch_size": 4},
        {"selection": "best"},
        {"hidden_weight": 0.0},
        {"model": "minilm"},
        {"data": "hub"},
        {"method": "bit-released"},
        {"schedule": "W1A2 -> W1A1"},
    ],
    ids=str,
)
def test_runs_of_other_budgets_recipes_and_options_are_kept_apart(other):
    found = [result(seed=0, score=0.5), result(seed=1, score=0.9, **other)]
    lines = [row for row in students(found) if row.precision == "W1A1"]
    assert sorted(map(tuple, (row.values("RTE") for row in lines))) == [(pytest.approx(50),), (pytest.approx(90),)]


def test_the_recipe_that_saw_most_is_in_the_first_row_and_the_other_stays_in_its_own():
    short, long = result(score=0.5, preset="full", epochs=1), result(score=0.6, preset="full", epochs=9)
    short["stages"][1]["steps"] = 5
    sst2 = result("sst2", preset="full")
    first, second = students([short, long, sst2])
    assert first.values("RTE") == pytest.approx([60]) and first.values("SST-2") == pytest.approx([70])
    assert second.values("RTE") == pytest.approx([50]) and second.values("SST-2") == []


def test_one_seed_counts_once():
    """Two files of the same numbers are one run; with other numbers, another row."""
    (row,) = students([result(), result()])
    assert len(row.values("RTE")) == 1
    assert [len(row.values("RTE")) for row in students([result(), result(score=0.1), result(seed=1)])] == [2, 1]


def test_a_stage_on_the_way_is_a_result_of_its_own_schedule():
    found = [result(schedule="W1A2 -> W1A1", preset="full"), result(schedule="W1A2", preset="full", alpha="carry")]
    assert [row.schedule for row in students(found)] == ["W32A32 -> W1A2", "W32A32 -> W1A2 -> W1A1"]
    assert len(students(found)[0].values("RTE")) == 1  # the one-step run repeats the stage of the other


def test_full_precision_has_one_row_and_a_teacher_that_was_given_counts_once():
    own = [result(seed=seed, full=0.8 + seed / 10) for seed in (0, 1)] + [result(method="bit-released", full=0.8)]
    (row,) = [row for row in rows(own) if row.method == "full precision"]
    assert row.values("RTE") == pytest.approx([80, 90])
    given = [result(seed=seed, teacher="rte") for seed in (0, 1, 2)]
    (row,) = [row for row in rows(given) if row.method == "full precision"]
    assert row.values("RTE") == pytest.approx([90])
    assert "RTE 1 given model, 100 steps" in report(given)
    given[1]["stages"][0] |= {"seconds": 61.0, "metrics": {"accuracy": 0.8}}
    (row,) = [row for row in rows(given) if row.method == "full precision"]
    assert row.values("RTE") == pytest.approx([90, 80])


def test_mnli_mismatched_alone_does_not_stand_for_matched():
    content = result("mnli")
    content["config"]["examples"] = {"train": 320, "validation_mismatched": 50}
    for stage in content["stages"]:
        del stage["metrics"]["accuracy_mismatched"]
    (row,) = students([content])
    assert row.values("MNLI-m") == [] and row.values("MNLI-mm") == pytest.approx([70])


def test_an_option_that_is_new_marks_its_row_and_a_setting_that_is_new_and_usual_does_not():
    new, plain = result(seed=1), result(seed=0)
    del plain["config"]["settings"]["W1A1"]["bf16"]
    assert len(students([new, plain])) == 1
    new["config"]["surprise"] = 20
    assert any("surprise 20" in row.options for row in students([new, plain])) and len(students([new, plain])) == 2


def test_augmented_runs_are_rows_of_their_own():
    augmented = result(seed=1)
    augmented["config"] |= {"augment": {"name": "x", "table": "abc"}, "examples": {"train": 320, "augmented": 3200}}
    teacher, plain, other = rows([result(seed=0), augmented])
    assert teacher.method == "full precision", "one row: the teacher is not trained on augmented sentences"
    assert (plain.options, other.options) == ("", "augmented") and other.values("RTE") == pytest.approx([70])
    assert other.runs["rte"][0].training["epochs"] == 2 and plain.runs["rte"][0].training["epochs"] == 20
    assert "bit, augmented" in report([augmented])


def test_a_given_teacher_that_a_stored_run_trained_is_that_runs():
    given = result(seed=3, teacher="W32A32")
    assert len([row for row in rows([result(), given]) if row.method == "full precision"]) == 1


@pytest.mark.parametrize("method", ["bibert", "binarybert"])
def test_the_rivals_schedules_are_read(method):
    found = students([result(method=method, schedule={"bibert": "W1A1", "binarybert": "W2A4 -> W1A4"}[method])])
    assert found[-1].method == method and found[-1].options == ""


# ------------------------------------------------------------------------------------------------ formats


def test_the_formats_agree(tmp_path, capsys):
    found = [result(seed=seed, score=score) for seed, score in enumerate((0.70, 0.75))] + [result("mrpc")]
    save(tmp_path, *found)
    printed = {}
    for name in ("text", "markdown", "csv"):
        assert cli.main(["results", "--folder", str(tmp_path), "--format", name]) == 0
        printed[name] = capsys.readouterr().out
        assert printed[name] == report(load(tmp_path), format=name) + "\n"
    glue, squad = printed["csv"].rstrip().split("\n\n")
    ours = [line for line in csv.DictReader(io.StringIO(glue)) if line["source"] == "bitlab"]
    assert [line["RTE"] for line in ours] == ["90.00", "72.50"] and ours[1]["RTE sd"] == "3.54"
    assert ours[1]["missing"].split()[0] == "MNLI-m" and ours[1]["avg"] == ""
    assert (ours[1]["seeds"], ours[1]["steps"], ours[1]["seconds"]) == ("1-2", "200", "120.0")
    assert ours[1]["machine"] == "some processor, 1 thread" and ours[1]["model"] == ours[1]["data"] == "sample"
    assert "avg" not in squad.splitlines()[0] and "published,BERT-base,published,BiT,W1A1,W1A1" in squad
    for name in ("text", "markdown"):
        assert "72.5 ±3.5" in printed[name] and "62.1" in printed[name] and "no results of SQuAD" in printed[name]
    table = [line for line in printed["markdown"].splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table if "MNLI" in table[0]}) <= 2
    assert "| [2] | sample | sample | bit | W1A1 |" in printed["markdown"]


def test_squad_is_a_table_of_its_own():
    content = result("squad", schedule="W1A1")
    content["stages"][1]["metrics"] = {"exact_match": 0.5, "f1": 0.6}
    text = report([content, result()], ("squad",))
    assert " 50.0  60.0 " in text and " 63.1  74.9 " in text and "RTE" not in text


def test_size_and_operations_stand_in_the_rows():
    full, student = rows([result() | {"cost": {"W32A32": [8.0, 1.0], "W1A1": [0.5, 0.1]}}])
    assert (full.size, full.flops, student.size, student.flops) == (8.0, 1.0, 0.5, 0.1)


# ------------------------------------------------------------------------------------------------ files


def test_broken_files_are_one_clear_line(tmp_path, capsys):
    good = result()
    cases = {"{": "Expecting", "[]": "list", json.dumps({"task": "rte"}): "no 'method'"}
    for change, says in (
        ({"task": "wnli"}, "unknown task"),
        ({"stages": []}, "its stages are not those of its schedule"),
        ({"schedule": "W1A1 -> W1A2"}, "goes up"),
    ):
        cases[json.dumps(good | change)] = says
    for content, says in cases.items():
        (tmp_path / "broken.json").write_text(content)
        assert cli.main(["results", "--folder", str(tmp_path)]) == 2
        err = capsys.readouterr().err
        assert err.startswith("bitlab: broken.json is no stored result (") and err.count("\n") == 1 and says in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--format", "html"], "no format 'html': choose text, markdown, csv"),
        (["--tasks", "rte,colla"], "Did you mean 'cola'?"),
        (["nowhere"], "nowhere holds no result.json"),
    ],
)
def test_bad_arguments(tmp_path, capsys, arguments, says):
    assert cli.main(["results", "--folder", str(tmp_path), *arguments]) == 2
    assert says in capsys.readouterr().err


def test_storing_a_run_keeps_curves_and_the_cost_of_its_models(tmp_path):
    run = tmp_path / "my-run"
    run.mkdir()
    files.write_json(run / "result.json", result())
    for precision in ("W32A32", "W1A1"):
        model = load_model("sample", "rte")
        if precision == "W1A1":
            from bitlab import BitConfig, binarize

            model = binarize(model, BitConfig.from_precision(precision))
        model.save_pretrained(run / precision)
        load_tokenizer("sample").save_pretrained(run / precision)
        files.write_json(run / precision / "log.json", [{"step": step, "loss": 1 / step} for step in range(1, 101)])
    path = results.store(run, tmp_path / "stored")
    assert path.name == "my-run.json"
    (stored,) = load(tmp_path / "stored")
    assert stored["name"] == "my-run" and stored == json.loads(json.dumps(results.collect(run)))
    assert len(stored["curves"]["W1A1"]) == 10 and stored["curves"]["W1A1"][-1][0] == 100
    (tmp_path / "other").mkdir()
    (without,) = load(save(tmp_path / "other", result()))  # stored before there were costs: counted without weights
    assert without["cost"]["W1A1"] == pytest.approx(stored["cost"]["W1A1"], rel=0.01)
    assert stored["cost"]["W32A32"][0] > 8 * stored["cost"]["W1A1"][0]


def finished(folder, content):
    """A run's folder that holds its result and none of its models."""
    files.write_json(folder / "result.json", content)
    return folder


def test_storing_makes_the_folder_with_its_parents(tmp_path, capsys):
    run = finished(tmp_path / "run", result())
    assert cli.main(["results", str(run), "--folder", str(tmp_path / "a" / "b" / "c")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "a" / "b" / "c" / "run.json")
    assert [each["name"] for each in load(tmp_path / "a" / "b" / "c")] == ["run"]
    (tmp_path / "file").touch()
    assert cli.main(["results", str(run), "--folder", str(tmp_path / "file")]) == 2
    assert (err := capsys.readouterr().err).count("\n") == 1 and "can't be written" in err


@pytest.mark.parametrize(
    ("content", "says"),
    [({}, "no 'config'"), ([], "list"), (result() | {"stages": []}, "its stages are not those of its schedule")],
    ids=["empty", "list", "stages"],
)
def test_a_result_that_is_none_is_one_clear_line(tmp_path, capsys, content, says):
    run = finished(tmp_path / "run", content)
    assert cli.main(["results", str(run), "--folder", str(tmp_path / "stored")]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"bitlab: {run / 'result.json'} is no result (") and err.count("\n") == 1 and says in err
    assert "delete it, and run the same experiment again" in err and not (tmp_path / "stored").exists()


def test_a_stored_result_is_not_replaced_by_another_runs(tmp_path):
    stored = results.store(finished(tmp_path / "a" / "run", result()), tmp_path)
    before = stored.read_text()
    assert results.store(tmp_path / "a" / "run", tmp_path) == stored and stored.read_text() == before
    slower = result()
    slower["stages"][1]["seconds"] = 99.0  # the same run, measured again
    results.store(finished(tmp_path / "b" / "run", slower), tmp_path)
    assert load(tmp_path)[0]["stages"][1]["seconds"] == 99
    for other in (result(score=0.1), result(seed=1), result("mrpc"), result(learning_rate=1e-5)):
        with pytest.raises(
            BitlabError, match=r"run\.json holds the result of another run: rename .* or delete"
        ) as error:
            results.store(finished(tmp_path / "c" / "run", other), tmp_path)
        assert "\n" not in str(error.value) and load(tmp_path)[0]["stages"] == slower["stages"]
    stored.write_text("{")  # what can't be read is nobody's result
    results.store(tmp_path / "c" / "run", tmp_path)
    assert load(tmp_path)[0]["config"]["learning_rate"] == 1e-5


def test_a_general_distillation_is_no_result(tmp_path, capsys):
    files.write_json(tmp_path / "general" / "experiment.json", {"model": "minilm", "precision": "W1A1"})
    files.write_json(tmp_path / "general" / "W1A1" / "stage.json", {})
    files.write_json(tmp_path / "begun" / "experiment.json", {"task": "rte", "model": "minilm"})
    for name, says in (("general", "holds a general distillation, no task's result"), ("begun", "to finish it")):
        assert cli.main(["results", str(tmp_path / name), "--folder", str(tmp_path / "stored")]) == 2
        assert says in (err := capsys.readouterr().err) and err.count("\n") == 1


def test_the_results_of_this_repository_are_readable():
    found = load()
    text = report(found)
    assert all(f"{GLUE_NAMES[each['task']]}" in text for each in found)


GLUE_NAMES = {task: column for column, (task, _) in GLUE.items()} | {"squad": "SQuAD"}


def test_published_rows():
    rows = {(row.method, row.precision): row for row in published("glue")}
    assert len(rows) == 9 and rows["BiT", "W1A1"].average == 73.5 and rows["BiT", "W1A1"].values("RTE") == [62.1]
    full = rows["full precision", "W32A32"]
    assert (full.size, full.flops, full.average) == (418, 22.5, 83.9)
    assert len(published("glue_augmented")) == 6 and published("squad")[-1].values("F1") == [74.9]
    for (method, precision), row in rows.items():  # what published/README.md says of the averages
        eight, nine = ([c for c in GLUE if c != left_out] for left_out in ("MNLI-mm", None))
        means = [statistics.mean(row.printed[column] for column in columns) for columns in (eight, nine)]
        if (method, precision) != ("BinaryBERT", "W1A4"):
            assert abs(means[not method.startswith("BiT")] - row.average) <= 0.06, method
    changed = copy.copy(full)
    assert changed.published and not students([result()])[0].published


@pytest.mark.skipif(not (REAL / "glue").is_dir(), reason="needs the original GLUE files")
@pytest.mark.parametrize("column", ["SST-2", "MRPC", "RTE"])
def test_what_always_the_same_answer_scores(column):
    """The others are correlations, which are 0 for an answer that never changes."""
    labels = load_glue(GLUE[column][0], str(REAL / "glue"))["validation"]["label"]
    assert round(100 * max(Counter(labels).values()) / len(labels), 1) == results.CONSTANT[column]
