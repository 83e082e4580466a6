"""The house itself: requirements, package data, and which module may import which."""

import ast
import os
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from bitlab import results

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA_NAMES = {"pytorch": "torch"}
CORE = {"attention", "binarizers", "compiled", "config", "convert", "cost", "encoders", "layers", "products"}
CORE |= {"errors", "files", "text", "upstream"}
FLOW = ["data", "models", "distillation", "experiments", "results", "course"]


def imports(path: Path) -> set[str]:
    """The bitlab modules that a file imports: first name after the package's."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("bitlab.")}


def modules() -> list[Path]:
    return sorted((ROOT / "bitlab").rglob("*.py"))


def canonical(requirement: str) -> str:
    parsed = Requirement(requirement)
    name = CONDA_NAMES.get(parsed.name, parsed.name)
    return f"{name.lower()}{','.join(sorted(map(str, parsed.specifier)))}"


def test_conda_and_pip_users_get_the_same_set():
    extras = PROJECT["optional-dependencies"].values()
    wanted = PROJECT["dependencies"] + [line for extra in extras for line in extra]
    pip = {canonical(line) for line in wanted if not line.startswith("bitlab-transformers[")}
    pip.add(canonical(f"python{PROJECT['requires-python']}"))

    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = [line for line in listed if isinstance(line, str) and line != "pip"]
    from_pip = [line for entry in listed if isinstance(entry, dict) for line in entry["pip"]]
    assert "--editable ." in from_pip
    conda += [line for line in from_pip if not line.startswith("--")]

    assert {canonical(line) for line in conda} == pip


def test_every_folder_of_the_package_is_installed():
    """setuptools can't find the notebooks, which lie outside, and so is told every folder by name."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in modules()}
    assert sorted(told) == sorted({*there, "bitlab.course.notebooks"})


def test_contributing_names_files_that_are_there():
    named = re.findall(r"`((?:bitlab|tests|notebooks|\.github)/[\w./]*)`", (ROOT / "CONTRIBUTING.md").read_text())
    named = [name for name in named if "NAME" not in name and "NN" not in name]
    assert len(named) > 20 and [name for name in named if not (ROOT / name).exists()] == []


def test_constraints_are_the_versions_behind_the_stored_rows():
    pinned = dict(re.findall(r"^([\w-]+)==(.+)$", (ROOT / ".github" / "constraints.txt").read_text(), re.MULTILINE))
    stored = [record["versions"] for record in results.records(results.SHIPPED)]
    usual = {name: Counter(v[name].partition("+")[0] for v in stored).most_common(1)[0][0] for name in stored[0]}
    assert pinned == {name: number for name, number in usual.items() if name not in ("python", "bitlab")}


def test_torch_and_transformers_are_capped():
    assert canonical("torch>=2.11,<2.14") in map(canonical, PROJECT["dependencies"])
    assert canonical("transformers>=5.17,<6") in map(canonical, PROJECT["dependencies"])


def test_continuous_integration_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text()


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_data_flows_one_way(path):
    used = imports(path)
    part = path.relative_to(ROOT / "bitlab").parts[0].removesuffix(".py")
    if path.parent.name == "bitlab" and path.stem in CORE:
        assert used <= CORE, "the core imports nothing from the rest"
    if part in FLOW:
        assert not used & set(FLOW[FLOW.index(part) + 1 :]), "data flow from the left to the right"
    if part == "packed":
        assert not used & set(FLOW[2:]), "packed takes a trained model and never reaches back into training"
    if part not in ("course", "commands"):
        assert "course" not in used, "only the notebooks need the course, and the command line lays them down"


def test_the_import_scanner_sees_imports():
    assert {"course", "errors"} <= imports(ROOT / "bitlab" / "course" / "explore.py")
