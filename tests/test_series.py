"""Build it, then use it: each essential line of the series is written in a cell, and held against the library's.

In a notebook, the cell that writes it has the tag `build:elastic`, and a later one, `equal:elastic`, asserts that the
reader's equals bitlab's. `tidy` keeps the tags, JupyterLab shows them beside the cell.
"""

import ast
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent

# The spine: notebook -> what the reader builds there, one name an essential line: {"03": ("elastic", "binarizer")}.
SPINE = {
    "01": ("sign", "straight-through", "linear", "loop"),
    "02": ("sets", "best-scale"),
    "03": ("elastic", "binarizer"),
    "04": ("attention",),
    "05": ("embedding", "binarize", "bits"),
    "06": ("loss", "groups", "loop"),
    "07": ("rescale", "driver"),
    "08": ("dot", "words", "fold", "c-loop"),
    "09": ("rounding", "splitting", "bi-attention", "rewriting"),
    "10": ("metrics",),
    "11": ("windows", "span-loss", "span-loop", "n-best"),
}
LINES = [(number, name) for number, names in SPINE.items() for name in names]


def code_cells(number: str) -> list[nbformat.NotebookNode]:
    (path,) = ROOT.glob(f"notebooks/{number}_*.ipynb")
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def tagged(cells: list, tag: str) -> list[int]:
    return [i for i, cell in enumerate(cells) if tag in cell.metadata.get("tags", [])]


def defined(source: str) -> set[str]:
    """Functions and classes that a cell writes at its top level, and other names that it gives them."""
    body = ast.parse(source).body
    names = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    others = {target.id for node in body if isinstance(node, ast.Assign) for target in node.targets}
    return names and names | others


def used(source: str) -> set[str]:
    """Names that a cell reads."""
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}


def from_the_library(cells: list) -> set[str]:
    """Names that the notebook imports from bitlab, without those of the course, which have nothing to be equal to."""
    names = set()
    for node in (node for cell in cells for node in ast.walk(ast.parse(cell.source))):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "bitlab" and "course" not in node.module:
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {"bitlab" for alias in node.names if alias.name.split(".")[0] == "bitlab"}
    return names


def asserts(source: str) -> bool:
    return any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(source))) or "assert_equal" in used(source)


@pytest.mark.parametrize(("number", "name"), LINES, ids=lambda part: part)
class TestSpine:
    def test_one_cell_writes_it(self, number, name):
        cells = code_cells(number)
        (built,) = tagged(cells, f"build:{name}")
        source = cells[built].source
        assert defined(source), "it is written here, as a function or a class"
        assert len(source.splitlines()) <= 25

    def test_a_later_cell_asserts_that_it_is_the_librarys(self, number, name):
        cells = code_cells(number)
        (built,), (equal, *more) = tagged(cells, f"build:{name}"), tagged(cells, f"equal:{name}")
        assert built < equal and not more
        source = cells[equal].source
        assert asserts(source)
        assert used(source) & defined(cells[built].source), "what was built is what is compared"
        assert used(source) & from_the_library(cells), "with something of the library's"


@pytest.mark.parametrize("number", SPINE)
def test_the_table_knows_every_tag(number):
    tags = {tag for cell in code_cells(number) for tag in cell.metadata.get("tags", [])}
    known = {f"{kind}:{name}" for kind in ("build", "equal") for name in SPINE[number]}
    assert {tag for tag in tags if tag.startswith(("build:", "equal:"))} == known
