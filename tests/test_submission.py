"""Predictions files in the leaderboard's format, on dev and on test."""

import numpy as np
import pytest
from tiny_models import silent, write_glue

from bitlab.data.glue import LAYOUTS
from bitlab.data.sample import sample_glue
from bitlab.data.tasks import TASKS
from bitlab.experiments import Experiment, run, submission

NAMES = ["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI-m", "QNLI", "RTE"]


def test_every_task_has_the_leaderboards_file_name():
    assert [submission.file_name(task, "validation") for task in TASKS.values()] == [f"{name}.tsv" for name in NAMES]
    assert submission.file_name(TASKS["mnli"], "validation_matched") == "MNLI-m.tsv"
    assert submission.file_name(TASKS["mnli"], "test_mismatched") == "MNLI-mm.tsv"


@pytest.mark.parametrize(
    ("task", "logits", "lines"),
    [
        ("rte", [[2, 1], [0, 3]], ["0\tentailment", "1\tnot_entailment"]),
        ("qnli", [[0, 3]], ["0\tnot_entailment"]),
        ("mnli", np.eye(3), ["0\tentailment", "1\tneutral", "2\tcontradiction"]),
        ("mrpc", [[0, 1]], ["0\t1"]),
        ("cola", [[1, 0], [0, 1]], ["0\t0", "1\t1"]),
        ("stsb", [[-0.2], [2.34567], [5.2]], ["0\t0.000", "1\t2.346", "2\t5.000"]),
    ],
)
def test_labels_are_written_as_the_original_files_write_them(task, logits, lines):
    text = submission.content(TASKS[task], np.array(logits, dtype=np.float32))
    assert text == "\n".join(["index\tprediction", *lines]) + "\n"


@pytest.mark.parametrize(("limit", "found"), [(100, {"MNLI-m.tsv", "MNLI-mm.tsv"}), (3, {"MNLI-mm.tsv"})])
def test_a_run_writes_dev_after_every_stage_and_test_after_the_last(cheap, tmp_path, monkeypatch, limit, found):
    monkeypatch.setattr("bitlab.experiments.running.QUICK_TEST", limit)
    write_glue(tmp_path, "mnli", sample_glue("mnli", 9, 9))
    for split, number in (("matched", 4), ("mismatched", 2)):
        lines = ["\t".join(LAYOUTS["mnli"].text), *["a cup .\ta cup ."] * number]
        (tmp_path / "MNLI" / f"test_{split}.tsv").write_text("\n".join(lines) + "\n")
    experiment = Experiment("mnli", data=str(tmp_path), max_steps=1, schedule="W1A1")
    run(experiment, tmp_path / "run", report=silent)
    full, student = (tmp_path / "run" / stage / "predictions" for stage in ("W32A32", "W1A1"))
    assert {path.name for path in (full / "dev").iterdir()} == {"MNLI-m.tsv", "MNLI-mm.tsv"}
    assert not (full / "test").exists()
    assert {path.name for path in (student / "test").iterdir()} == found
    lines = (student / "test" / "MNLI-mm.tsv").read_text().splitlines()
    assert len(lines) == 3 and lines[0] == "index\tprediction" and lines[1].split("\t")[0] == "0"
    assert lines[1].split("\t")[1] in TASKS["mnli"].label_names
