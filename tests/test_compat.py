"""What bitlab wrote at commit 148a635 is read today and says the same; tests/compat/README.md tells how it was made."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import outputs
from transformers import AutoModelForSequenceClassification

from bitlab import BitConfig, binarize, cli, results
from bitlab.models import load_model
from bitlab.packed import load_packed

COMPAT = Path(__file__).parent / "compat"
LATENT = ["bert-W1A1", "bert-W1A2", "distilbert-W1A1", "bibert-W1A1", "binarybert-W2A4"]
TOLERANCE = {"rtol": 0, "atol": 1e-5}  # no number lies nearer than that to the threshold that decides its code


def kept(name):
    """(inputs, logits) of a model, as they were."""
    with np.load(COMPAT / "logits.npz") as arrays:
        found = {key: torch.from_numpy(arrays[f"{name}/{key}"]) for key in ("input_ids", "attention_mask", "logits")}
    logits = found.pop("logits")
    return {key: value.long() for key, value in found.items()}, logits


@pytest.mark.parametrize("name", LATENT)
def test_latent_checkpoints(name):
    inputs, logits = kept(name)
    model = AutoModelForSequenceClassification.from_pretrained(COMPAT / name)
    torch.testing.assert_close(outputs(model, **inputs)[0], logits, **TOLERANCE)


@pytest.mark.parametrize("name", ["bert-W1A1", "bert-W1A2"])
def test_packed_models(name):
    inputs, logits = kept(name)
    torch.testing.assert_close(outputs(load_packed(COMPAT / f"packed-{name}"), **inputs)[0], logits, **TOLERANCE)


def test_the_alphas_of_these_checkpoints_are_0_d():
    """Loading such ones is what the tests above hold, whatever shape an alpha has today."""
    shapes = {name: t.shape for name, t in load_file(COMPAT / "bert-W1A1" / "model.safetensors").items()}
    alphas = {shape for name, shape in shapes.items() if name.endswith(".alpha")}
    assert alphas == {torch.Size([])}
    model = AutoModelForSequenceClassification.from_pretrained(COMPAT / "bert-W1A1")
    assert {p.shape for name, p in model.named_parameters() if name.endswith(".alpha")} == {torch.Size([1])}  # for FSDP


def test_the_table_of_stored_results(tmp_path):
    """Byte for byte, from the files that come with bitlab today; the files of then hold the same but for the costs of
    some models, which were counted anew each time."""
    with tarfile.open(COMPAT / "results.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    before = results.load(tmp_path)
    now = results.frame(each for each in results.records(results.SHIPPED) if each["name"] in set(before.name))
    assert results.report(now, format="csv") + "\n" == (COMPAT / "results.csv").read_text()
    known = before.mib.notna()
    assert 150 < known.sum() < len(before)
    pd.testing.assert_frame_equal(before[known], now[known])
    costs = ["mib", "gflops"]
    pd.testing.assert_frame_equal(before.drop(columns=costs), now.drop(columns=costs))


def test_a_finished_run_stays_finished(tmp_path, capsys):
    run = Path(shutil.copytree(COMPAT / "run", tmp_path / "run"))
    options = f"--model sample --data sample --schedule W1A1 --max-steps 10 --seed 3 --output {run} --json"
    assert cli.main(["glue", "rte", *options.split()]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((COMPAT / "run" / "result.json").read_text())
    assert sorted(path.name for path in (run / "W1A1").iterdir()) == ["log.json", "stage.json"]  # nothing was trained


def test_a_finished_run_is_stored_as_it_was(tmp_path):
    run = Path(shutil.copytree(COMPAT / "run", tmp_path / "run"))
    float_model = load_model("sample", "rte")  # of the models, which aren't kept, the file says the costs
    float_model.save_pretrained(run / "W32A32")
    binarize(float_model, BitConfig(1, 1)).save_pretrained(run / "W1A1")
    assert cli.main(["results", str(run), "--folder", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "run.json").read_text()) == json.loads((COMPAT / "stored-run.json").read_text())
