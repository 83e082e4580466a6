"""The command line: what it prints where, exit codes, and one clear line for every kind of bad input."""

import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import refused, write_glue

import bitlab
from bitlab import cli, experiments
from bitlab.bench.settings import BenchSettings
from bitlab.cli import program
from bitlab.data.settings import Settings
from bitlab.terminal.options import given, kind, options
from bitlab.terminal.startup import STOPPED

pytestmark = pytest.mark.usefixtures("cheap", "here")
# ------------------------------------------------------------------------------------------- good input


def test_a_run_says_how_it_goes_and_a_finished_one_is_printed(capsys, here):
    command = ["glue", "rte", "--data", "sample", "--train-examples", "64", "--max-steps", "2", "--schedule", "W1A1"]
    assert cli.main(command) == 0
    out, err = capsys.readouterr()
    assert "W1A1: step 1 of 2, about " in out and out.splitlines()[-1].split()[0] == "W1A1"
    assert "Error" not in err and "Warning" not in err
    (folder,) = (here / "runs").iterdir()
    result = json.loads((folder / "result.json").read_text())
    assert result["command"] == shlex.join(["bitlab", *command])
    assert cli.main([*command, "--json"]) == 0
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
        assert given(settings, program.parser().parse_args(command.split())) == {"task": command.split()[-1]}
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
        found = given(settings, program.parser().parse_args(words))
        assert expected == {name: found[name] for name in expected}
        assert all(each.metadata["help"] for each in options(settings))


def test_an_interrupted_command_says_how_to_go_on(capsys, monkeypatch):
    def run(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiments, "run", run, raising=False)
    assert cli.main(["glue", "rte"]) == 130
    assert capsys.readouterr().err == f"{STOPPED}\n"


ROOT = str(Path(bitlab.__file__).parent.parent)


def command_line(*arguments, python=(), path=ROOT):
    """A process that ran `python -m bitlab ...`."""
    command = [sys.executable, *python, "-m", "bitlab", *arguments]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("arguments", ["", "--version", "glue --help", "distil --help", "augment --help"])
def test_what_needs_no_torch_does_not_wait_for_it(arguments):
    done = command_line(*arguments.split(), python=["-X", "importtime"])
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0 and ("bitlab 0" if "version" in arguments else "usage: bitlab") in done.stdout
    assert "argparse" in loaded and not {"torch", "transformers", "datasets", "numpy"} & loaded


@pytest.mark.parametrize("module", ["bitlab.cli", "torch", "bitlab.experiments.running"])
def test_ctrl_c_while_modules_load_is_one_line(tmp_path, module):
    """In the middle of an import an exception would be caught or printed by who knows whom."""
    assert stopped(tmp_path, module, SWALLOWED, "glue", "rte") == (130, f"{STOPPED}\n")


def test_ctrl_c_in_an_exec_is_no_other(tmp_path):
    """Python remembers it though we caught it, and would kill itself at the end of `python -m`."""
    assert stopped(tmp_path, "bitlab.cli.doctor", "exec('raise KeyboardInterrupt')", "doctor") == (130, f"{STOPPED}\n")


def stopped(folder, module, action, *arguments):
    """(exit code, standard error) of a process that does something when a module is about to be imported."""
    (folder / "sitecustomize.py").write_text(SITE.format(module=module, action=action))
    done = command_line(*arguments, path=f"{folder}{os.pathsep}{ROOT}")
    assert not done.stdout
    return done.returncode, done.stderr


SWALLOWED = """
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                pass
"""
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
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), "is no text (surrogates not allowed)"),
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
        (("glue", "imdb"), "unknown task 'imdb'"),
        (("glue", "rte", "--seed", "x"), "--seed: invalid int value: 'x'"),
        (("squad", "--max-length", "5"), "max_length is 5"),
        (("bench", "--threads", "100000"), "threads is 100000"),
        (("bench", "--batch", "1000000000"), "batch is 1000000000"),
        (("distil", "texts.txt", "--output", "x", "--epochs", "1e308"), "epochs is 1e+308"),
        (("glue", "rte", "--data", "sample", "--output", "~nosuchuser/x"), "'~nosuchuser/x' is nobody's"),
        (("glue", "rte", "--data", "n" * 300), "File name too long"),
        (("glue", "rte", "--data", "sample", "--teacher", "./nowhere"), "no model folder './nowhere'"),
    ],
)
def test_bad_arguments(capsys, arguments, says):
    assert says in refused(capsys, *arguments)


@pytest.mark.parametrize(("has", "lacks"), [("train", "validation"), ("validation", "train")])
def test_a_split_that_is_missing(capsys, tmp_path, has, lacks):
    rows = [{"sentence1": "a red cup .", "sentence2": "the cup is red .", "label": 0}]
    glue = write_glue(tmp_path / "glue", "rte", {has: rows})
    assert f"RTE has no {lacks} split" in refused(capsys, "glue", "rte", "--data", glue)


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
