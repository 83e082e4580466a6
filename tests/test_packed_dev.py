"""Whole dev sets: packed students against latent ones, every precision on every kernel. Takes half an hour, and runs
where BITLAB_DATA names the folder of GLUE's own files.

A student has seen 200 steps on the labels: its answers differ from sentence to sentence. Both models run the same
batches. A row of different logits is allowed if some number in it lies so near a threshold that the rounding of
LayerNorm decides on which side it falls; such rows are counted.
"""

import os

import pytest
import torch
from tiny_models import binarizers

from bitlab import BitConfig, ElasticBinarizer, binarize
from bitlab.binarizers import SMALLEST_ALPHA, levels
from bitlab.data.tasks import get_glue_task
from bitlab.experiments.prepared import prepare
from bitlab.models import load_model, load_tokenizer
from bitlab.packed import backends, pack

GLUE = os.environ.get("BITLAB_DATA")
STEPS, BATCH, NEAR, ALIKE = 200, 32, 1e-6, 1e-4
pytestmark = pytest.mark.skipif(not GLUE, reason="BITLAB_DATA names no folder of GLUE files")


def student(task, data, bits: int):
    """A MiniLM of 1-bit weights after a few steps on the labels."""
    torch.manual_seed(0)
    model = binarize(load_model("minilm", task), BitConfig(1, bits)).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for step in range(STEPS):
        batch = data.collate(data.train.select(range(8 * step, 8 * step + 8)).to_list())
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def distance(binarizer: ElasticBinarizer, x: torch.Tensor) -> torch.Tensor:
    """How far each number is from the nearest threshold."""
    x = x if binarizer.beta is None else x - binarizer.beta
    if binarizer.bits == 1 and binarizer.signed:
        return x.abs()
    alpha, (low, high) = binarizer.alpha.clamp_min(SMALLEST_ALPHA), levels(binarizer.bits, binarizer.signed)
    turn = (torch.floor(x / alpha) + 0.5).clamp(low + 0.5, high - 0.5)
    return (x - turn * alpha).abs()


class Nearest:
    """The least distance of each row's numbers, padding aside, as a latent model runs."""

    def __init__(self, model):
        for module in binarizers(model).values():
            module.register_forward_pre_hook(self.look)

    def begin(self, mask: torch.Tensor) -> None:
        self.mask, self.least = mask.bool(), torch.full((len(mask),), torch.inf)

    def look(self, binarizer, inputs) -> None:
        found = distance(binarizer, inputs[0].detach())
        rows, length = self.mask.shape
        if found.dim() == 4:  # probabilities of heads, queries and keys
            found = found.masked_fill(~self.mask[:, None, None, :], torch.inf).amin((1, 3))
        elif found.numel() == rows * found.shape[-1]:  # the pooler's, which sees the first tokens alone
            found = found.amin(-1, keepdim=True)
        else:
            found = found.reshape(rows, length, -1).amin(-1)
        self.least = torch.minimum(self.least, found.masked_fill(~self.mask[:, : found.shape[1]], torch.inf).amin(1))


def batches(data):
    """The dev set by length, so that little is padding, and some is."""
    (rows,) = data.evaluations.values()
    rows = rows.remove_columns("labels").to_list()
    rows = sorted(rows, key=lambda row: len(row["input_ids"]))
    return [data.collate(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)]


@torch.inference_mode()
def compare(model, data, kernels) -> dict[str, dict]:
    """For each kernel: rows, predictions and rows that differ, the largest difference; and how many rows are near."""
    packed, nearest = pack(model), Nearest(model)
    found = {name: {"rows": 0, "predictions": 0, "differ": 0, "far": 0, "largest": 0.0} for name in kernels}
    near = []
    for batch in batches(data):
        nearest.begin(batch["attention_mask"])
        logits = model(**batch).logits
        near += (nearest.least < NEAR).tolist()
        for name, row in found.items():
            with backends.use(name):
                other = packed(**batch).logits
            apart = (other - logits).abs().amax(1)
            row["rows"] += len(apart)
            row["differ"] += int((apart > ALIKE).sum())
            row["far"] += int(((apart > ALIKE) & (nearest.least >= NEAR)).sum())
            row["largest"] = max(row["largest"], float(apart.max()))
            if logits.shape[1] > 1:
                row["predictions"] += int((other.argmax(1) != logits.argmax(1)).sum())
    return {name: row | {"near": sum(near)} for name, row in found.items()}


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("name", ["cola", "sst2", "mrpc", "stsb"])
def test_whole_dev_sets(name, bits):
    task = get_glue_task(name)
    data = prepare(task, GLUE, load_tokenizer("minilm"), train_examples=8 * STEPS)
    found = compare(student(task, data, bits), data, backends.available())
    print(f"\n{name} W1A{bits}: {found}")
    for row in found.values():
        assert row["predictions"] == 0 and row["far"] == 0, found
