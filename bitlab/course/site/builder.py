"""The series as a static site, with navigation, search, formulas and a reference from the docstrings, that needs
neither server nor network: `python -m bitlab.course.site` writes build/site/index.html.

Nothing is executed: a page shows what `python -m bitlab.course.series run` left in build/, or the outputs committed
with the notebook if there is no run of its present cells.
"""

import argparse
import re
import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
from bs4 import BeautifulSoup
from nbformat import NotebookNode

from bitlab.course.runner import with_alt_texts
from bitlab.course.series import notebooks
from bitlab.results import SHIPPED

HERE = Path(__file__).parent  # conf.py and reference.md
MEASURED = {"measured": SHIPPED, "tuning": SHIPPED / "tuning", "speed": SHIPPED / "speed"}  # folders of pages
MATHJAX = "tex-svg.js"


def build(series: Path, executed: Path, readme: Path, site: Path) -> int:
    """Write the site into a folder, whatever was there.

    Args:
        series: folder of the committed notebooks, with their images/.
        executed: where copies of a run may lie.
        readme: its introduction and its list of the series become the front page.
        site: the folder to write.

    Returns:
        How many faults were found and printed.
    """
    from sphinx.application import Sphinx

    paths = notebooks(series)
    shutil.rmtree(site, ignore_errors=True)
    with tempfile.TemporaryDirectory() as work:
        source, static = Path(work, "source"), Path(work, "static")
        shutil.copytree(series / "images", source / "images")
        for path in paths:
            nbformat.write(page(path, executed / path.name), source / path.name)
        shutil.copy(HERE / "reference.md", source)
        for name, folder in MEASURED.items():
            (source / f"{name}.md").write_text(unlinked((folder / "README.md").read_text("utf-8")), "utf-8")
        pages = [*(path.stem for path in paths), *MEASURED, "reference"]
        (source / "index.md").write_text(front_page(readme.read_text("utf-8"), pages), "utf-8")
        static.mkdir()
        shutil.copy(files("sphinx-mathjax-offline") / "static" / "mathjax" / MATHJAX, static)
        settings = {"html_static_path": [str(static)]}
        sphinx = Sphinx(source, HERE, site, Path(work, "doctrees"), "html", settings, status=None)
        sphinx.build()
    broken = broken_links(site)
    print(*broken, sep="\n", end="\n" if broken else "", file=sys.stderr)
    return len(broken) + (sphinx.statuscode or sphinx._warncount)


def broken_links(site: Path) -> list[str]:
    """Links and pictures of the pages of a folder that lead nowhere in it, as "page: link"."""
    pages = {path.name: BeautifulSoup(path.read_text("utf-8"), "html.parser") for path in site.glob("*.html")}
    ids = {name: {tag["id"] for tag in soup.find_all(id=True)} for name, soup in pages.items()}
    broken = []
    for name, soup in pages.items():
        for tag in soup.find_all(["a", "img", "link", "script"]):
            link = urlsplit(tag.get("href") or tag.get("src") or "")
            if link.scheme:  # elsewhere, or the picture itself
                continue
            path, place = unquote(link.path), unquote(link.fragment)
            missing = path and not (site / path).exists()
            if missing or (place and place not in ids.get(path or name, {place})):
                broken.append(f"{name}: {link.geturl()}")
    return broken


def page(path: Path, copy: Path) -> NotebookNode:
    """A notebook with the outputs of its executed copy, if that has the same cells; figures carry their alt texts."""
    notebook = nbformat.read(path, as_version=4)
    if copy.exists():
        ran = nbformat.read(copy, as_version=4)
        if [cell.source for cell in ran.cells] == [cell.source for cell in notebook.cells]:
            notebook = ran
    return with_alt_texts(notebook)


def front_page(readme: str, stems: list[str]) -> str:
    """README's introduction and its section on the series, and the navigation."""
    introduction = readme.partition("\n## ")[0]
    series = re.search(r"^## The series\n.*?(?=^## )", readme, re.MULTILINE | re.DOTALL)[0]
    pages = "\n".join(["```{toctree}", ":hidden:", *stems, "```"])
    text = f"{introduction}\n\n{series}\n{pages}\n".replace("(bitlab/results/measured/README.md)", "(measured.md)")
    return text.replace("(notebooks/", "(")


def unlinked(text: str) -> str:
    """Links to files, which the site has not, become their words."""
    return re.sub(r"(?<!!)\[([^\]]+)\]\((?!http)[^)]*\)", r"\1", text)


def main(arguments: list[str] | None = None) -> int:
    """Build the site from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bitlab.course.site", description="The series as a static site.")
    parser.add_argument("--notebooks", type=Path, default=Path("notebooks"), metavar="DIR")
    parser.add_argument("--build", type=Path, default=Path("build"), metavar="DIR")
    parser.add_argument("--readme", type=Path, default=Path("README.md"), metavar="FILE")
    options = parser.parse_args(arguments)
    site = options.build / "site"
    faults = build(options.notebooks, options.build, options.readme, site)
    print(f"{site / 'index.html'}: open it in a browser")
    return min(faults, 1)
