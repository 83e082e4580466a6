"""Two processes on a batch's two halves train as one process does on the whole."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

import bitlab
from bitlab.data.glue import LAYOUTS, load_glue
from bitlab.data.sample import sample_config, sample_tokenizer
from bitlab.data.tasks import get_task

STEPS, SEED = 20, 0


def small_model(folder):
    """No dropout, whose random masks would differ, and biases like a pretrained encoder's.

    With fresh biases of 0 the comparison could not hold: a key's bias has no gradient in a float model (softmax does
    not see it), so Adam moves it by amplified rounding noise; and where a sum of +1 and -1 is 0, as one in ten of them
    is, the sign of that bias is the bit that comes next. Few channels, because every activation that lies on a
    threshold to within rounding is one more chance for a bit to differ.
    """
    model = AutoModel.from_config(sample_config(hidden_size=32, intermediate_size=64))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    sample_tokenizer().save_pretrained(folder)
    return folder


def rows(root, train=72, dev=32):
    """SST-2 in the original layout: sentences of very different lengths. 72 rows are four and a half batches."""
    task, layout = get_task("sst2"), LAYOUTS["sst2"]
    (root / task.folder).mkdir(parents=True)
    splits = load_glue("sst2", "sample")
    for split, name, count in (("train", "train", train), ("validation", "dev", dev)):
        lines = ["\t".join((*layout.text, layout.label))]
        lines += [f"{row['sentence']}\t{row['label']}" for row in splits[split].select(range(count))]
        (root / task.folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return root


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def train(output, processes, model, data):
    """One run of the command."""
    command = [sys.executable, "-m"]
    if processes > 1:
        command += [
            "torch.distributed.run",
            "--nproc_per_node",
            str(processes),
            "--master_port",
            str(free_port()),
            "-m",
        ]
    command += ["bitlab", "glue", "sst2", "--model", str(model), "--data", str(data), "--schedule", "W1A2 -> W1A1"]
    command += ["--max-steps", str(STEPS), "--batch-size", "16", "--output", str(output)]
    command += ["--learning-rate", "5e-4", "--teacher-learning-rate", "5e-4", "--seed", str(SEED)]
    root = str(Path(bitlab.__file__).parent.parent)
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root, "BITLAB_COMPILE": "off"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads((output / "result.json").read_text())


def losses(output, precision):
    log = json.loads((output / precision / "log.json").read_text())
    return [entry["loss"] for entry in log if "loss" in entry]


@pytest.mark.skipif(sys.platform == "win32", reason="gloo is not everywhere there")
def test_two_processes_are_one(tmp_path):
    model, data = small_model(tmp_path / "small"), rows(tmp_path / "data")
    alone, together = (train(tmp_path / name, n, model, data) for name, n in (("one", 1), ("two", 2)))
    for precision in ("W32A32", "W1A2", "W1A1"):
        one, two = (losses(tmp_path / name, precision) for name in ("one", "two"))
        assert len(one) == len(two) == STEPS
        # The sums of two processes round otherwise than those of one. In W1A1 the last bit of a sum can turn a bit of
        # a code, which a later step then sees: the curves are one curve until that happens, and close neighbours after.
        alike = 8 if precision == "W1A1" else len(one)
        assert two[:alike] == pytest.approx(one[:alike], abs=1e-3), precision
        assert two == pytest.approx(one, abs=2e-2), precision
    for one, two in zip(alone["stages"], together["stages"], strict=True):
        assert two["score"] == pytest.approx(one["score"], abs=0.07)  # two of 32 sentences
        assert one["steps"] == two["steps"] == STEPS
