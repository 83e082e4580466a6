"""The command line: what it prints where, exit codes, and one clear line for every kind of bad input."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

import bitlab
from bitlab import cli, experiments
from bitlab.bench.settings import BenchSettings
from bitlab.config import ALPHA_POLICIES
from bitlab.data.sample import sample_tokenizer
from bitlab.data.settings import Settings
from bitlab.data.tasks import get_task
from bitlab.experiments import experiment
from bitlab.experiments.recipes import RECIPES
from bitlab.models import load_model, load_tokenizer
from bitlab.options import given, kind, options
from bitlab.startup import STOPPED

HEADER = "index\tsentence1\tsentence2\tlabel\n"
ROW = "0\ta red cup .\tthe cup is red .\tentailment\n1\ta red cup .\tthe cup is blue .\tnot_entailment\n"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty current folder, one thread, no compiler, and no data that the environment names."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("BITLAB_COMPILE", "off")
    monkeypatch.delenv("BITLAB_DATA", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield folder
    torch.set_num_threads(threads)


def refused(capsys, *arguments) -> str:
    """The one line on standard error of a command that leaves with 2 and writes nothing."""
    before = sorted(Path.cwd().rglob("*"))
    assert cli.main([str(a) for a in arguments]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("bitlab: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert "Traceback" not in out and sorted(Path.cwd().rglob("*")) == before
    return err


def data(folder, train=HEADER + ROW * 8, dev=HEADER + ROW * 4):
    (folder / "RTE").mkdir(parents=True)
    for name, text in (("train.tsv", train), ("dev.tsv", dev)):
        if text is not None:
            (folder / "RTE" / name).write_text(text)
    return folder


# ------------------------------------------------------------------------------------------- good input


def test_a_run_and_its_table(capsys, here):
    command = ["glue", "rte", "--data", "sample", "--train-examples", "64", "--max-steps", "2", "--schedule", "W1A1"]
    assert cli.main(command) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "data: sample, as asked"
    assert "stage 1 of 1: W1A1" in lines and any("W1A1: step 1 of 2, loss " in line for line in lines)
    assert lines[-3] == "rte · sample · data: sample · seed 0"
    assert lines[-1].split()[0] == "W1A1" and lines[-1].endswith("(2 steps)")
    assert "Error" not in err and "Warning" not in err
    (folder,) = (here / "runs").iterdir()
    assert folder.name == "rte-bit-sample-W1A1-quick-seed0"
    result = json.loads((folder / "result.json").read_text())
    assert result["command"] == shlex.join(["bitlab", *command])

    assert cli.main([*command, "--json"]) == 0  # finished: printed, not run
    assert json.loads(capsys.readouterr().out) == result
    assert sorted(p.name for p in here.iterdir()) == ["runs"]


def test_json_is_all_that_goes_to_standard_output(here):
    command = [sys.executable, "-m", "bitlab", "glue", "sst2", "--data", "sample", "--train-examples", "32", "--json"]
    command += ["--max-steps", "1", "--schedule", "W1A1", "--output", "run"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(bitlab.__file__).parent.parent)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(Path("run/result.json").read_text())


def test_options_reach_the_experiment(monkeypatch, capsys):
    seen = {}

    def run(experiment, output, again, report, splits, typed):
        seen.update(vars(experiment), output=output, again=again, typed=typed)
        return {"task": "rte", "model": "m", "data": "d", "seed": 3, "stages": []}

    monkeypatch.setattr(experiments, "run", run, raising=False)
    text = "glue RTE --model minilm --data hub --schedule W1A4->W1A1 --method bit-released --preset full --seed 3"
    text += " --max-steps 7 --teacher here --train-examples 9 --epochs 1.5 --batch-size 4 --learning-rate 1e-3"
    text += " --temperature 2 --attention-weight 0.5 --teacher-epochs 2 --teacher-learning-rate 1e-4"
    text += " --alpha carry --stage-teacher both --selection best"
    assert cli.main([*text.split(), "--output", "there", "--again"]) == 0
    expected = {"task": "rte", "model": "minilm", "data": "hub", "schedule": "W32A32 -> W1A4 -> W1A1", "seed": 3}
    expected |= {"method": "bit-released", "preset": "full", "max_steps": 7, "teacher": "here", "train_examples": 9}
    expected |= {"epochs": 1.5, "batch_size": 4, "learning_rate": 1e-3, "teacher_epochs": 2.0, "alpha": "carry"}
    expected |= {"teacher_learning_rate": 1e-4, "stage_teacher": "both", "selection": "best"}
    expected |= {"temperature": 2.0, "attention_weight": 0.5}
    expected |= {"output": "there", "again": True, "typed": ["bitlab", *text.split(), "--output", "there", "--again"]}
    assert expected == {name: seen[name] for name in expected}


def test_every_field_has_its_option_and_the_experiments_own_default():
    """What isn't given is the dataclass's matter: the parser knows no defaults."""
    for command, settings in (("glue rte", experiments.Experiment), ("squad", experiments.Experiment)):
        assert given(settings, cli._parser().parse_args(command.split())) == {"task": command.split()[-1]}
    kinds = {int: "3", float: "0.5", str: "word", bool: None, tuple: "4"}
    for command, settings in (
        ("squad", experiments.Experiment),
        ("distil texts.txt --output there", experiments.GeneralDistillation),
        ("augment rte --vectors there", Settings),
        ("bench", BenchSettings),
    ):
        words, expected = command.split(), {}
        for each in options(settings):
            if each.name in ("task", "texts"):
                continue
            value = kinds[kind(each)]
            words += ["--" + each.name.replace("_", "-"), *([value] if value else [])]
            expected[each.name] = True if value is None else [4] if kind(each) is tuple else kind(each)(value)
        found = given(settings, cli._parser().parse_args(words))
        assert expected == {name: found[name] for name in expected}
        assert all(each.metadata["help"] for each in options(settings))


def test_names_that_are_stated_where_torch_is_not_loaded():
    """`--help` must not wait for the modules that have them; here both are held to be the same."""
    assert tuple(RECIPES) == experiment.METHODS and set(ALPHA_POLICIES) == set(experiment.ALPHA_POLICIES)


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["glue", "--help"])
    out = capsys.readouterr().out
    assert caught.value.code == 0
    for option in ["model", "data", "schedule", "method", "preset", "seed", "max-steps", "output", "json"]:
        assert f"--{option}" in out


def test_an_interrupted_command_says_how_to_go_on(capsys, monkeypatch):
    def run(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiments, "run", run, raising=False)
    assert cli.main(["glue", "rte"]) == 130
    assert capsys.readouterr().err == f"{STOPPED}\n"


def command_line(*arguments, **options):
    """A process that runs `python -m bitlab ...`."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(bitlab.__file__).parent.parent)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment |= options.pop("env", {})
    python = [sys.executable, *options.pop("python", ["-m", "bitlab"])]
    return subprocess.Popen([*python, *arguments], env=environment, **pipes)


@pytest.mark.parametrize("arguments", ["", "--version", "--help", "glue --help", "distil --help", "augment --help"])
def test_what_needs_no_torch_does_not_wait_for_it(arguments):
    process = command_line(*arguments.split(), python=["-X", "importtime", "-m", "bitlab"])
    out, err = process.communicate()
    loaded = {line.split("|")[-1].strip() for line in err.splitlines()}
    assert process.returncode == 0 and ("bitlab 0" if "version" in arguments else "usage: bitlab") in out
    assert "argparse" in loaded and not {"torch", "transformers", "datasets", "numpy"} & loaded


@pytest.mark.parametrize("module", ["bitlab.cli", "torch", "transformers.trainer", "bitlab.experiments.running"])
def test_ctrl_c_while_modules_load_is_one_line(tmp_path, module):
    """In the middle of an import an exception would be caught or printed by who knows whom."""
    (tmp_path / "sitecustomize.py").write_text(SITE.format(module=module))
    path = f"{tmp_path}{os.pathsep}{Path(bitlab.__file__).parent.parent}"
    process = command_line("glue", "rte", "--data", "sample", env={"PYTHONPATH": path})
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, f"{STOPPED}\n") and "Traceback" not in out


SITE = """
import os, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # in a background job it is ignored

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "{module}":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
"""


def test_an_ascii_terminal(monkeypatch):
    process = command_line("results", "--format", "text", env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    out, err = process.communicate()
    assert process.returncode == 0 and err == "" and "?" in out


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (FileNotFoundError(2, "No such file or directory", "gone"), "gone can't be used (No such file or directory)"),
        (MemoryError(), "not enough memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            "not enough memory",
        ),
    ],
)
def test_what_is_expected_to_fail_is_one_line(capsys, monkeypatch, error, says):
    def run(*args, **kwargs):
        raise error

    monkeypatch.setattr(experiments, "run", run, raising=False)
    assert says in refused(capsys, "glue", "rte")
    error = KeyError("a fault of ours")
    with pytest.raises(KeyError):
        cli.main(["glue", "rte"])


# -------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("sing",), "invalid choice: 'sing'"),
        (("glue",), "required: TASK"),
        (("glue", "imdb"), "unknown task 'imdb'"),
        (("glue", "rt"), "Did you mean 'rte'?"),
        (("glue", "squad"), "no GLUE task"),
        (("glue", "rte", "--fast"), "unrecognized arguments: --fast"),
        (("glue", "rte", "--seed", "x"), "--seed: invalid int value: 'x'"),
        (("glue", "rte", "--seed", "-1"), "seed is -1"),
        (("glue", "rte", "--max-steps", "0"), "max_steps is 0"),
        (("glue", "rte", "--epochs", "1e308"), "epochs is 1e+308"),
        (("squad", "--max-length", "5"), "max_length is 5"),
        (("bench", "--threads", "2147483648"), "threads is 2147483648"),
        (("bench", "--threads", "100000"), "threads is 100000"),
        (("bench", "--batch", "1000000000"), "batch is 1000000000"),
        (("distil", "texts.txt", "--output", "x", "--seed=-1"), "seed is -1"),
        (("distil", "texts.txt", "--output", "x", "--epochs", "1e308"), "epochs is 1e+308"),
        (("glue", "rte", "--data", "sample", "--output", "~nosuchuser/x"), "'~nosuchuser/x' is nobody's"),
        (("glue", "rte", "--data", "sample", "--model", "~nosuchuser/x"), "'~nosuchuser/x' is nobody's"),
        (("glue", "rte", "--data", "n" * 300), "File name too long"),
        (("glue", "rte", "--epochs", "nan"), "epochs is nan"),
        (("glue", "rte", "--batch-size", "-8"), "batch_size is -8"),
        (("glue", "rte", "--schedule", ""), "names no stage"),
        (("glue", "rte", "--schedule", "W32A32"), "names no stage after W32A32"),
        (("glue", "rte", "--schedule", "W1A1 -> W1A2"), "goes up in precision from W1A1 to W1A2"),
        (("glue", "rte", "--schedule", "W1A2 -> W1A2"), "repeats W1A2"),
        (("glue", "rte", "--schedule", "W3A1"), "W3A1 does not exist"),
        (("glue", "rte", "--schedule", "tiny"), "'tiny' is no precision"),
        (("glue", "rte", "--method", "magic"), "method 'magic' does not exist"),
        (("glue", "rte", "--preset", "huge"), "preset 'huge' does not exist"),
        (("glue", "rte", "--alpha", "x"), "alpha 'x' does not exist"),
        (("glue", "rte", "--stage-teacher", "x"), "stage_teacher 'x' does not exist"),
        (("glue", "rte", "--selection", "x"), "selection 'x' does not exist"),
        (("glue", "rte", "--data", "nowhere"), "'nowhere' does not exist"),
        (("glue", "rte", "--model", "./nowhere"), "no model folder './nowhere'"),
        (("glue", "rte", "--model", "me/mine"), "the hub can't be reached"),
        (("glue", "rte", "--data", "sample", "--teacher", "./nowhere"), "no model folder './nowhere'"),
        (("glue", "rte", "--data", "sample", "--teacher", "sample"), "teacher 'sample' scores"),
        (("squad", "rte"), "unrecognized arguments: rte"),
        (("glue", "rte", "--stride", "9"), "unrecognized arguments: --stride"),
        (("squad", "--data", "sample", "--max-length", "384"), "this model reads 128 at most"),
        (("squad", "--data", "sample", "--stride", "-1"), "stride is -1"),
        (("squad", "--data", "sample", "--question-length", "100"), "choose a smaller stride or longer windows"),
    ],
)
def test_bad_arguments(capsys, monkeypatch, arguments, says):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if arguments[-2:] == ("--teacher", "sample"):
        # by luck it could be above
        monkeypatch.setattr("bitlab.experiments.stage.Prepared.trivial_score", lambda self: 1.0)
    assert says in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"train": None, "dev": None}, "no RTE files in"),
        ({"train": None}, "RTE has no train split"),
        ({"dev": None}, "RTE has no validation split"),
        ({"train": ""}, "train.tsv"),
        ({"train": HEADER}, "train.tsv"),
        ({"train": HEADER + ROW + "2\tonly one\tentailment\n"}, "line 4: expected 4 tab-separated columns"),
        ({"train": HEADER + ROW + "2\ta\tb\tmaybe\n"}, "line 4: label 'maybe', expected"),
        ({"dev": HEADER + "0\ta\tb\t\n"}, "line 2: label ''"),
        ({"train": "a\tb\n1\t2\n"}, "train.tsv"),
    ],
)
def test_bad_data(capsys, tmp_path, files, says):
    folder = data(tmp_path / "glue", **files)
    assert says in refused(capsys, "glue", "rte", "--data", folder)


@pytest.mark.parametrize("task", ["mrpc", "stsb", "cola", "qqp", "mnli", "sst2", "qnli"])
def test_the_files_of_another_task(capsys, tmp_path, task):
    folder = data(tmp_path / "glue") / "RTE"
    target = folder.with_name(get_task(task).folder)
    folder.rename(target)
    if task == "mnli":
        (target / "dev.tsv").rename(target / "dev_matched.tsv")
    says = refused(capsys, "glue", task, "--data", target.parent)
    assert f"no {get_task(task).title} file, expected" in says and "This looks like RTE." in says


def test_bad_models(capsys, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    assert "has no config.json" in refused(capsys, "glue", "rte", "--data", "sample", "--model", folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertForSequenceClassification(BertConfig(vocab_size=112, num_labels=3, **sizes)).save_pretrained(folder)
    sample_tokenizer().save_pretrained(folder)
    capsys.readouterr()
    for option in ("--model", "--teacher"):
        line = refused(capsys, "glue", "rte", "--data", "sample", option, folder)
        assert "has 3 labels, rte has 2" in line
    (folder / "config.json").write_text("{")
    assert "can't be loaded" in refused(capsys, "glue", "rte", "--data", "sample", "--model", folder)


ANSWER = {"text": "a red cup", "answer_start": 13}
QA = {"id": "q", "question": "what was washed ?", "answers": [ANSWER]}


def squad_file(folder, name="train-v1.1.json", answer=(), question=(), paragraph=(), drop=None):
    """One question in SQuAD's layout, with entries changed, or one dropped, at some level."""
    qa = QA | {"answers": [ANSWER | dict(answer)]} | dict(question)
    levels = [qa["answers"][0] if qa["answers"] else {}, qa, {"context": "the cook saw a red cup .", "qas": [qa]}]
    levels[2] |= dict(paragraph)
    for level in levels:
        level.pop(drop, None)
    folder.mkdir(exist_ok=True)
    document = {"version": "1.1", "data": [{"title": "Cups", "paragraphs": [levels[2]]}]}
    (folder / name).write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"answer": {"answer_start": 14}}, "qas[0].answers[0]: the context does not have 'a red cup' at character 14"),
        ({"answer": {"text": "a blue cup"}}, "the context does not have 'a blue cup' at character 13"),
        ({"drop": "answer_start"}, "qas[0].answers[0]: 'answer_start' is missing"),
        ({"drop": "question"}, "qas[0]: 'question' is missing"),
        ({"drop": "context"}, "paragraphs[0]: 'context' is missing"),
        ({"drop": "qas"}, "paragraphs[0]: 'qas' is missing"),
        ({"question": {"is_impossible": True}}, "as in SQuAD v2.0; bitlab reads v1.1"),
        ({"question": {"answers": []}}, "as in SQuAD v2.0; bitlab reads v1.1"),
    ],
)
@pytest.mark.parametrize("name", ["train-v1.1.json", "dev-v1.1.json"])
def test_bad_squad_data(capsys, tmp_path, name, changes, says):
    folder = squad_file(squad_file(squad_file(tmp_path / "squad"), "dev-v1.1.json"), name, **changes)
    line = refused(capsys, "squad", "--data", folder)
    assert says in line and name in line


def test_squad_without_a_file(capsys, tmp_path):
    assert "no SQuAD files in" in refused(capsys, "squad", "--data", data(tmp_path / "glue"))
    folder = squad_file(tmp_path / "squad")
    assert "SQuAD v1.1 has no validation split" in refused(capsys, "squad", "--data", folder)
    (folder / "train-v1.1.json").rename(folder / "dev-v1.1.json")
    assert "SQuAD v1.1 has no train split" in refused(capsys, "squad", "--data", folder)


def test_bad_models_for_squad(capsys, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=112, num_labels=3, **sizes)
    for name, model in (("spans", BertForQuestionAnswering), ("classes", BertForSequenceClassification)):
        model(config).save_pretrained(tmp_path / name)
        sample_tokenizer().save_pretrained(tmp_path / name)
    capsys.readouterr()
    for option in ("--model", "--teacher"):
        line = refused(capsys, "squad", "--data", "sample", option, tmp_path / "spans")
        assert "has 3 labels, squad has 2" in line
        line = refused(capsys, "squad", "--data", "sample", option, tmp_path / "classes")
        assert "squad needs one ForQuestionAnswering" in line


def test_a_weak_teacher(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("bitlab.experiments.stage.Prepared.trivial_score", lambda self: 1.0)
    load_model("sample", "rte").save_pretrained(tmp_path / "weak")
    load_tokenizer("sample").save_pretrained(tmp_path / "weak")
    capsys.readouterr()
    line = refused(capsys, "glue", "rte", "--data", "sample", "--teacher", tmp_path / "weak", "--output", "run")
    assert "teacher 'weak' scores" in line and "expected above 1.000" in line


def test_the_folder_of_another_experiment(capsys, here):
    command = ["glue", "rte", "--data", "sample", "--train-examples", "32", "--max-steps", "1", "--schedule", "W1A1"]
    assert cli.main([*command, "--output", "run", "--json"]) == 0
    capsys.readouterr()
    assert "its seed is 0, this one's 1" in refused(capsys, *command, "--output", "run", "--seed", "1")
    assert "its max_steps is 1, this one's 2" in refused(capsys, *command[:-3], "2", *command[-2:], "--output", "run")
    Path("mine").mkdir()
    Path("mine/thesis.tex").touch()
    assert "holds other files (thesis.tex)" in refused(capsys, *command, "--output", "mine", "--again")
    assert "can't be written" in refused(capsys, *command, "--output", "mine/thesis.tex")
