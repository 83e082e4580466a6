"""Latent binary models leave for torch.export and ONNX, batch and length free, with the same logits."""

import pytest
import torch
from tiny_models import batch, outputs, tiny, warm_up

from bitlab import binarize

FREE = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
SHAPES = {"input_ids": FREE, "attention_mask": FREE}
CASES = [("bert", "sequence", "W1A1"), ("mpnet", "span", "W1A2")]


class Tensors(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return tuple(self.model(input_ids=input_ids, attention_mask=attention_mask).values())


def near(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(ours), theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_export(case):
    *kind, precision = case
    model = warm_up(binarize(tiny(*kind), precision))
    program = torch.export.export(Tensors(model), (), batch(pad=2), dynamic_shapes=SHAPES)
    assert "_int_mm" not in str(program)  # other runtimes know products of floats alone
    other = batch(size=5, length=13, seed=3, pad=4)
    near(program.module()(**other), outputs(model, **other))


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_onnx(case, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    *kind, precision = case
    model, path = warm_up(binarize(tiny(*kind), precision)), str(tmp_path / "model.onnx")
    torch.onnx.export(Tensors(model), (), path, kwargs=batch(pad=2), dynamic_shapes=SHAPES, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    other = batch(size=5, length=13, seed=3, pad=4)
    near(session.run(None, {name: tensor.numpy() for name, tensor in other.items()}), outputs(model, **other))
