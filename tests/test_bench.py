"""`bitlab bench train`: every contender steps, does what its name says, and is counted right."""

import json

import pytest
import torch
from tiny_models import refused

from bitlab import cli, compiled
from bitlab.bench import timing
from bitlab.bench import training as bench
from bitlab.bench.training import BASELINE, CONTENDERS, FIRST_EPOCH, KEPT, OURS, Measures, Shape, Step
from bitlab.data.sample import sample_tokenizer

TINY = Shape(layers=1, width=32, batch=2, length=8, vocabulary=200)


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_trains(name):
    step = Step(TINY, CONTENDERS[name])
    before = {key: value.clone() for key, value in step.model.named_parameters()}
    step()
    step()
    moved = {key for key, value in step.model.named_parameters() if not torch.equal(value, before[key])}
    assert "classifier.weight" in moved and "bert.encoder.layer.0.output.dense.weight" in moved
    assert compiled.mode() == "auto" and torch.get_float32_matmul_precision() == "highest"


def test_the_measures_do_not_change_what_is_computed():
    """With and without compiled formulas, and int8 products, four steps have the same losses."""
    curves = []
    for measures in (Measures(), Measures(compiled=False, fast_products=False)):
        torch.manual_seed(0)
        step = Step(TINY, measures)
        for model in (step.model, *step.trainer.teachers):
            model.double()  # else the last bits of the two would turn bits of codes
        for module in step.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        curves.append(torch.stack([step() for _ in range(4)]))
    torch.testing.assert_close(*curves, rtol=1e-8, atol=0)
    assert curves[0][0] > curves[0][-1]


def test_rows_and_ratios():
    result = bench.bench(TINY, rounds=2, names=(BASELINE, OURS, KEPT, "as released"))
    rows = {row["name"]: row for row in result["rows"]}
    assert rows[BASELINE]["ratio"] == 1.0 and all(row["seconds"] > 0 for row in rows.values())
    # a teacher beside the student: more memory, but not much more than its weights
    weights = sum(p.numel() * 4 for p in TINY.model().parameters()) / 2**20
    assert weights < rows[OURS]["mib"] - rows[BASELINE]["mib"] + 0.1
    assert rows[BASELINE]["mib"] > 4 * weights  # weights, gradients, two moments
    for name in rows:
        assert name in bench.table(result)
    real = {(row["batch"], row["name"]): row["seconds"] for row in result["real"]}
    first = KEPT + FIRST_EPOCH
    assert [*real] == [(batch, name) for batch in (8, 16) for name in (BASELINE, OURS, KEPT, first)]  # who takes part
    assert all(row["ratio"] > 0 for row in result["real"]) and "batch  8" in bench.table(result)
    assert all(real[batch, first] > real[batch, KEPT] for batch in (8, 16))


def test_batches_of_real_lengths_are_padded():
    inputs = TINY.inputs([3, 8, 5])
    assert inputs["input_ids"].shape == (3, 8) and inputs["attention_mask"].sum(1).tolist() == [3, 8, 5]
    assert (inputs["input_ids"].ne(0) == inputs["attention_mask"].bool()).all()


def test_growth_and_tasks(monkeypatch):
    result = bench.growth(TINY, rounds=1, axes={"length": (4, 8), "layers": (1, 2)})
    assert [p["layers"] for p in result["growth"]["layers"]] == [1, 2] and "length    8" in bench.table(result)
    monkeypatch.setattr("bitlab.bench.training.load_tokenizer", lambda name: sample_tokenizer())
    monkeypatch.setattr(bench, "Shape", lambda batch, length: Shape(1, 32, batch, length, 200))
    (row,) = bench.tasks("sample", ("rte",), rounds=2)["tasks"]
    padded = [row[order]["padded_length"] for order in ("by length", "random order")]
    assert padded == sorted(padded) and padded[-1] <= row["max_length"] >= row["real_length"]
    assert row["random order"][KEPT]["times"] > 1 and row["by length"][KEPT]["real_tokens_a_second"] > 0


def test_ratio_is_taken_within_a_round():
    assert timing.ratio([2.0, 20.0, 3.0], [1.0, 10.0, 1.0]) == 2.0
    times = timing.measure({"a": lambda: None, "b": lambda: None}, rounds=3, at_least=1e-4)
    assert [len(seconds) for seconds in times.values()] == [3, 3]


def test_command(capsys, caplog, monkeypatch):
    monkeypatch.setattr(bench, "Shape", lambda layers, batch, length: Shape(layers, 32, batch, length, 200))
    assert (
        cli.main(["bench", "train", "--layers", "1", "--batch", "2", "--length", "8", "--rounds", "1", "--json"]) == 0
    )
    assert {row["name"] for row in json.loads(capsys.readouterr().out)["rows"]} == set(CONTENDERS)
    assert all(f"warming up: {name}" in caplog.messages for name in CONTENDERS)  # minutes pass with a sign of life


@pytest.mark.parametrize("words", ["bench train --batch 2 --batch 3", "bench train --length 600", "bench nothing"])
def test_bad_input_is_one_line(words, capsys, here):
    refused(capsys, *words.split())
