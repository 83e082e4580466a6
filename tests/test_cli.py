"""The command line: what it prints where, exit codes, and one clear line for every kind of bad input."""

import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import refused, save, write_squad
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

import bitlab
from bitlab import cli, experiments
from bitlab.bench.settings import BenchSettings
from bitlab.config import ALPHA_POLICIES
from bitlab.data.sample import sample_squad
from bitlab.data.settings import Settings
from bitlab.experiments import experiment
from bitlab.experiments.recipes import RECIPES
from bitlab.options import given, kind, options
from bitlab.startup import STOPPED

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
pytestmark = pytest.mark.usefixtures("cheap", "here")
HEADER = "index\tsentence1\tsentence2\tlabel\n"
ROW = "0\ta red cup .\tthe cup is red .\tentailment\n1\ta red cup .\tthe cup is blue .\tnot_entailment\n"


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


def test_options_reach_the_experiment(monkeypatch):
    seen = {}

    def run(experiment, output, again, report, splits, typed):
        seen.update(vars(experiment), output=output, again=again, typed=typed)
        return {"task": "rte", "model": "m", "data": "d", "seed": 3, "stages": []}

    monkeypatch.setattr(experiments, "run", run, raising=False)
    command = "glue RTE --schedule W1A4->W1A1 --seed 3 --epochs 1.5 --stage-teacher both --output there --again"
    assert cli.main(command.split()) == 0
    expected = {"task": "rte", "schedule": "W32A32 -> W1A4 -> W1A1", "seed": 3, "epochs": 1.5, "stage_teacher": "both"}
    expected |= {"output": "there", "again": True, "typed": ["bitlab", *command.split()]}
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


@pytest.mark.parametrize("arguments", ["", "--version", "glue --help", "distil --help", "augment --help"])
def test_what_needs_no_torch_does_not_wait_for_it(arguments):
    process = command_line(*arguments.split(), python=["-X", "importtime", "-m", "bitlab"])
    out, err = process.communicate()
    loaded = {line.split("|")[-1].strip() for line in err.splitlines()}
    assert process.returncode == 0 and ("bitlab 0" if "version" in arguments else "usage: bitlab") in out
    assert "argparse" in loaded and not {"torch", "transformers", "datasets", "numpy"} & loaded


@pytest.mark.parametrize("module", ["bitlab.cli", "torch", "bitlab.experiments.running"])
def test_ctrl_c_while_modules_load_is_one_line(tmp_path, module):
    """In the middle of an import an exception would be caught or printed by who knows whom."""
    assert stopped(tmp_path, module, "os.kill(os.getpid(), signal.SIGINT)", "glue", "rte") == (130, f"{STOPPED}\n")


def test_ctrl_c_in_an_exec_is_no_other(tmp_path):
    """Python remembers it though we caught it, and would kill itself at the end of `python -m`."""
    assert stopped(tmp_path, "bitlab.doctor", "exec('raise KeyboardInterrupt')", "doctor") == (130, f"{STOPPED}\n")


def stopped(folder, module, action, *arguments):
    """(exit code, standard error) of a process that does something when a module is about to be imported."""
    (folder / "sitecustomize.py").write_text(SITE.format(module=module, action=action))
    path = f"{folder}{os.pathsep}{Path(bitlab.__file__).parent.parent}"
    process = command_line(*arguments, env={"PYTHONPATH": path})
    out, err = process.communicate(timeout=300)
    assert not out
    return process.returncode, err


SITE = """
import os, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # in a background job it is ignored

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "{module}":
            {action}

sys.meta_path.insert(0, Finder())
"""


def test_an_ascii_terminal(monkeypatch):
    """Shows "?" for the dot in the middle of a line."""
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    assert cli.main(["results", "--format", "text"]) == 0
    sys.stdout.flush()
    assert b"?" in shown.getvalue()


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
        (("glue", "rte", "--max-steps", "0"), "max_steps is 0"),
        (("glue", "rte", "--epochs", "1e308"), "epochs is 1e+308"),
        (("squad", "--max-length", "5"), "max_length is 5"),
        (("bench", "--threads", "2147483648"), "threads is 2147483648"),
        (("bench", "--batch", "1000000000"), "batch is 1000000000"),
        (("distil", "texts.txt", "--output", "x", "--seed=-1"), "seed is -1"),
        (("distil", "texts.txt", "--output", "x", "--epochs", "1e308"), "epochs is 1e+308"),
        (("glue", "rte", "--data", "sample", "--output", "~nosuchuser/x"), "'~nosuchuser/x' is nobody's"),
        (("glue", "rte", "--data", "sample", "--model", "~nosuchuser/x"), "'~nosuchuser/x' is nobody's"),
        (("glue", "rte", "--data", "n" * 300), "File name too long"),
        (("glue", "rte", "--schedule", "W1A1 -> W1A2"), "goes up in precision from W1A1 to W1A2"),
        (("glue", "rte", "--preset", "huge"), "preset 'huge' does not exist"),
        (("glue", "rte", "--data", "nowhere"), "'nowhere' does not exist"),
        (("glue", "rte", "--model", "./nowhere"), "no model folder './nowhere'"),
        (("glue", "rte", "--model", "me/mine"), "the hub can't be reached"),
        (("glue", "rte", "--data", "sample", "--teacher", "./nowhere"), "no model folder './nowhere'"),
        (("glue", "rte", "--data", "sample", "--teacher", "sample"), "teacher 'sample' scores"),
        (("squad", "rte"), "unrecognized arguments: rte"),
        (("glue", "rte", "--stride", "9"), "unrecognized arguments: --stride"),
        (("squad", "--data", "sample", "--max-length", "384"), "this model reads 128 at most"),
    ],
)
def test_bad_arguments(capsys, monkeypatch, arguments, says):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if arguments[-2:] == ("--teacher", "sample"):
        # by luck it could be above
        monkeypatch.setattr("bitlab.experiments.stage.Prepared.trivial_score", lambda self: 1.0)
    assert says in refused(capsys, *arguments)


def test_bad_data(capsys, tmp_path):
    assert "no RTE files in" in refused(capsys, "glue", "rte", "--data", data(tmp_path / "none", None, None))
    assert "RTE has no train split" in refused(capsys, "glue", "rte", "--data", data(tmp_path / "dev", None))
    assert "RTE has no validation split" in refused(capsys, "glue", "rte", "--data", data(tmp_path / "train", dev=None))
    wrong = data(tmp_path / "wrong", HEADER + ROW + "2\ta\tb\tmaybe\n")
    assert "line 4: label 'maybe', expected" in refused(capsys, "glue", "rte", "--data", wrong)


def test_bad_models(capsys, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    assert "has no config.json" in refused(capsys, "glue", "rte", "--data", "sample", "--model", folder)
    save(BertForSequenceClassification(BertConfig(vocab_size=112, num_labels=3, **SIZES)), folder)
    for option in ("--model", "--teacher"):
        line = refused(capsys, "glue", "rte", "--data", "sample", option, folder)
        assert "has 3 labels, rte has 2" in line
    (folder / "config.json").write_text("{")
    assert "can't be loaded" in refused(capsys, "glue", "rte", "--data", "sample", "--model", folder)


def test_squad_without_a_file(capsys, tmp_path):
    assert "no SQuAD files in" in refused(capsys, "squad", "--data", data(tmp_path / "glue"))
    folder = write_squad(tmp_path / "squad", {"train": sample_squad(1, 1)["train"]})
    assert "SQuAD v1.1 has no validation split" in refused(capsys, "squad", "--data", folder)
    (folder / "train-v1.1.json").rename(folder / "dev-v1.1.json")
    assert "SQuAD v1.1 has no train split" in refused(capsys, "squad", "--data", folder)


def test_bad_models_for_squad(capsys, tmp_path):
    config = BertConfig(vocab_size=112, num_labels=3, **SIZES)
    for name, model in (("spans", BertForQuestionAnswering), ("classes", BertForSequenceClassification)):
        save(model(config), tmp_path / name)
    for option in ("--model", "--teacher"):
        line = refused(capsys, "squad", "--data", "sample", option, tmp_path / "spans")
        assert "has 3 labels, squad has 2" in line
        line = refused(capsys, "squad", "--data", "sample", option, tmp_path / "classes")
        assert "squad needs one ForQuestionAnswering" in line


def test_json_alone_goes_to_standard_output_and_another_experiments_folder_is_refused(capfd, here):
    command = ["glue", "rte", "--data", "sample", "--train-examples", "32", "--max-steps", "1", "--schedule", "W1A1"]
    assert cli.main([*command, "--output", "run", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == json.loads(Path("run/result.json").read_text())
    assert "its seed is 0, this one's 1" in refused(capfd, *command, "--output", "run", "--seed", "1")
    assert "its max_steps is 1, this one's 2" in refused(capfd, *command[:-3], "2", *command[-2:], "--output", "run")
    Path("mine").mkdir()
    Path("mine/thesis.tex").touch()
    assert "holds other files (thesis.tex)" in refused(capfd, *command, "--output", "mine", "--again")
    assert "can't be written" in refused(capfd, *command, "--output", "mine/thesis.tex")
