"""The house itself: requirements, package data, and which module may import which."""

import ast
import itertools
import os
import re
import tomllib
from collections import Counter
from glob import glob
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from bitlab import results

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA_NAMES = {"pytorch": "torch"}
CORE = {"attention", "binarizers", "compiled", "config", "convert", "cost", "encoders", "layers", "methods", "products"}
CORE |= {"errors", "files", "terminal", "upstream"}
FLOW = ["data", "heads", "models", "distillation", "experiments", "results", "course"]


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


def test_nobody_is_sent_to_another_projects_package():
    """`bitlab` on PyPI is an embedded-systems toolkit."""
    assert PROJECT["name"] == "bitlab-transformers"
    told = [ROOT / "README.md", *modules(), *(ROOT / "notebooks").glob("*.ipynb")]
    for path in told:
        assert not re.search(r"pip install[^\n`]*[\s'\"]bitlab(?!-)\b", path.read_text(encoding="utf-8")), path


def test_every_folder_of_the_package_is_installed():
    """setuptools can't find the notebooks, which lie outside, and so is told every folder by name."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in modules()}
    assert sorted(told) == sorted({*there, "bitlab.course.notebooks"})


def test_every_file_of_the_package_is_installed():
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = [ROOT.joinpath(*name.split(".")) for name in told["packages"]]
    pairs = itertools.product(folders, told["package-data"]["*"])
    found = {place / name for place, pattern in pairs for name in glob(pattern, root_dir=place, recursive=True)}
    there = {path for path in (ROOT / "bitlab").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert len(there) > 50 and there <= found


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


def name_of(path: Path) -> str:
    """ "bitlab.packed.layers"; of a package's __init__ "bitlab.packed"."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[tuple[str, str]]:
    """(module, name) of every import of ours in a file, name "" where the module itself is meant.

    What only a type checker reads doesn't count; what a function imports when it is called does.
    """
    tree, found = ast.parse(path.read_text(encoding="utf-8")), set()
    for node in ast.walk(tree):  # so that the walk below doesn't come to what stands there
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            full = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {(full[name], "") if full[name] in MODULES else (node.module, name) for name in full}
    return {(module, name) for module, name in found if module.split(".")[0] == "bitlab"}


MODULES = {name_of(path): path for path in modules()}
PACKAGES = {name for name, path in MODULES.items() if path.name == "__init__.py"}
IMPORTS = {name: imported(path) for name, path in MODULES.items()}


def needs(name: str) -> set[str]:
    """The modules that importing this one runs, faces included: those of packages around it are running already."""
    found = {module for module, _ in IMPORTS[name] if module in MODULES}
    faces = {module.rpartition(".")[0] for module in found} & PACKAGES
    return {module for module in found | faces if not f"{name}.".startswith(f"{module}.") and module != "bitlab"}


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("name", MODULES)
def test_data_flows_one_way(name):
    part, used = part_of(name), {part_of(module) for module, _ in IMPORTS[name]} - {""}
    if part in CORE or part == "rivals":
        assert used <= CORE | {"rivals"}, "the core imports nothing from the rest"
    if part in FLOW:
        assert not used & set(FLOW[FLOW.index(part) + 1 :]), "data flow from the left to the right"
    if part == "packed":
        assert not used & set(FLOW[FLOW.index("distillation") :]), (
            "packed takes a trained model and never reaches back into training"
        )
    if part not in ("course", "cli"):
        assert "course" not in used, "only the notebooks need the course, and the command line lays them down"


@pytest.mark.parametrize("name", MODULES)
def test_no_module_imports_a_name_from_a_face_around_it(name):
    around = {module for module in PACKAGES if name.startswith(f"{module}.")}
    assert not {
        (module, what) for module, what in IMPORTS[name] if module in around and what not in ("", "__version__")
    }


@pytest.mark.parametrize("name", sorted(PACKAGES - {"bitlab"}))
def test_a_face_only_hands_names_on(name):
    kinds = ast.Expr | ast.Import | ast.ImportFrom | ast.Assign | ast.FunctionDef
    body = ast.parse(MODULES[name].read_text(encoding="utf-8")).body
    functions = [node.name for node in body if isinstance(node, ast.FunctionDef)]
    assert all(isinstance(node, kinds) for node in body) and set(functions) <= {"__getattr__", "__dir__"}


def test_no_circle():
    left = {name: needs(name) for name in MODULES if name != "bitlab"}
    while free := {name for name, wants in left.items() if not wants & left.keys()}:
        left = {name: wants for name, wants in left.items() if name not in free}
    assert not left, {name: sorted(wants & left.keys()) for name, wants in left.items()}


@pytest.mark.parametrize("name", MODULES)
def test_no_file_is_much_over_300_lines(name):
    assert len(MODULES[name].read_text(encoding="utf-8").splitlines()) <= 330


def test_the_scanner_sees_imports():
    assert ("bitlab.errors", "BitlabError") in IMPORTS["bitlab.convert"]
    assert {"bitlab.attention", "bitlab.rivals"} <= needs("bitlab.convert") | needs("bitlab.distillation.losses")
