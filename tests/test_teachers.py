"""Fine-tuned teachers in the hub's layout: the original processors' label order is mapped, a wrong one refused."""

import dataclasses
from pathlib import Path

import pytest
import tiny_models
import torch

from bitlab import course
from bitlab.data.sample import sample_tokenizer
from bitlab.data.tasks import TASKS, get_task
from bitlab.errors import BitlabError
from bitlab.experiments import Experiment, evaluate, run
from bitlab.experiments.prepared import prepare
from bitlab.models import load_model

MNLI = get_task("mnli")
ORIGINAL = [2, 0, 1]  # contradiction, entailment, neutral, as places in the hub's order


@pytest.fixture(scope="module")
def teacher(cheap):
    """A sample model that has learned MNLI in the hub's order, and its dev score."""
    data = prepare(MNLI, "sample", sample_tokenizer())
    lab = course.Lab("00", "quick", 0, torch.device("cpu"))
    model = lab.teacher(data)
    return model, evaluate(model, data)[0]


@pytest.fixture(autouse=True)
def _expected(monkeypatch):
    """A teacher of 300 steps on the sample task is no BERT-base: what its "paper" promises is a little less."""
    monkeypatch.setitem(TASKS, "mnli", dataclasses.replace(MNLI, published_score=0.65))


def save(model, folder, order=(0, 1, 2)):
    """As the hub has it: no names for the labels, the classifier's rows in this order."""
    copied = load_model("sample", "mnli")
    copied.load_state_dict(model.state_dict())
    with torch.no_grad():
        copied.classifier.weight.copy_(copied.classifier.weight[list(order)])
        copied.classifier.bias.copy_(copied.classifier.bias[list(order)])
    copied.config.id2label = {i: f"LABEL_{i}" for i in range(3)}
    copied.config.label2id = {f"LABEL_{i}": i for i in range(3)}
    tiny_models.save(copied, folder)


def go(teacher, output):
    experiment = Experiment("mnli", data="sample", teacher=teacher, schedule="W1A1", max_steps=1)
    return run(experiment, output, report=tiny_models.silent)


def test_the_published_teachers_order_is_mapped(teacher, here):
    model, score = teacher
    assert score > 0.6
    save(model, Path(MNLI.teacher), ORIGINAL)
    result = go(MNLI.teacher, "run")
    assert result["stages"][0]["score"] == pytest.approx(score)
    assert tuple(load_model("run/W1A1", "mnli").config.id2label.values()) == MNLI.label_names


def test_a_published_teacher_in_another_order_scores_below_its_paper_and_is_refused(teacher, here):
    save(teacher[0], Path(MNLI.teacher))
    with pytest.raises(BitlabError, match=r"'bert-base-uncased-MNLI' scores 0\.\d+ on MNLI dev, expected above 0\.600"):
        go(MNLI.teacher, "run")
    assert not Path("run").exists()


def test_a_nameless_teacher_in_the_original_order_is_refused(teacher, tmp_path):
    save(teacher[0], tmp_path / "mine", ORIGINAL)
    with pytest.raises(BitlabError, match=r"teacher 'mine' scores .* check that .* its label order fits"):
        go(str(tmp_path / "mine"), tmp_path / "run")
    save(teacher[0], tmp_path / "right")
    assert go(str(tmp_path / "right"), tmp_path / "other")["stages"][0]["score"] == pytest.approx(teacher[1])
