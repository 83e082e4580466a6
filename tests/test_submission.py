"""Predictions files in the leaderboard's format, on dev and on test."""

import numpy as np
import pytest
import torch

from bitlab.data.glue import LAYOUTS
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


def write_mnli(folder, test_rows):
    layout = LAYOUTS["mnli"]
    (folder / "MNLI").mkdir()
    rows = [("a cup .", "a red cup .", TASKS["mnli"].label_names[i % 3]) for i in range(9)]
    for split in ("train", "dev_matched", "dev_mismatched"):
        lines = ["\t".join((*layout.text, layout.label)), *("\t".join(row) for row in rows)]
        (folder / "MNLI" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    for split, number in (("matched", test_rows), ("mismatched", 2)):
        lines = ["\t".join(layout.text), *["a cup .\ta cup ."] * number]
        (folder / "MNLI" / f"test_{split}.tsv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(("limit", "found"), [(100, {"MNLI-m.tsv", "MNLI-mm.tsv"}), (3, {"MNLI-mm.tsv"})])
def test_a_run_writes_dev_after_every_stage_and_test_after_the_last(tmp_path, monkeypatch, limit, found):
    monkeypatch.setattr("bitlab.experiments.running.QUICK_TEST", limit)
    monkeypatch.setenv("BITLAB_COMPILE", "off")
    torch.set_num_threads(1)
    write_mnli(tmp_path, test_rows=4)
    experiment = Experiment("mnli", data=str(tmp_path), max_steps=1, schedule="W1A1")
    run(experiment, tmp_path / "run", report=lambda line: None)
    full, student = (tmp_path / "run" / stage / "predictions" for stage in ("W32A32", "W1A1"))
    assert {path.name for path in (full / "dev").iterdir()} == {"MNLI-m.tsv", "MNLI-mm.tsv"}
    assert not (full / "test").exists()
    assert {path.name for path in (student / "test").iterdir()} == found
    lines = (student / "test" / "MNLI-mm.tsv").read_text().splitlines()
    assert len(lines) == 3 and lines[0] == "index\tprediction" and lines[1].split("\t")[0] == "0"
    assert lines[1].split("\t")[1] in TASKS["mnli"].label_names
