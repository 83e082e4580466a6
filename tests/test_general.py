"""General distillation: texts, what a student misses, a resumable training, and tasks that start from its encoder."""

import json

import pytest
import torch
from tiny_models import Killed, refused, silent
from transformers import DataCollatorWithPadding

import bitlab
from bitlab import cli
from bitlab.config import BitConfig
from bitlab.data.glue import load_glue
from bitlab.errors import BitlabError
from bitlab.experiments import Experiment, GeneralDistillation, distil, general, run
from bitlab.experiments.general import missed, read_texts, start_from
from bitlab.files import quiet
from bitlab.models import load_model, load_tokenizer

# in mixed precision, for which accelerate puts a wrapper around the model that must be gone when it is measured
SETTINGS = {"model": "sample", "epochs": 100, "batch_size": 8, "max_steps": 60, "bf16": True}
COLLATE = DataCollatorWithPadding(load_tokenizer("sample"))
LAST = "encoder.layer.1.output.dense"


pytestmark = pytest.mark.usefixtures("cheap", "here")


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    """A file of sample sentences, one of them a pair, one twice, with an empty line."""
    rows = load_glue("sst2", "sample")["train"]["sentence"][:80]
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join([*rows, "the film is dull\tit is a fine film", "", rows[0]]) + "\n")
    return path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, sentences):
    """(folder of a run, its record)."""
    folder = tmp_path_factory.mktemp("general") / "general"
    return folder, go(sentences, folder)


def go(texts, folder, report=silent, **options):
    return distil(GeneralDistillation((texts,), **SETTINGS | options), folder, report=report)


def quietly_loaded(*arguments):
    with quiet():
        return load_model(*arguments)


def test_texts(sentences):
    tokenizer = load_tokenizer("sample")
    train, held_out = read_texts([sentences], tokenizer, max_length=6)
    unique = {line for line in sentences.read_text().splitlines() if line}
    assert len(train) + len(held_out) == len(unique)
    assert len(held_out) == -(-len(unique) // 10)
    assert max(map(len, train["input_ids"])) == 6
    pairs = [row for row in [*train, *held_out] if 1 in row["token_type_ids"]]
    assert len(pairs) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "can't be read"), (b"\xff\xfe\x00", "can't be read"), (b"one\ntwo\none\n", "2 texts are too few")],
)
def test_texts_that_are_none(tmp_path, content, message):
    path = tmp_path / "texts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BitlabError, match=message):
        read_texts([path], load_tokenizer("sample"))


def test_what_a_student_misses(sentences):
    """Against the definition, text by text and without padding."""
    _, rows = read_texts([sentences], load_tokenizer("sample"))
    teacher, student = quietly_loaded("sample"), load_model("sample", seed=1)
    assert len({len(ids) for ids in rows["input_ids"]}) > 1
    states = {}
    for name, model in (("teacher", teacher), ("student", student)):
        with torch.no_grad():
            found = [
                model(**{k: torch.tensor([v]) for k, v in row.items()}, output_hidden_states=True).hidden_states
                for row in rows
            ]
        states[name] = [torch.cat([layers[i][0] for layers in found]) for i in range(len(found[0]))]
    expected = [
        float((s - t).square().sum() / (t - t.mean(0)).square().sum())
        for s, t in zip(states["student"], states["teacher"], strict=True)
    ]
    assert missed(student, teacher, rows, COLLATE) == pytest.approx(expected, rel=1e-4)
    assert missed(teacher, teacher, rows, COLLATE) == [0.0] * len(expected)


def test_it_learns_and_is_what_its_record_says(encoder, sentences):
    folder, record = encoder
    assert json.loads((folder / "W1A1" / "stage.json").read_text()) == record
    assert record["steps"] == 60 and record["config"]["texts"] == {"train": 72, "validation": 9}
    assert not list(folder.glob("*.training"))
    teacher, student = quietly_loaded("sample"), load_model(folder / "W1A1")
    train, rows = read_texts([sentences], load_tokenizer("sample"))
    assert missed(student, teacher, rows, COLLATE) == pytest.approx(record["missed"], abs=1e-4)
    # a student that has only seen one batch, to initialise its scales
    fresh = bitlab.binarize(quietly_loaded("sample")).train()
    fresh(**COLLATE([train[i] for i in range(8)]))
    before = missed(fresh.eval(), teacher, rows, COLLATE)
    assert sum(record["missed"]) < sum(before) / 2


def test_an_interrupted_training_goes_on(encoder, sentences, tmp_path, monkeypatch):
    def kill(*args, **kwargs):
        raise Killed

    _, record = encoder
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(general, "missed", kill)  # after the last step, before anything is written
        go(sentences, tmp_path / "run")
    assert list((tmp_path / "run").glob("W1A1.training/checkpoint-*"))
    again = go(sentences, tmp_path / "run")
    assert again["missed"] == record["missed"] and again["steps"] == record["steps"]
    lines = []
    assert go(sentences, tmp_path / "run", lines.append) == again
    assert "already" in lines[0]
    with pytest.raises(BitlabError, match="another experiment: its seed"):
        go(sentences, tmp_path / "run", seed=1)


def test_a_diverged_training_is_refused_and_nothing_is_stored(sentences, tmp_path, monkeypatch):
    with pytest.raises(BitlabError, match="training has diverged"):
        go(sentences, tmp_path / "run", learning_rate=1e30, max_steps=3)
    monkeypatch.setattr(general, "missed", lambda *_: [0.5, float("nan")])  # of weights that are numbers all the same
    with pytest.raises(BitlabError, match="training has diverged, hidden states are no numbers"):
        go(sentences, tmp_path / "other", max_steps=3)
    assert not (tmp_path / "run" / "W1A1").exists() and not (tmp_path / "other" / "W1A1").exists()


@pytest.mark.parametrize("precision", ["W1A1", "W1A2"])
def test_a_student_starts_from_it(encoder, precision):
    folder, _ = encoder
    other = load_model(folder / "W1A1")
    student = bitlab.binarize(quietly_loaded("sample", "sst2"), BitConfig.from_precision(precision))
    head, pooler = student.classifier.weight.clone(), student.base_model.pooler.dense.weight.clone()
    start_from(student, str(folder / "W1A1"))
    assert torch.equal(student.classifier.weight, head)
    assert torch.equal(student.base_model.pooler.dense.weight, pooler)
    layer, theirs = student.base_model.get_submodule(LAST), other.get_submodule(LAST)
    assert torch.equal(layer.weight, theirs.weight) and torch.equal(
        layer.input_binarizer.beta, theirs.input_binarizer.beta
    )
    factor = 1.0 if precision == "W1A1" else (1 / 3) ** 0.5  # unsigned: from one level above zero to three
    assert layer.input_binarizer.alpha.item() == pytest.approx(factor * theirs.input_binarizer.alpha.item())
    assert layer.input_binarizer.bits == int(precision[-1]) and bool(layer.input_binarizer.initialized)
    assert not bool(student.base_model.pooler.dense.input_binarizer.initialized)


def test_an_experiment_starts_from_it(encoder, tmp_path):
    """With a learning rate of next to nothing its encoder is found again in the result."""
    folder, _ = encoder
    still = {"max_steps": 2, "learning_rate": 1e-12, "alpha_learning_rate": 1e-12}
    experiment = Experiment("sst2", data="sample", schedule="W1A1", start=str(folder / "W1A1"), **still)
    result = run(experiment, tmp_path / "run", report=silent)
    assert result["config"]["start"] == "general/W1A1" and experiment.folder_name.endswith("-started-seed0")
    found, theirs = load_model(tmp_path / "run" / "W1A1"), load_model(folder / "W1A1")
    assert torch.allclose(found.get_submodule(LAST).weight, theirs.get_submodule(LAST).weight, atol=1e-6)


def test_starts_that_do_not_fit(encoder, tmp_path):
    folder, _ = encoder
    float_model = tmp_path / "float"
    quietly_loaded("sample").save_pretrained(float_model)
    wide = bitlab.binarize(quietly_loaded("sample", "sst2"))
    wide.base_model.encoder.layer = wide.base_model.encoder.layer[:1]
    bit, bibert = (bitlab.binarize(quietly_loaded("sample", "sst2"), BitConfig(method=m)) for m in ("bit", "bibert"))
    cases = [(bit, float_model, "is not binary"), (bibert, folder / "W1A1", "of method")]
    for student, start, message in [*cases, (wide, folder / "W1A1", "another shape")]:
        with pytest.raises(BitlabError, match=message):
            start_from(student, str(start))


def test_texts_are_cut_to_what_the_model_reads(sentences, tmp_path):
    (tmp_path / "long.txt").write_text("\n".join(" ".join(["word"] * (200 + i)) for i in range(12)))
    train, _ = read_texts([tmp_path / "long.txt"], load_tokenizer("sample"), 10_000)
    assert max(map(len, train["input_ids"])) == 128


def test_a_folder_knows_its_texts(encoder, sentences, tmp_path):
    """The same texts in another order are another training."""
    folder, _ = encoder
    lines = sentences.read_text(encoding="utf-8").split("\n")
    other = tmp_path / "other.txt"
    other.write_text("\n".join([lines[0], lines[2], lines[1], *lines[3:]]), encoding="utf-8")
    with pytest.raises(BitlabError, match="another experiment: its data_digest"):
        go(other, folder)


def test_command_line(sentences, tmp_path, capsys):
    options = ["--model", "sample", "--max-steps", "2", "--output", str(tmp_path / "run")]
    assert cli.main(["distil", str(sentences), *options, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["missed"]) == 3
    assert "none.txt can't be read" in refused(capsys, "distil", tmp_path / "none.txt", *options)
    assert "is nobody's" in refused(capsys, "distil", sentences, *options[:-1], "~nosuchuser/run")
    assert "no config.json" in refused(capsys, "glue", "sst2", "--data", "sample", "--start", tmp_path)
