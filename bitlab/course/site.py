"""The series as a static site, with navigation, search and formulas, that needs neither server nor network:
`python -m bitlab.course.site` writes build/site/index.html.

Nothing is executed: a page shows what `python -m bitlab.course.series run` left in build/, or the outputs committed
with the notebook if there is no run of its present cells.
"""

import argparse
import html
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

MATHJAX = "tex-svg.js"  # one file with its fonts in it
SETTINGS = {
    "project": "bitlab",
    "html_title": "bitlab",
    "html_theme": "furo",
    "html_copy_source": False,
    "html_use_index": False,
    "html_show_copyright": False,
    "html_show_search_summary": False,  # summaries are fetched, which a browser refuses from files
    "extensions": ["myst_nb", "sphinx.ext.mathjax"],
    "mathjax_path": MATHJAX,
    "myst_enable_extensions": ["dollarmath", "amsmath"],
    "myst_heading_anchors": 3,
    "suppress_warnings": ["myst.xref_missing"],  # it does not see the glossary's anchors: see broken_links
    "nb_execution_mode": "off",
    "nb_render_markdown_format": "myst",
    "nb_ipywidgets_js": {},
}


def build(notebooks: Path, executed: Path, readme: Path, site: Path) -> int:
    """Write the site into the folder `site`, whatever was there. Returns: how many faults were found and printed.

    Args:
        notebooks: the committed series, with its images/.
        executed: where copies of a run may lie.
        readme: its introduction and its list of the series become the front page.
    """
    from sphinx.application import Sphinx

    paths = sorted(notebooks.glob("[0-9][0-9]_*.ipynb"))
    shutil.rmtree(site, ignore_errors=True)
    with tempfile.TemporaryDirectory() as work:
        source, static = Path(work, "source"), Path(work, "static")
        shutil.copytree(notebooks / "images", source / "images")
        for path in paths:
            nbformat.write(page(path, executed / path.name), source / path.name)
        (source / "index.md").write_text(front_page(readme.read_text("utf-8"), [path.stem for path in paths]), "utf-8")
        static.mkdir()
        shutil.copy(files("sphinx-mathjax-offline") / "static" / "mathjax" / MATHJAX, static)
        settings = SETTINGS | {"html_static_path": [str(static)]}
        sphinx = Sphinx(source, None, site, Path(work, "doctrees"), "html", settings, status=None)
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
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if png := output.get("data", {}).pop("image/png", None):  # from a PNG, the builder makes an image without alt
            alt = html.escape(output.metadata.get("image/png", {}).get("alt", ""))
            output.data["text/html"] = f'<img alt="{alt}" src="data:image/png;base64,{png.strip()}">'
    return notebook


def front_page(readme: str, stems: list[str]) -> str:
    """README's introduction and its section on the series, and the navigation."""
    introduction = readme.partition("\n## ")[0]
    series = re.search(r"^## The series\n.*?(?=^## )", readme, re.MULTILINE | re.DOTALL)[0]
    pages = "\n".join(["```{toctree}", ":hidden:", *stems, "```"])
    return f"{introduction}\n\n{series}\n{pages}\n".replace("(notebooks/", "(")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bitlab.course.site", description="The series as a static site.")
    parser.add_argument("--notebooks", type=Path, default=Path("notebooks"), metavar="DIR")
    parser.add_argument("--build", type=Path, default=Path("build"), metavar="DIR")
    parser.add_argument("--readme", type=Path, default=Path("README.md"), metavar="FILE")
    options = parser.parse_args(arguments)
    site = options.build / "site"
    faults = build(options.notebooks, options.build, options.readme, site)
    print(f"{site / 'index.html'}: open it in a browser")
    return min(faults, 1)


if __name__ == "__main__":
    sys.exit(main())
