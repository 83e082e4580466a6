"""Two processes on a batch's two halves train as one process does on the whole.

Held to rounding: one step of a binary student, its alphas' first values included, and a float model's whole training.
A binary training goes on from the last bit of every sum, and two processes sum otherwise than one.
"""

import json
import os
import socket
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from tiny_models import WORDS, assert_same_gradients, python, save, tiny, write_glue
from transformers import AutoModel, AutoModelForSequenceClassification, DataCollatorWithPadding, TrainingArguments

from bitlab import BitConfig, binarize
from bitlab.data.glue import load_glue
from bitlab.data.sample import sample_config, sample_tokenizer
from bitlab.distillation import DistillationTrainer
from bitlab.distillation.losses import DistillationConfig

STEPS, SEED, BITS = 10, 0, (1, 2)
COUNTS = {"train": 72, "validation": 32}
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo is not everywhere there")


def start(words, processes=2):
    """A Python program in one process or two."""
    python(*([*TORCHRUN, free_port()] if processes > 1 else []), *words, BITLAB_COMPILE="off")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ------------------------------------------------------------------------------------------------------ one step


def one_step(folder, bits):
    """What each process does: one step from the same student. The first of them writes loss, alphas and gradients."""
    names = (f"student-{bits}", "teacher")
    student, teacher = (AutoModelForSequenceClassification.from_pretrained(folder / name).double() for name in names)
    data, processes = Dataset.from_json(str(folder / "rows.json")), int(os.environ.get("WORLD_SIZE", 1))
    settings = {"max_steps": 1, "max_grad_norm": 0.0, "logging_steps": 1, "save_strategy": "no", "report_to": []}
    trainer = DistillationTrainer(
        student,
        teacher,
        TrainingArguments(folder, per_device_train_batch_size=len(data) // processes, use_cpu=True, **settings),
        DistillationConfig(relative=True, attention=1.0),
        train_dataset=data,
        data_collator=DataCollatorWithPadding(sample_tokenizer()),
    )
    found = {}

    def before_the_step(*_):
        for name, parameter in student.named_parameters():
            found[name] = parameter.grad.clone()
            if name.endswith("alpha"):
                found[f"{name}.first"] = parameter.detach().clone()

    trainer.create_optimizer().register_step_pre_hook(before_the_step)
    trainer.train()
    if trainer.is_world_process_zero():
        found["loss"] = torch.tensor(trainer.state.log_history[0]["loss"])
        save_file(found, folder / f"{bits}-{processes}.safetensors")


def test_a_step_of_two_processes_is_that_of_one(tmp_path):
    """Sentences of such lengths that the two halves of the batch differ in their tokens and in their longest one."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(5, WORDS, (n,), generator=generator).tolist() for n in (9, 3, 3, 7, 4, 3, 4, 3)]
    sentences = [{"input_ids": x, "attention_mask": [1] * len(x)} for x in ids]
    (tmp_path / "rows.json").write_text("\n".join(map(json.dumps, sentences)))
    tiny(seed=1).save_pretrained(tmp_path / "teacher")
    for bits in BITS:
        student = binarize(tiny(), BitConfig(1, bits))  # the first batch is yet to set its alphas
        student.save_pretrained(tmp_path / f"student-{bits}")
        one_step(tmp_path, bits)
    start([__file__, tmp_path])
    for bits in BITS:
        one, two = (load_file(tmp_path / f"{bits}-{processes}.safetensors") for processes in (1, 2))
        assert_same_gradients(two, one)


# ------------------------------------------------------------------------------------------------- an experiment


def small_model(folder):
    """A float encoder without dropout, whose random masks would differ."""
    return save(AutoModel.from_config(sample_config(hidden_size=32, intermediate_size=64)), folder)


def rows(root):
    """SST-2 in the original layout: sentences of very different lengths. 72 rows are four and a half batches."""
    splits = load_glue("sst2", "sample")
    return write_glue(root, "sst2", {split: splits[split].select(range(n)) for split, n in COUNTS.items()})


def train(output, processes, model, data):
    """One run of the command."""
    words = ["-m", "bitlab", "glue", "sst2", "--model", model, "--data", data, "--schedule", "W1A1"]
    words += ["--max-steps", STEPS, "--batch-size", "16", "--output", output]
    start([*words, "--learning-rate", "5e-4", "--teacher-learning-rate", "5e-4", "--seed", SEED], processes)
    return json.loads((output / "result.json").read_text())


def losses(output, precision):
    log = json.loads((output / precision / "log.json").read_text())
    return [entry["loss"] for entry in log if "loss" in entry]


def test_an_experiment_of_two_processes_is_that_of_one(tmp_path):
    model, data = small_model(tmp_path / "small"), rows(tmp_path / "data")
    alone, together = (train(tmp_path / name, n, model, data) for name, n in (("one", 1), ("two", 2)))
    assert losses(tmp_path / "two", "W32A32") == pytest.approx(losses(tmp_path / "one", "W32A32"), abs=1e-3)
    assert len(losses(tmp_path / "one", "W1A1")) == len(losses(tmp_path / "two", "W1A1")) == STEPS
    for one, two in zip(alone["stages"], together["stages"], strict=True):
        assert one["steps"] == two["steps"] == STEPS
    assert together["stages"][0]["score"] == pytest.approx(alone["stages"][0]["score"], abs=0.07)  # two of 32
    assert together.keys() == alone.keys() and together["config"] == alone["config"]


if __name__ == "__main__":
    for bits in BITS:
        one_step(Path(sys.argv[1]), bits)
