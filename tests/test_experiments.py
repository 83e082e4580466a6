"""Whole experiments on sample data, tiny budgets: result files, reloading, seeds, interruptions, refusals."""

import contextlib
import errno
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import Killed, same, save, silent, write_glue
from transformers import AutoModelForSequenceClassification, AutoTokenizer, GPT2Config

import bitlab
from bitlab import cli, files
from bitlab.bench.settings import BenchSettings
from bitlab.data.glue import load_glue
from bitlab.data.sample import sample_config, sample_tokenizer
from bitlab.data.settings import OwnData, Settings
from bitlab.data.tasks import get_task
from bitlab.errors import BitlabError
from bitlab.experiments import Experiment, GeneralDistillation, checkpoints, evaluate, run, running
from bitlab.experiments import stage as stages
from bitlab.experiments.folder import RESULT
from bitlab.experiments.prepared import prepare
from bitlab.models import load_model, load_tokenizer
from bitlab.terminal.options import kind
from bitlab.terminal.options import options as fields

TINY = {"max_steps": 12, "batch_size": 8, "learning_rate": 5e-4, "teacher_learning_rate": 5e-4}


pytestmark = pytest.mark.usefixtures("cheap", "here")


@pytest.fixture(scope="module", autouse=True)
def glue(tmp_path_factory):
    """A folder of original files: a few rows of the sample tasks."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("data") / "glue"
    for name in ("rte", "sst2", "stsb", "mnli"):
        write_glue(root, name, {split: rows.select(range(64)) for split, rows in load_glue(name, "sample").items()})
    model = AutoModelForSequenceClassification.from_config(sample_config(hidden_dropout_prob=0.1)).base_model
    save(model, root.parent / "small")  # with dropout: interrupted or not, its masks must be the same
    TINY.update(data=str(root), model=str(root.parent / "small"))
    return root


def go(folder, task="rte", again=False, report=silent, any_teacher=True, **options):
    """Run an experiment. A given teacher may be as bad as one after twelve steps is."""
    with pytest.MonkeyPatch.context() as patch:
        if any_teacher and "teacher" in options:
            patch.setattr(stages.Prepared, "trivial_score", lambda self: 0.0)
        return run(Experiment(task, **TINY | options), folder, again, report)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, result) of a finished run, not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, go(folder)


def weights(folder, precision="W1A1"):
    return load_file(folder / precision / "model.safetensors")


def scores(result):
    return [(stage["precision"], stage["score"], stage["metrics"], stage["steps"]) for stage in result["stages"]]


def log(folder, precision="W1A1"):
    return files.read_json(folder / precision / "log.json", list)


def ends_alike(unbroken, folder, **options):
    """The command that made one run makes, or finishes, another, which comes to the same scores and weights."""
    whole, result = unbroken
    assert scores(go(folder, **options)) == scores(result)
    assert same(weights(folder), weights(whole))


def tree(folder):
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.name != ".lock"}


# ---------------------------------------------------------------------------------------------- the result


def test_a_command_is_kept_as_typed_without_paths_of_this_machine():
    typed = ["bitlab", "glue", "rte", "--data=/home/me/data/glue", "--teacher", "/x/rte/W32A32", "--model", "my/model"]
    kept = "bitlab glue rte --data=data/glue --teacher rte/W32A32 --model my/model"
    assert running._command([*typed, "--schedule", "W1A2 -> W1A1"]) == kept + " --schedule 'W1A2 -> W1A1'"
    assert running._command([]) is None


def test_the_result_and_what_lies_in_the_folder(finished):
    folder, result = finished
    assert json.loads((folder / "result.json").read_text()) == result
    assert result["schedule"] == "W32A32 -> W1A2 -> W1A1" and result["config"]["examples"]["train"] == 64
    assert str(folder.parent) not in (folder / "result.json").read_text()
    precisions = [stage["precision"] for stage in result["stages"]]
    assert {p.name for p in folder.iterdir()} == {".lock", "experiment.json", "result.json", *precisions}
    for stage in result["stages"]:
        place = folder / stage["precision"]
        assert stage["steps"] == 12 and stage["seconds"] > 0
        assert stage["score"] == stage["metrics"]["accuracy"] and 0 <= stage["score"] <= 1
        entries = log(folder, stage["precision"])
        losses = [entry["loss"] for entry in entries if "loss" in entry]
        distilled = stage["precision"] != "W32A32"
        assert len(losses) == 12 and ("loss_hidden" in entries[0]) is distilled
        assert losses[-1] < losses[0] or not distilled  # twelve steps on labels need not get anywhere
        predictions = (place / "predictions" / "dev" / "RTE.tsv").read_text().splitlines()[1:]
        dev = load_glue("rte", "sample")["validation"]
        words = [dev.features["label"].names[label] for label in dev["label"][: len(predictions)]]
        right = sum(line == f"{i}\t{word}" for i, (line, word) in enumerate(zip(predictions, words, strict=True)))
        assert right / len(words) == stage["score"]
        assert f"| {stage['score']:.3f} (accuracy" in (place / "README.md").read_text()


def test_every_stage_reloads_and_evaluates_to_its_score(finished, glue):
    folder, result = finished
    task = get_task("rte")
    for stage in result["stages"]:
        model = AutoModelForSequenceClassification.from_pretrained(folder / stage["precision"])
        data = prepare(task, str(glue), AutoTokenizer.from_pretrained(folder / stage["precision"]))
        assert evaluate(model, data) == (stage["score"], stage["metrics"])
        config = getattr(model.config, "quantization_config", None)
        history = {"W32A32": None, "W1A2": "W32A32 -> W1A2", "W1A1": "W32A32 -> W1A2 -> W1A1"}[stage["precision"]]
        assert getattr(config, "history", None) == history
        assert getattr(config, "precision", "W32A32") == stage["precision"]
    assert not list(Path.cwd().iterdir())  # an evaluation leaves nothing behind


def test_a_stage_starts_where_the_one_before_ended(finished):
    """12 steps at a rate of 5e-4 move a weight by less than 0.006; another start would be 0.02 apart."""
    folder, _ = finished
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    full, middle, last = (weights(folder, precision)[name] for precision in ("W32A32", "W1A2", "W1A1"))
    assert 0 < (middle - full).abs().max() < 7e-3 and 0 < (last - middle).abs().max() < 7e-3
    other = load_model("sample", "rte", seed=1).state_dict()[name]
    assert (other - full).abs().max() > 0.02


def test_a_finished_experiment_is_not_run_twice(finished, monkeypatch):
    folder, result = finished
    before, lines = tree(folder), []
    monkeypatch.setattr(running, "train_stage", lambda *args, **kwargs: pytest.fail("trained again"))
    assert go(folder, report=lines.append) == result
    assert tree(folder) == before and "--again" in lines[-1]


def test_again_runs_it_again_and_finds_the_same(finished, tmp_path):
    folder, result = finished
    assert scores(go(tmp_path / "run")) == scores(result)
    first = tree(tmp_path / "run")
    assert scores(go(tmp_path / "run", again=True)) == scores(result)
    for precision in ("W32A32", "W1A2", "W1A1"):
        assert same(weights(folder, precision), weights(tmp_path / "run", precision))
    assert first["W1A1/model.safetensors"] != tree(tmp_path / "run")["W1A1/model.safetensors"]


def test_another_seed_is_another_run(finished, tmp_path):
    go(tmp_path / "run", seed=1, schedule="W1A1", max_steps=2)
    assert not same(weights(finished[0], "W32A32"), weights(tmp_path / "run", "W32A32"))


# ---------------------------------------------------------------------------------------- interruptions


def killed(moment, folder, **options):
    """An experiment that dies at a moment of its W1A1 stage."""
    place, name, when = MOMENTS[moment]
    original = getattr(place, name)

    def dying(*args, **kwargs):
        if when(*args):
            raise Killed
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(place, name, dying)
        go(folder, **options)


MOMENTS = {  # the function that is called then, and which of its calls it is
    "first step": (stages.ShowProgress, "on_train_begin", lambda self, *_: self.title == "W1A1"),
    "checkpoint half written": (
        checkpoints.MarkWhole,
        "on_save",
        lambda self, args, state, *_: "W1A1" in args.output_dir and state.global_step > 25,
    ),
    "trained, not evaluated": (running, "predict", lambda model, *_: hasattr(model.config, "quantization_config")),
    "stage half saved": (files, "write_json", lambda path, _: path.parent.name == f"W1A1{files.PARTIAL}"),
    "before the result": (files, "write_json", lambda path, _: path.name == RESULT),
}


@pytest.fixture(scope="module")
def short(finished):
    """One stage, with checkpoints at 25 and 30 steps, both in the middle of an epoch."""
    return {"schedule": "W1A1", "max_steps": 30, "teacher": str(finished[0] / "W32A32")}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, short):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    return folder, go(folder, **short)


@pytest.mark.parametrize("moment", MOMENTS)
def test_interrupted_and_gone_on_with(unbroken, short, tmp_path, moment):
    folder = tmp_path / "run"
    killed(moment, folder, **short)
    assert not (folder / "result.json").exists()
    kept = tree(folder / "W32A32")
    ends_alike(unbroken, folder, **short)
    assert tree(folder / "W32A32") == kept
    assert {p.name for p in folder.iterdir()} == {p.name for p in unbroken[0].iterdir()}


@pytest.mark.parametrize("options", [{"method": "bit-released", "batch_size": 2}, {"selection": "best"}], ids=str)
def test_the_other_kinds_of_run_go_on_too(short, tmp_path, options):
    settings = short | {"max_steps": 28} | options
    whole = tmp_path / "unbroken", go(tmp_path / "unbroken", **settings)
    killed("checkpoint half written", tmp_path / "broken", **settings)
    ends_alike(whole, tmp_path / "broken", **settings)


def command_line(arguments, printed):
    """What `python -m bitlab` does, in a process that has its imports behind it; what it prints goes to a file."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in a background job it is ignored
    with open(printed, "w", buffering=1) as sys.stdout:
        sys.exit(cli.main(arguments))


def reached(printed, point):
    """Whether what was printed has come to a point (precision, step) or beyond."""
    lines = re.findall(r"(W\w+): step (\d+) of 40", printed.read_text()) if printed.exists() else []
    order = ("W32A32", "W1A1")
    return any((order.index(name), int(step)) >= (order.index(point[0]), point[1]) for name, step in lines)


def test_killed_at_any_point(tmp_path, glue):
    """Or interrupted, three times in one experiment; the same command then ends with an unbroken run's weights."""
    result = go(tmp_path / "unbroken", schedule="W1A1", max_steps=40)
    arguments = ["glue", "rte", "--schedule", "W1A1", "--max-steps", "40", "--output", str(tmp_path / "killed")]
    for option in ("data", "model", "batch_size", "learning_rate", "teacher_learning_rate"):
        arguments += ["--" + option.replace("_", "-"), str(TINY[option])]
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["bitlab.experiments.running"])
    chance, printed = random.Random(18), tmp_path / "printed"
    points = ("W32A32", chance.randrange(6, 40)), ("W1A1", chance.randrange(6, 24)), ("W1A1", 36)
    for point, how in zip(points, (signal.SIGKILL, signal.SIGINT, signal.SIGKILL)):
        process = server.Process(target=command_line, args=(arguments, printed))
        process.start()
        while process.is_alive() and not reached(printed, point):
            time.sleep(0.01)
        # after the line comes a part of the next steps, or of the evaluation and saving that follow
        process.join(chance.uniform(0, 0.3))
        with contextlib.suppress(ProcessLookupError):  # it has come to its end
            os.kill(process.pid, how)
        process.join()
        assert process.exitcode in (0, {signal.SIGKILL: -9, signal.SIGINT: 130}[how]), printed.read_text()
        printed.unlink(missing_ok=True)
    assert cli.main([*arguments, "--json"]) == 0
    assert scores(json.loads((tmp_path / "killed" / "result.json").read_text())) == scores(result)
    for precision in ("W32A32", "W1A1"):
        assert same(weights(tmp_path / "unbroken", precision), weights(tmp_path / "killed", precision))
        assert log(tmp_path / "unbroken", precision) == log(tmp_path / "killed", precision)


# What may befall a checkpoint's file: it is lost, cut, or one byte is another.
DAMAGES = {
    "lost": lambda path: path.unlink(),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "changed": lambda path: path.write_bytes(path.read_bytes()[:50] + b"?" + path.read_bytes()[51:]),
}
FILES = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "model.safetensors", checkpoints.WHOLE]


@pytest.fixture(scope="module")
def unevaluated(tmp_path_factory, short):
    """A run that has just trained its student and has both checkpoints of that."""
    folder = tmp_path_factory.mktemp("unevaluated") / "run"
    killed("trained, not evaluated", folder, **short)
    return folder


@pytest.mark.parametrize(
    ("name", "damage"), [(name, random.Random(i).choice(list(DAMAGES))) for i, name in enumerate(FILES)]
)
def test_a_damaged_checkpoint_is_not_gone_on_with(unbroken, unevaluated, short, tmp_path, name, damage):
    """Training goes on from an older one, or from the start: the same weights in the end."""
    run = Path(shutil.copytree(unevaluated, tmp_path / "run"))
    for checkpoint in (run / "W1A1.training").glob("checkpoint-*"):
        DAMAGES[damage](checkpoint / name)
    ends_alike(unbroken, run, **short)


@pytest.mark.parametrize("deletions", range(4))
def test_again_interrupted_is_still_the_same_experiment(unbroken, short, tmp_path, monkeypatch, deletions):
    """The teacher that was given is not forgotten, whatever of the folder is gone."""
    folder = Path(shutil.copytree(unbroken[0], tmp_path / "run"))
    done = iter(range(deletions))

    def rmtree(path, *args, **options):
        if folder in Path(path).parents and next(done, None) is None:
            raise Killed
        original(path, *args, **options)

    original = shutil.rmtree
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", rmtree)
        with pytest.raises(Killed):
            go(folder, again=True, **short)
    spied(monkeypatch)
    assert scores(go(folder, **short))[0] == scores(unbroken[1])[0]
    assert same(weights(unbroken[0], "W32A32"), weights(folder, "W32A32"))


def test_a_diverged_training_is_refused_and_nothing_is_stored(tmp_path):
    with pytest.raises(BitlabError, match=r"diverged|NaN"):
        go(tmp_path / "run", schedule="W1A1", max_steps=3, learning_rate=1e30)
    assert (tmp_path / "run" / "W32A32").exists() and not (tmp_path / "run" / "W1A1").exists()


def test_a_model_with_nan_is_never_saved(tmp_path):
    model = load_model("sample", "rte")
    model.classifier.bias.data[0] = float("inf")
    with pytest.raises(BitlabError, match=r"diverged, classifier\.bias holds NaN or infinity: take lower"):
        stages.save_stage(tmp_path / "W1A1", model, sample_tokenizer(), {}, [])
    assert not (tmp_path / "W1A1").exists()


def test_logs_for_tensorboard_stay_beside_the_stage(tmp_path):
    for place in ("runs/today", "phase2/runs/today"):
        (tmp_path / "training" / place).mkdir(parents=True)
        (tmp_path / "training" / place / "events.1").write_text("curve")
    stages.save_stage(
        tmp_path / "W1A1", load_model("sample"), sample_tokenizer(), {}, [], training=tmp_path / "training"
    )
    found = sorted(str(p.relative_to(tmp_path / "W1A1" / "runs")) for p in tmp_path.rglob("events.1"))
    assert found == ["phase2/today/events.1", "today/events.1"] and not (tmp_path / "training").exists()


def test_a_full_disk_loses_nothing(unbroken, short, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        if (tmp_path / "run" / "W32A32").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(*args, **kwargs)

    save = torch.save
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(BitlabError, match="the disk is full"):
        go(tmp_path / "run", **short)
    monkeypatch.setattr(torch, "save", save)
    ends_alike(unbroken, tmp_path / "run", **short)


# --------------------------------------------------------------------------------------------- options


def test_as_released_the_classifier_of_a_regression_never_trains(tmp_path):
    """Its gradient is zero: the bias stays the teacher's, the weight only decays. As corrected both learn."""
    for method, learns in (("bit", True), ("bit-released", False)):
        folder = tmp_path / method
        result = go(folder, "stsb", method=method, schedule="W1A1", max_steps=3)
        assert set(result["stages"][1]["metrics"]) == {"pearson", "spearman"} and result["method"] == method
        teacher, student = weights(folder, "W32A32"), weights(folder)
        assert torch.equal(teacher["classifier.bias"], student["classifier.bias"]) is not learns
        ratio = student["classifier.weight"] / teacher["classifier.weight"]
        assert (ratio.std().item() < 1e-5) is not learns
        assert all((entry["loss_logits"] == 0) is not learns for entry in log(folder) if "loss_logits" in entry)


@pytest.mark.parametrize("selection", ["best", "both"])
def test_the_best_of_ten_dev_evaluations_is_the_result_or_told_beside_it(tmp_path, selection):
    options = {"schedule": "W1A1", "max_steps": 10, "learning_rate": 5e-3, "dropout": 0.0, "selection": selection}
    result = go(tmp_path / "run", **options)
    found = [entry["eval_score"] for entry in log(tmp_path / "run") if "eval_score" in entry]
    stage = bitlab.results.frame([result]).iloc[1]
    assert len(found) == 10 and stage.best == max(found) > min(found)
    expected = max(found) if selection == "best" else found[-1]
    assert stage.score == pytest.approx(expected, abs=0.02)  # another precision: one of 64 rows


def spied(monkeypatch, alpha=0.5):
    """Stages that do not train; what each was given, by precision."""
    seen = {}

    def train_stage(model, teachers, rows, collate, settings, folder, **options):
        precisions = []
        for each in teachers:
            config = getattr(each.config, "quantization_config", None)
            precisions.append(config.precision if config else "W32A32")
        binarizers = [m for m in model.modules() if isinstance(m, bitlab.ElasticBinarizer)]
        state = {(m.alpha.item(), bool(m.initialized)) for m in binarizers if not m.signed}
        dropouts = {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}
        seen[options["title"]] = {"teachers": precisions, "alphas": state, "dropouts": dropouts, **options}
        for m in binarizers:
            m.alpha.data.fill_(alpha)
            m.initialized.fill_(True)
        return stages.Trained([], 0, 0.0)

    monkeypatch.setattr(running, "train_stage", train_stage)
    return seen


@pytest.mark.parametrize(
    ("stage_teacher", "teachers"), [("previous", ["W1A2"]), ("full", ["W32A32"]), ("both", ["W1A2", "W32A32"])]
)
def test_who_teaches_a_stage(tmp_path, monkeypatch, stage_teacher, teachers):
    seen = spied(monkeypatch)
    go(tmp_path / "run", schedule="W1A4 -> W1A2 -> W1A1", stage_teacher=stage_teacher)
    assert list(seen) == ["W32A32", "W1A4", "W1A2", "W1A1"]
    assert seen["W32A32"]["teachers"] == [] and seen["W1A4"]["teachers"] == ["W32A32"]
    assert seen["W1A1"]["teachers"] == teachers


@pytest.mark.parametrize(
    ("policy", "alpha", "started"), [("reinit", 0.5, False), ("carry", 0.5, True), ("rescale", 0.5 * 3**0.5, True)]
)
def test_what_becomes_of_the_scales(tmp_path, monkeypatch, policy, alpha, started):
    """An unsigned scale goes from codes up to 3 to codes up to 1: rescaled, it grows by sqrt(3)."""
    seen = spied(monkeypatch)
    go(tmp_path / "run", alpha=policy)
    assert {initialized for _, initialized in seen["W1A2"]["alphas"]} == {False}
    ((found, initialized),) = seen["W1A1"]["alphas"]
    assert found == pytest.approx(alpha) and initialized is started


@pytest.mark.parametrize("dropout", [None, 0.0, 0.2])
def test_the_students_dropout(tmp_path, monkeypatch, dropout):
    seen = spied(monkeypatch)
    go(tmp_path / "run", dropout=dropout)
    own = seen["W32A32"]["dropouts"]
    assert own and (dropout is None or own != {dropout})
    for student in ("W1A2", "W1A1"):
        assert seen[student]["dropouts"] == (own if dropout is None else {dropout})


def test_trained_in_mixed_precision_and_evaluated_in_float32(tmp_path, glue):
    """A stage's model is scored as it will be when it is loaded again: to the last digit."""
    result = go(tmp_path / "run", "stsb", schedule="W1A1", max_steps=3, bf16=True)
    for stage in result["stages"]:
        folder = tmp_path / "run" / stage["precision"]
        data = prepare(get_task("stsb"), str(glue), load_tokenizer(folder))
        assert evaluate(load_model(folder, "stsb"), data)[1] == stage["metrics"]


def test_the_loss_is_as_asked(tmp_path, monkeypatch):
    seen = spied(monkeypatch)
    weights_ = {"logit_weight": 0.5, "hidden_weight": 2.0, "attention_weight": 0.1, "temperature": 3.0}
    go(tmp_path / "run", method="bit-released", **weights_)
    config = seen["W1A1"]["distillation"]
    assert (config.logits, config.hidden, config.attention, config.temperature) == (0.5, 2.0, 0.1, 3.0)
    assert config.per_element and config.count_padding and seen["W1A1"]["released_optimizer"]
    assert seen["W32A32"]["distillation"] is None  # from the labels


def test_mnli_has_two_dev_sets(tmp_path, monkeypatch):
    spied(monkeypatch)
    result = go(tmp_path / "run", "mnli", schedule="W1A1")
    metrics = result["stages"][1]["metrics"]
    assert set(metrics) == {"accuracy", "accuracy_mismatched"}
    assert result["stages"][1]["score"] == pytest.approx(sum(metrics.values()) / 2)


def test_every_task_has_a_recipe():
    for name in ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "squad"):
        task = get_task(name)
        paper = Experiment(name, model="minilm", preset="full").settings("W1A2")
        assert (paper.epochs, paper.batch_size) == (task.epochs, task.batch_size)
        assert paper.max_steps is None and paper.alpha_learning_rate == 1e-4 and paper.weight_decay == 0.01
        assert Experiment(name).settings("W1A1").steps(10_000) <= 400


def test_the_budget_can_be_given():
    given = Experiment("rte", epochs=2, batch_size=4, learning_rate=1e-3, alpha_learning_rate=1e-5)
    settings = given.settings("W1A1")
    assert settings.steps(100) == 50 and settings.learning_rate == 1e-3 and settings.alpha_learning_rate == 1e-5
    assert Experiment("rte", epochs=2, max_steps=7).settings("W1A1").steps(1000) == 7


# ------------------------------------------------------------------------------------------- teachers


def constant(folder):
    """A teacher that gives every example the same answer."""
    model = load_model("sample", "rte")
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([1.0, 0.0]))
    return save(model, folder)


def test_a_teacher_below_the_trivial_score_is_refused_and_nothing_is_written(tmp_path):
    teacher = constant(tmp_path / "teacher")
    with pytest.raises(BitlabError, match=r"teacher 'teacher' scores 0\.\d+ on RTE dev, expected above"):
        go(tmp_path / "run", teacher=str(teacher), any_teacher=False)
    assert not (tmp_path / "run").exists() and not list(Path.cwd().iterdir())


@pytest.mark.parametrize("option", ["model", "teacher"])
def test_a_tokenizer_that_knows_too_many_words_is_refused(tmp_path, option):
    small = sample_config(vocab_size=40)
    save(AutoModelForSequenceClassification.from_config(small), tmp_path / "odd")
    with pytest.raises(BitlabError, match=r"the tokenizer in '.*odd' has \d\d\d? words, its model 40: save"):
        go(tmp_path / "run", **{option: str(tmp_path / "odd")})
    assert not (tmp_path / "run").exists()


def test_what_cannot_become_binary_is_refused_before_anything_is_trained(finished, tmp_path):
    binary = str(finished[0] / "W1A1")
    gpt2 = GPT2Config(vocab_size=112, n_positions=64, n_embd=16, n_layer=1, n_head=2, num_labels=2, pad_token_id=0)
    save(AutoModelForSequenceClassification.from_config(gpt2), tmp_path / "gpt2")
    for options in ({"model": binary}, {"teacher": binary}, {"model": str(tmp_path / "gpt2")}):
        with pytest.raises(BitlabError, match=r"binary already|not built as bitlab expects"):
            go(tmp_path / "run", **options)
        assert not (tmp_path / "run").exists()


def test_a_run_knows_its_teacher_and_its_data_by_content(finished, tmp_path, monkeypatch):
    """Another teacher of the same name, or a row that was edited, is another experiment."""
    spied(monkeypatch)
    teachers = [tmp_path / name / "W32A32" for name in "ab"]
    for seed, teacher in enumerate(teachers):
        save(load_model("sample", "rte", seed=seed), teacher)
    first = go(tmp_path / "run", schedule="W1A1", teacher=str(teachers[0]))
    assert go(tmp_path / "run", schedule="W1A1", teacher=str(teachers[0])) == first
    with pytest.raises(BitlabError, match="another experiment: its model_digest"):
        go(tmp_path / "run", schedule="W1A1", teacher=str(teachers[1]))

    def edited(*args, **options):
        data = prepare(*args, **options)
        data.train = data.train.map(
            lambda row, place: {"labels": 1 - row["labels"] if place == 3 else row["labels"]}, with_indices=True
        )
        return data

    monkeypatch.setattr(running, "prepare", edited)
    with pytest.raises(BitlabError, match="another experiment: its data_digest"):
        go(tmp_path / "run", schedule="W1A1", teacher=str(teachers[0]))


def test_a_good_teacher_is_taken_as_it_is(finished, tmp_path):
    teacher = finished[0] / "W32A32"
    settings = {"teacher": str(teacher), "schedule": "W1A1", "max_steps": 3}
    for again in (False, True):
        result = go(tmp_path / "run", again=again, **settings)
        assert scores(result)[0] == scores(finished[1])[0]
        assert same(weights(teacher.parent, "W32A32"), weights(tmp_path / "run", "W32A32"))
    assert result["config"]["teacher"] == "W32A32" and result["stages"][1]["steps"] == 3


def test_a_given_teachers_words_are_its_own(finished, tmp_path, monkeypatch):
    """Its student is made from it, whatever --model says: so the tokenizer has to be the teacher's."""
    asked = []
    monkeypatch.setattr(running, "load_tokenizer", lambda name: asked.append(str(name)) or load_tokenizer("sample"))
    spied(monkeypatch)
    go(tmp_path / "run", schedule="W1A1", model="sample", teacher=str(finished[0] / "W32A32"))
    assert asked == [str(finished[0] / "W32A32")]


def test_the_trivial_score(glue):
    data = prepare(get_task("rte"), str(glue), load_tokenizer("sample"))
    labels = data.evaluations["validation"]["labels"]
    assert data.trivial_score() == max(labels.count(0), labels.count(1)) / len(labels)
    assert prepare(get_task("stsb"), str(glue), load_tokenizer("sample")).trivial_score() == 0


# -------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "magic"}, "method 'magic' does not exist: choose bit"),
        ({"method": "bibert", "schedule": "W1A2 -> W1A1"}, "W1A2 does not exist for bibert"),
        ({"schedule": "W2A4 -> W1A4"}, "W2A4 does not exist"),
        ({"method": "bibert", "hidden_weight": 2.0}, "bibert has its own loss: leave hidden_weight alone"),
        ({"method": "binarybert", "temperature": 2.0}, "leave temperature alone"),
        ({"logit_weight": 0, "hidden_weight": 0}, "nothing to learn from"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_settings_that_make_no_sense(options, says):
    with pytest.raises(BitlabError, match=says):
        Experiment(**{"task": "rte"} | options)


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        (Experiment, {"task": "squad"}),
        (GeneralDistillation, {"texts": ("texts.txt",)}),
        (Settings, {"tries": 1}),
        (OwnData, {"text": "text", "label": "label"}),
        (BenchSettings, {}),
    ],
)
def test_every_number_has_bounds(settings, needed):
    """A setting of ours that takes any number would train on nonsense, or take the machine down."""
    for field in (field for field in fields(settings) if kind(field) in (int, float, tuple) and field.name != "texts"):
        too_large = [] if field.name.endswith(("rate", "weight", "temperature")) else [10**12]
        for value in (-(10**9), float("nan"), True, *too_large):
            with pytest.raises(BitlabError, match=f"{field.name} is"):
                settings(**needed | {field.name: (value,) if kind(field) is tuple else value})


def test_paths_may_begin_with_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    names = [field.name for field in fields(Experiment) if field.metadata["path"]]
    asked = Experiment("rte", **dict.fromkeys(names, "~/there"))
    assert len(names) == 5 and {getattr(asked, name) for name in names} == {"/home/me/there"}


def test_the_folders_name_tells_runs_apart():
    names = {
        Experiment("rte", **options).folder_name
        for options in ({}, {"seed": 1}, {"schedule": "W1A1"}, {"method": "bit-released"}, {"preset": "full"})
    }
    assert len(names) == 5 and all("/" not in name and " " not in name for name in names)
