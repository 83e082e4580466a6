"""Every notebook in JupyterLab as its reader has it: run from first cell to last, then every control by keyboard."""

import ast
import re
import time
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Browser, Locator, Page, TimeoutError

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("[0-9][0-9]_*.ipynb"))
MINUTE = 60_000
PATIENCE = 60.0  # seconds that a control may take to answer; what it took is printed
RAISED = re.compile(r"^\w+(Error|Exception|Warning|Interrupt)\b", re.MULTILINE)
TEXTS = ("", "not " * 600, "🎬 a lovely film, $5 👩🏽‍🚀 <b>&amp;", "the film is dull .")
# all cells have run, or one has failed
DONE = """() => document.querySelector('[data-mime-type$=".error"]') ||
    [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].every(each => /\\d/.test(each.textContent))"""
# what stands under a box of controls: its text, and its pictures once they are loaded
SHOWN = """box => { const shown = box.closest('.jp-OutputArea-child').nextElementSibling.lastElementChild,
                       pictures = [...shown.querySelectorAll('img')];
    return pictures.every(each => each.complete) ? shown.innerText + pictures.map(each => each.src).join() : null }"""
CHANGED = f"([box, before]) => ![null, before].includes(({SHOWN})(box))"
# the first pixel of each picture: red, green, blue, opacity
CORNERS = """pictures => pictures.map(picture => {
    const pen = new OffscreenCanvas(1, 1).getContext('2d');
    pen.drawImage(picture, 0, 0);
    return [...pen.getImageData(0, 0, 1, 1).data]; })"""


@pytest.fixture
def page(browser: Browser, jupyter, pictures: Path):
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(2 * MINUTE)
    page.complaints = []

    def note(complaint: str) -> None:
        if "Canceled future" not in complaint:  # JupyterLab's debugger says so at every restart
            page.complaints.append(complaint)

    page.on("pageerror", lambda error: note(str(error)))
    page.on("console", lambda line: note(line.text) if line.type == "error" else None)
    yield page
    page.screenshot(path=pictures / "last_seen.png")  # of use after a failure
    page.close()
    jupyter.stop_kernels()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path: Path, page: Page, jupyter, pictures: Path, answers: dict):
    controls = strip(jupyter.folder / path.name)
    page.goto(jupyter.page(path.name))
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    jupyter.wait_for_kernel()
    run_all(page)
    page.screenshot(path=pictures / f"{path.stem}.png")
    assert_clean(page)

    boxes = page.locator(".jp-OutputArea .widget-vbox")
    assert [box.locator("> *").count() for box in boxes.all()] == controls
    for number, box in enumerate(boxes.all(), start=1):
        for field in reach_by_tab(page, box):
            answers[f"{path.stem} {number}: {name(field)}"] = try_out(page, box, field)
        box.evaluate("box => box.scrollIntoView()")
        page.screenshot(path=pictures / f"{path.stem}_{number}.png")
    assert_clean(page)
    in_the_dark(page, pictures / f"{path.stem}_dark.png")


def strip(path: Path) -> list[int]:
    """Remove all outputs, so that what is there later was made now. Returns: the controls of each `explore`."""
    notebook, controls = nbformat.read(path, as_version=4), []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            calls = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Call)]
            controls += [len(call.keywords) for call in calls if getattr(call.func, "id", "") == "explore"]
    nbformat.write(notebook, path)
    return controls


def run_all(page: Page) -> None:
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_text("Restart Kernel and Run All Cells").click()
    page.get_by_role("button", name="Confirm Kernel Restart").click()
    page.wait_for_function(DONE, polling=500, timeout=20 * MINUTE)


def assert_clean(page: Page) -> None:
    """No error, nothing on standard error, every picture there, every formula set, no complaint of the browser."""
    boxes = page.locator('[data-mime-type$=".error"], [data-mime-type$=".stderr"], mjx-merror').all_inner_texts()
    broken = page.locator(".jp-Notebook img").evaluate_all("all => all.filter(i => !i.naturalWidth).map(i => i.src)")
    assert (boxes, broken, page.complaints) == ([], [], [])


def in_the_dark(page: Page, picture: Path) -> None:
    """Take a picture in JupyterLab's dark theme, where a figure must bring its own white paper."""
    change = "theme => jupyterapp.commands.execute('apputils:change-theme', {theme})"
    page.evaluate(change, "JupyterLab Dark")
    page.locator('body[data-jp-theme-light="false"]').wait_for(state="attached")
    page.screenshot(path=picture)
    page.evaluate(change, "JupyterLab Light")
    papers = page.locator(".jp-RenderedImage img").evaluate_all(CORNERS)
    assert {tuple(paper) for paper in papers} <= {(255, 255, 255, 255)}


def reach_by_tab(page: Page, box: Locator):
    """From the cell of a box of controls to each control in turn, with Tab alone."""
    box.locator("xpath=ancestor::*[contains(@class, 'jp-CodeCell')]").locator(".jp-InputPrompt").click()
    for field in box.locator("> *").all():
        for _ in range(3):  # a slider has its handle and its number
            page.keyboard.press("Tab")
            if field.evaluate("field => field.contains(document.activeElement)"):
                break
        else:
            pytest.fail(f"Tab does not reach {name(field)}")
        yield field


def name(field: Locator) -> str:
    return field.inner_text().strip("\u200b\n ").partition("\n")[0]


def try_out(page: Page, box: Locator, field: Locator) -> list[float]:
    """Move the control that has the focus to all its places, or its ends. Returns: the seconds of each answer."""
    slider = field.locator("[role=slider]")
    if slider.count():
        at_its_end = slider.get_attribute("aria-valuenow") == slider.get_attribute("aria-valuemax")
        keys = [*([] if at_its_end else ["End"]), "Home", "ArrowRight", "ArrowRight", "ArrowRight"]
    elif field.locator("select").count():
        keys = ["ArrowDown"] * (field.locator("option").count() - 1)
    elif field.locator("[type=checkbox]").count():
        keys = ["Space", "Space"]
    else:
        keys = ["Enter"] * len(TEXTS)
    seconds = []
    for number, key in enumerate(keys):
        if key == "Enter":
            page.keyboard.press("Control+A")
            page.keyboard.press("Delete")
            page.keyboard.insert_text(TEXTS[number])
        try:
            seconds.append(answer(page, box, key))
        except TimeoutError:
            pytest.fail(f"nothing follows {key}, key {number + 1} of {', '.join(keys)}, in {name(field)}")
    return seconds


def answer(page: Page, box: Locator, key: str) -> float:
    """Press a key and wait until what is under the box has changed. Returns: the seconds it took."""
    before, begin = box.evaluate(SHOWN), time.perf_counter()
    page.keyboard.press(key)
    page.wait_for_function(CHANGED, arg=[box.element_handle(), before], timeout=1000 * PATIENCE)
    seconds = time.perf_counter() - begin
    raised = RAISED.search(box.evaluate(SHOWN).partition("data:")[0])
    assert not raised, raised.string
    return seconds
