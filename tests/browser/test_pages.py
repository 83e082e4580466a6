"""The static site, read from files by a browser without a network: alt texts, formulas, search."""

from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from bitlab.course.site.builder import build

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    # no faults: nothing that Sphinx warns of, no broken link
    assert build(ROOT / "notebooks", ROOT / "build", ROOT / "README.md", folder) == 0
    return folder


@pytest.fixture
def page(browser):
    page = browser.new_page(offline=True)
    page.missing = []
    page.on("requestfailed", lambda request: page.missing.append(request.url))
    yield page
    page.close()


def test_a_page_a_notebook_and_every_picture_says_what_it_shows(site):
    pages = {path.name: BeautifulSoup(path.read_text(), "html.parser") for path in site.glob("*.html")}
    assert {f"{path.stem}.html" for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")} < pages.keys()
    for name, soup in pages.items():
        assert all(image.get("alt") for image in soup.find_all("img")), name
        loaded = [tag.get("href") or tag.get("src") or "" for tag in soup.find_all(["img", "link", "script"])]
        assert not [link for link in loaded if link.startswith(("http", "//"))], name


def test_every_formula_is_set(site, page):
    formulas = 0
    for path in sorted(site.glob("[0-9][0-9]_*.html")):
        page.goto(path.as_uri())
        page.evaluate("window.MathJax?.startup.promise")  # only where there is a formula
        found = page.locator(".math").count()
        assert (page.locator(".math mjx-container").count(), page.locator("[data-mjx-error]").count()) == (found, 0)
        formulas += found
    assert formulas > 100
    assert not page.missing


def test_search_finds_a_word_in_a_notebook(site, page):
    page.goto((site / "index.html").as_uri())
    page.get_by_placeholder("Search").fill("popcount")
    page.keyboard.press("Enter")
    page.locator("#search-results").get_by_role("link", name="Packed inference").click()
    assert "popcount" in page.locator("article").inner_text()
    assert not page.missing
