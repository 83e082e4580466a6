"""Presets, exercise checks, every registered exercise, the runner, and the committed notebooks."""

import ast
import copy
import errno
import json
import os
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
import torch
from bs4 import BeautifulSoup
from tiny_models import python

from bitlab import cli, compiled, course, results
from bitlab.course import capstone, exercises, runner, series
from bitlab.course.exercises import registry
from bitlab.errors import BitlabError

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
CHECKED = re.compile(r"""\bcheck\(\s*["'](\d\d\.\d+)["'],\s*(\w+)""")
SOLUTION = re.compile(r"<summary>Solution</summary>\s*```python\n(.*?)```", re.DOTALL)
ANCHOR = re.compile(r'<a id="([^"]+)"></a>')
LINK = re.compile(r"\]\((\d\d_\w+\.ipynb)(?:#([^)]+))?\)")


def stub(*arguments):
    return NotImplemented


@pytest.fixture
def doubling(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", {})

    @exercises.exercise("99.1", "Double it", difficulty=2, minutes=3)
    class Doubling:
        cases = [(torch.tensor([1.0, 2.0]),), (torch.tensor([-3.0]),)]

        def reference(x):
            return 2 * x

        def wrong(x):
            return x**2

    return Doubling


# Presets


def test_a_start_takes_its_preset_from_the_environment_and_seeds(monkeypatch):
    monkeypatch.delenv("BITLAB_PRESET", raising=False)
    quick = course.start("02", "prajjwal1/bert-tiny", seed=5)
    drawn = torch.rand(3)
    monkeypatch.setenv("BITLAB_PRESET", "full")
    full = course.start("02", "prajjwal1/bert-tiny", seed=5)
    assert (quick.pick(quick=1, full=2), full.pick(quick=1, full=2)) == (1, 2)
    assert (quick.model, full.model) == ("sample", "prajjwal1/bert-tiny")
    assert torch.equal(drawn, torch.rand(3)) and not torch.equal(drawn, torch.rand(3))
    monkeypatch.setenv("BITLAB_PRESET", "fast")
    with pytest.raises(BitlabError, match=r"fast.*quick or full"):
        course.start("02")


def test_stored_scores_are_those_of_the_last_stage_by_name_and_seed(monkeypatch):
    runs = [("a-b-one-seed0", 0, 0.5), ("a-b-one-seed2", 2, 0.75), ("c-one-seed0", 0, 0.0), ("a-b-odd", 0, 0.0)]
    stages = [{"name": name, "seed": seed, "score": s} for name, seed, score in runs for s in (0.25, score)]
    monkeypatch.setattr(results, "load", lambda: pd.DataFrame(stages))
    lab = course.Lab("07", "quick", 0, torch.device("cpu"))
    assert lab.stored("a-b-") == {"one": {0: 0.5, 2: 0.75}}
    assert lab.stored("nothing-") == {}


def test_a_claim_holds_on_sample_data_and_is_told_elsewhere(capsys):
    quick, full = (course.Lab("07", preset, 0, torch.device("cpu")) for preset in course.lab.PRESETS)
    quick.claim(True, "two is more than one")
    with pytest.raises(AssertionError, match="not seen: three is less"):
        quick.claim(False, "three is less")
    full.claim(False, "three is less")  # after hours of training: told, not raised
    assert capsys.readouterr().out.splitlines()[1].startswith("not seen")


def test_lessons_are_shuffled_batches_without_labels_and_miss_no_row():
    def collate(rows):
        return {"input_ids": torch.tensor(rows), "labels": torch.zeros(len(rows))}

    data, lab = (
        SimpleNamespace(train=list(range(10)), collate=collate),
        course.Lab("06", "quick", 0, torch.device("cpu")),
    )
    lessons = lab.lessons(data, seed=3, steps=5, size=4)
    assert [list(lesson) for lesson in lessons] == [["input_ids"]] * 5
    read = torch.stack([lesson["input_ids"] for lesson in lessons]).flatten().tolist()
    assert sorted(read[:10]) == sorted(read[10:]) == list(range(10)) and read[:10] != read[10:]
    again, other = (lab.lessons(data, seed=seed, steps=5, size=4) for seed in (3, 4))
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(lessons, again, strict=True))
    assert not all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(lessons, other, strict=True))


# Capstones


def test_a_capstone_says_what_is_missing_and_runs_from_end_to_end(monkeypatch, capsys):
    lab, trained = course.Lab("05", "quick", 0, torch.device("cpu")), []
    encoder, student, measure, teach = (exercises.find(f"05.{number}").reference for number in (4, 5, 6, 7))
    monkeypatch.setattr(course.Lab, "train", lambda self, model, data, steps, **rates: trained.append(model))
    data = lab.data("sst2")
    capstone.binary_encoder(lab, data, encoder, stub, measure, exercises.find("05.7").wrong[0])
    assert "fill in 05.5, 05.7 first" in capsys.readouterr().out and not trained

    taught = []

    def teaching(student, teacher, batches):
        assert student.training and not teacher.training and teacher is trained[0]
        taught.append(len(batches))
        teach(student, teacher, batches[:2])

    monkeypatch.setattr(capstone, "filled", lambda *answers: True)
    capstone.binary_encoder(lab, data, encoder, student, measure, teaching)
    before, after = capsys.readouterr().out.splitlines()
    dev = next(iter(data.evaluations.values())).select(range(250))
    right = (trained[0](**data.collate(list(dev))).logits.argmax(-1) == torch.tensor(dev["labels"])).float().mean()
    assert before.startswith(f"before float {right:.3f}, ") and after.startswith(f"after  float {right:.3f}, ")
    assert taught == [50, 50, 50]


# Yours beside bitlab's


def test_unequal_values_gradients_and_parameters_are_found(capsys):
    x, layer = torch.rand(3, 2) + 0.5, torch.nn.Linear(2, 2)
    with pytest.raises(AssertionError, match="value"):
        course.assert_equal(lambda x: x, lambda x: x + 1, x=x)
    with pytest.raises(AssertionError, match="gradient of x"):
        course.assert_equal(lambda x: x.detach() + 0 * x, lambda x: 1.0 * x, x=x)
    other = copy.deepcopy(layer).requires_grad_(False)
    with pytest.raises(AssertionError, match="gradient of weight"):
        course.assert_equal(Frozen(layer), layer, x=x)
    course.assert_equal(other, layer, x=x)  # what has no gradient of that name is not compared
    capsys.readouterr()
    course.assert_equal(torch.sign, lambda x: x.detach().sign(), x=x)  # nor is what has none at all
    assert "gradient" not in capsys.readouterr().out
    course.assert_equal(lambda x: x * (1 + 1e-6), lambda x: x, tolerance=1e-5, x=x)


def test_what_is_held_runs_as_it_is_written():
    """Of a real model's tensors the library's formulas would run compiled, and round in another order."""
    seen = []

    def told(x):
        seen.append(compiled.WORTH_IT)
        return 2 * x

    before = compiled.WORTH_IT
    course.assert_equal(told, told, x=torch.ones(3))
    assert seen == [sys.maxsize] * 2 and before == compiled.WORTH_IT


class Frozen(torch.nn.Linear):
    """Has a weight that asks for a gradient, and gives it none."""

    def __init__(self, linear):
        super().__init__(2, 2)
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight.detach(), self.bias)


# Exercise checks


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda x: x + x, ": passed"),
        (lambda x: x.mul_(2), ": passed"),  # spoils its input
        (stub, "not attempted"),
        (lambda x: x**2, "expected [2.0, 4.0]"),
        (lambda x: x.no_such_method(), "raised AttributeError"),
    ],
)
def test_a_check_is_told_in_one_line_or_raised_where_strict(doubling, monkeypatch, capsys, answer, says):
    course.check("99.1", answer)
    (line,) = capsys.readouterr().out.splitlines()
    assert says in line
    monkeypatch.setenv("BITLAB_STRICT", "1")
    with nullcontext() if says == ": passed" else pytest.raises(course.ExerciseError, match=r"99\.1"):
        course.check("99.1", answer)


def test_unknown_exercise_is_refused_and_ids_are_unique(doubling):
    with pytest.raises(BitlabError, match=r"99\.7.*99\.1"):
        course.check("99.7", stub)
    with pytest.raises(BitlabError, match="two exercises"):
        exercises.exercise("99.1", "Another", difficulty=1, minutes=1)(doubling)
    with pytest.raises(BitlabError, match="difficulty"):
        exercises.exercise("99", "No number", difficulty=1, minutes=1)


@pytest.mark.parametrize(
    ("expected", "got", "same"),
    [
        (1.0, torch.tensor(1.00001), True),
        (1.0, 1.1, False),
        (torch.ones(2), [1, 1], True),
        (torch.ones(2), torch.ones(1, 2), False),
        (torch.ones(2), "one", False),
        (torch.ones(2), None, False),
        (("a", 2), ["a", 2.0], True),
        (("a", 2), ("a",), False),
        ({"x": 1}, {"x": 1.0}, True),
        ({"x": 1}, {"y": 1}, False),
        ("two sets", "two sets", True),
        (True, False, False),
    ],
)
def test_agree(expected, got, same):
    assert exercises.agree(expected, got) is same


# The exercises of the series


@pytest.mark.parametrize("entry", exercises.every(), ids=lambda entry: entry.id)
class TestExercise:
    def test_reference_passes(self, entry):
        assert entry.judge(entry.reference) is None

    def test_stub_is_not_attempted(self, entry):
        with pytest.raises(NotImplementedError):
            entry.judge(stub)

    def test_planted_wrong_answers_fail(self, entry):
        for wrong in entry.wrong:
            assert "expected" in entry.judge(wrong)


# The runner


def notebook(*sources: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])


def test_run_keeps_copies_and_pages_and_refresh_tidies_in_place(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("BITLAB_HEADLESS", "1")
    path = tmp_path / "01_sum.ipynb"
    book = notebook("import os, sys\nprint(os.environ['BITLAB_HEADLESS'], sys.executable)", "1 + 1")
    book.cells[0].metadata["execution"] = {"started": "now"}
    nbformat.write(book, path)
    folders = ["--notebooks", str(tmp_path), "--build", str(tmp_path / "build")]

    assert series.main(["run", *folders]) == 0
    assert re.search(r"01_sum +\d+\.\d s +\d\.\d\d GiB\nin all", capsys.readouterr().out)
    assert not nbformat.read(path, as_version=4).cells[0].outputs
    done = nbformat.read(tmp_path / "build" / path.name, as_version=4)
    assert done.cells[0].outputs[0].text == f"1 {series.sys.executable}\n"
    assert "<html" in (tmp_path / "build" / "01_sum.html").read_text()

    assert series.main(["refresh", *folders]) == 0
    tidy = nbformat.read(path, as_version=4)
    assert tidy.cells[1].outputs[0].data["text/plain"] == "2"
    assert len(tidy.cells) == 2 and tidy.cells[0].metadata == {}
    assert tidy.metadata.kernelspec.name == "python3"


MEET = """import pathlib, time
pathlib.Path("{mine}").touch()
until = time.monotonic() + 60
while not pathlib.Path("{other}").exists():
    assert time.monotonic() < until, "nobody else is here"
    time.sleep(0.1)
time.sleep({seconds})"""


def test_two_run_at_a_time_and_are_told_in_order(tmp_path, capsys):
    for name, source in (
        ("01_first", MEET.format(mine="a", other="b", seconds=1)),
        ("02_second", MEET.format(mine="b", other="a", seconds=0)),
    ):
        nbformat.write(notebook(source), tmp_path / f"{name}.ipynb")
    assert series.main(["run", "--notebooks", str(tmp_path), "--build", str(tmp_path / "build")]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["01_first", "02_second", "in"]


def test_run_stops_at_a_failing_cell_and_names_it(tmp_path, capsys):
    for name, source in (("01_bad", "x = 1\nx / 0"), ("02_with_it", "1"), ("03_never", "1")):
        nbformat.write(notebook("0", source), tmp_path / f"{name}.ipynb")
    assert series.main(["run", "--notebooks", str(tmp_path), "--build", str(tmp_path / "build")]) == 1
    error = capsys.readouterr().err
    assert "01_bad" in error and "cell 1: ZeroDivisionError" in error and "| x / 0" in error
    assert [path.stem for path in (tmp_path / "build").glob("*.ipynb")] == ["01_bad"]


def test_peak_memory_is_asked_for_where_there_is_no_resource_module():
    """As on Windows; there psutil counts bytes."""
    lines = ["import sys, types", "sys.modules['resource'] = None"]
    lines += ["memory = types.SimpleNamespace(peak_wset=3 * 2**30)"]
    lines += ["process = types.SimpleNamespace(memory_info=lambda: memory)"]
    lines += ["sys.modules['psutil'] = types.SimpleNamespace(Process=lambda: process)", runner.PEAK_MEMORY]
    assert int(python("-c", "\n".join(lines))) == 3 * 2**20


def test_a_page_keeps_alt_texts_and_links_to_pages():
    book = notebook("figure")
    book.cells.append(nbformat.v4.new_markdown_cell("[next](03_elastic_activation.ipynb#here)"))
    picture = {"data": {"image/png": "iVBORw0KGgo="}, "metadata": {"image/png": {"alt": 'a "falling" loss'}}}
    book.cells[0].outputs = [nbformat.v4.new_output("display_data", **picture)]
    page = BeautifulSoup(runner.page(book, "02"), "html.parser")
    assert page.find("img")["alt"] == 'a "falling" loss'
    assert page.find("a", string="next")["href"] == "03_elastic_activation.html#here"
    assert "image/png" in book.cells[0].outputs[0].data  # the notebook stays as it is


def test_a_disk_that_fills_up_leaves_no_part_of_a_notebook(tmp_path, monkeypatch, capsys):
    sync, calls = os.fsync, iter(range(2))

    def fsync(file):
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(file)

    monkeypatch.setattr("os.fsync", fsync)
    assert cli.main(["notebooks", str(tmp_path / "new")]) == 2
    assert f"the disk is full at {tmp_path / 'new'}" in capsys.readouterr().err
    left = list((tmp_path / "new").iterdir())
    assert len(left) == 2 and all(path.read_bytes() == (ROOT / "notebooks" / path.name).read_bytes() for path in left)


def test_the_series_is_laid_down_and_replaces_nothing(tmp_path, capsys):
    folder = tmp_path / "a" / "b"
    assert cli.main(["notebooks", str(folder)]) == 0
    there = sorted(path.relative_to(folder) for path in folder.rglob("*.*"))
    paths = (path.relative_to(ROOT / "notebooks") for path in (ROOT / "notebooks").rglob("*.*"))
    assert there == sorted(path for path in paths if path.parts[0] != "runs")  # what a reader's full preset left
    (folder / NOTEBOOKS[3].name).write_text("mine")
    (folder / NOTEBOOKS[0].name).unlink()
    assert cli.main(["notebooks", str(folder)]) == 2
    assert (folder / NOTEBOOKS[3].name).read_text() == "mine" and not (folder / NOTEBOOKS[0].name).exists()
    assert capsys.readouterr().err.count("\n") == 1


# The committed notebooks


def cells(path: Path, kind: str = "code") -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_it_was_run_in_order(self, path):
        counts = [cell.execution_count for cell in cells(path) if cell.source.strip()]
        assert counts == list(range(1, len(counts) + 1)), "run make refresh"

    def test_the_overview_shows_its_budget(self, path):
        """Notebook 00 reads the budget lines when it runs: after `make budgets` it has to run again."""
        (quick,) = re.findall(r"quick (\d+ seconds)", nbformat.read(path, as_version=4).cells[0].source)
        tables = [
            str(output.get("data", {}).get("text/markdown")) for cell in cells(NOTEBOOKS[0]) for output in cell.outputs
        ]
        row = next(line for table in tables for line in table.split("\n") if line.startswith(f"| [{path.stem[:2]}]("))
        assert row.endswith(f"| {quick} |"), "run make refresh"

    def test_outputs_are_clean(self, path):
        for cell in cells(path):
            for output in cell.outputs:
                assert output.output_type != "error", output
                assert output.get("name") != "stderr", output.text
                text = output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
                assert not re.search(r"(?<![\w.])/(home|root|tmp|work|usr|Users)/|\b[A-Z]:\\\\", text), text
                assert not re.search(r"Warning:|\d+%\|", text), text
                assert "widget-view" not in str(list(output.get("data", {}))), "widgets are static in outputs"

    def test_figures_are_small_and_have_alt_text(self, path):
        for cell in cells(path):
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    alt = output.metadata.get("image/png", {}).get("alt", "")
                    assert alt and not alt.startswith("Figure. "), f"say what the picture shows: {cell.source}"
                    assert len(output.data["image/png"]) < 200_000, cell.source

    def test_its_exercises_are_registered_checked_and_left_to_the_reader(self, path):
        number = path.stem[:2]
        registered = [entry for entry in exercises.every() if entry.id.startswith(number)]
        checked = [id for cell in cells(path) for id, _ in CHECKED.findall(cell.source)]
        assert checked == [entry.id for entry in registered]
        assert len(checked) >= (2 if "01" <= number <= "09" else 0)
        levels = [entry.difficulty for entry in registered]
        assert levels == sorted(levels), "easy ones first"
        printed = "".join(o.get("text", "") for cell in cells(path) for o in cell.outputs)
        assert printed.count("not attempted yet") == len(checked), "commit the stubs, not the answers"

    def test_its_folded_solutions_pass(self, path):
        functions = [found for cell in cells(path) for found in CHECKED.findall(cell.source)]
        solutions = SOLUTION.findall(text(path))
        assert len(solutions) == len(functions)
        for (id, function), solution in zip(functions, solutions, strict=True):
            names = built(path)
            exec(solution, names)
            assert exercises.find(id).judge(names[function]) is None

    def test_its_links_lead_somewhere(self, path):
        for target, anchor in LINK.findall(text(path)):
            assert (path.parent / target).exists()
            assert not anchor or anchor in ANCHOR.findall(text(path.parent / target))


def built(path: Path) -> dict:
    """What a solution may use: the notebook's imports, and what its reader built. No cell is run."""
    names: dict = {}
    for cell in cells(path):
        tree = ast.parse(cell.source)
        kept = (ast.Import, ast.ImportFrom)
        if any(tag.startswith("build:") for tag in cell.metadata.get("tags", [])):
            kept = (*kept, ast.FunctionDef, ast.ClassDef)
        tree.body = [node for node in tree.body if isinstance(node, kept)]
        exec(compile(tree, path.name, "exec"), names)
    return names


def text(path: Path) -> str:
    """All prose of a notebook."""
    return "\n".join(cell.source for cell in cells(path, "markdown"))


def test_budgets_are_those_of_the_last_run(tmp_path, capsys):
    cell = nbformat.v4.new_markdown_cell("# 02\n\nBudget: quick an age. Full two days, 3 GiB.\n\nMore.")
    path = tmp_path / "02_made_up.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    arguments = ["budgets", "--notebooks", str(tmp_path), "--build", str(tmp_path)]
    assert series.main(arguments) == 2 and "make notebooks" in capsys.readouterr().err
    times = {"preset": "quick", "notebooks": {"02_made_up": {"seconds": 41.6, "peak_gib": 0.97}}}
    (tmp_path / "times.json").write_text(json.dumps(times))
    for _ in range(2):  # doing it again changes nothing
        assert series.main(arguments) == 0
        text = nbformat.read(path, as_version=4).cells[0].source
        assert "Budget: quick 42 seconds, 1.0 GiB (measured on one core). Full two days, 3 GiB.\n\nMore." in text
