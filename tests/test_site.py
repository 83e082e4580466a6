"""What the static site is made of; tests/browser looks at the site itself."""

import re
import shutil
import warnings

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from bitlab.course.site import builder as site
from bitlab.course.site import conf


def notebook(source: str, text: str) -> nbformat.NotebookNode:
    figure = new_output("display_data", {"image/png": "aGk=\n"}, metadata={"image/png": {"alt": f'"{text}"'}})
    return new_notebook(cells=[new_code_cell(source, outputs=[figure])])


def test_a_page_takes_the_outputs_of_a_run_of_the_same_cells(tmp_path):
    path, copy = tmp_path / "committed.ipynb", tmp_path / "executed.ipynb"
    nbformat.write(notebook("draw(2)", "committed"), path)
    for source, expected in ((None, "committed"), ("draw(1)", "committed"), ("draw(2)", "executed")):
        if source:
            nbformat.write(notebook(source, "executed"), copy)
        data = site.page(path, copy).cells[0].outputs[0].data
        assert data == {"text/html": f'<img alt="&quot;{expected}&quot;" src="data:image/png;base64,aGk=">'}


def test_broken_links_are_found(tmp_path):
    (tmp_path / "b.html").write_text('<a id="here"></a><a href="#nowhere">')
    good = '<a href="b.html#here"><a href="https://x.org"><a href="#top"><p id="top">'
    good += f'<img src="data:image/png;base64,{300 * "A"}">'  # longer than a file's name may be
    (tmp_path / "a.html").write_text(good + '<a href="c.html"><a href="b.html#there"><img src="c.png">')
    expected = ["a.html: b.html#there", "a.html: c.html", "a.html: c.png", "b.html: #nowhere"]
    assert sorted(site.broken_links(tmp_path)) == expected


def test_the_front_page_introduces_and_lists_the_series():
    series = "## The series\n\n[A](notebooks/00_a.ipynb)"
    readme = f"# lab\n\n![a](notebooks/images/a.png)\n\n## Commands\n\nmake\n\n{series}\n\n## More\n"
    page = site.front_page(readme, ["00_a", "01_b"])
    assert "![a](images/a.png)" in page and "[A](00_a.ipynb)" in page and "\n00_a\n01_b\n" in page
    assert "make" not in page and "More" not in page


def test_docstrings_are_literal_where_they_are_indented():
    lines = [
        "Forward, |x| bits, `a|b|`:",
        "",
        "    a |x|",
        "    b",
        "",
        "Args:",
        "    x: of |w|.",
        "",
        "Then:",
        "    no block",
    ]
    conf.plain(None, "function", "f", None, None, lines)
    assert lines[0] == "Forward, \\|x\\| bits, `a|b|`::" and lines[2] == "    a |x|"
    assert lines[5:] == ["Args:", "    x: of \\|w\\|.", "", "Then:", "    no block"]


def test_the_reference_has_every_name_and_no_fault(tmp_path):
    sphinx = pytest.importorskip("sphinx.application")
    shutil.copy(site.HERE / "reference.md", tmp_path)
    (tmp_path / "index.md").write_text("# x\n\n```{toctree}\nreference\n```\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        app = sphinx.Sphinx(tmp_path, site.HERE, tmp_path / "site", tmp_path / "trees", "html", status=None)
        app.build()
    assert (app.statuscode, app._warncount) == (0, 0)
    page = (tmp_path / "site" / "reference.html").read_text("utf-8")
    named = re.findall(
        r"^\.\. auto(?:function|class|exception):: (\S+)", (site.HERE / "reference.md").read_text(), re.M
    )
    assert len(named) > 15 and all(f'id="{name}"' in page for name in named)
