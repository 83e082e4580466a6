"""Run the series of notebooks without a browser: `python -m bitlab.course.series run`, `refresh` or `budgets`.

`run` leaves the executed copies, an HTML page of each and times.json in build/. `refresh` runs the notebooks
in place and strips from them what differs between two runs or two machines, so that their outputs can be
committed. `budgets` writes the times of the last run into the notebooks' budget lines.
"""

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path

import ipykernel.kernelspec
import nbformat
from bs4 import BeautifulSoup
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter

from bitlab.course import preset

BUDGET = re.compile(r"^Budget: .*?(?=Full\b|$)", re.MULTILINE)
PEAK_MEMORY = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
ACTIONS = "run into build/, refresh in place for committing, or write the last run's times into the budget lines"
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


class ThisPython(AsyncKernelManager):
    """Starts the Python that runs this program, whatever kernels named python3 the user has installed."""

    @property
    def kernel_spec(self):
        return KernelSpec(resource_dir=ipykernel.kernelspec.RESOURCES, **ipykernel.kernelspec.get_kernel_dict())


class NotebookFailed(Exception):
    """A cell that raised, took too long or took the kernel with it; the message says which and why."""


def execute(notebook: nbformat.NotebookNode, folder: Path, timeout: float | None = None) -> float:
    """Run all cells in place, in `folder`; returns the kernel's peak memory in GiB.

    Args:
        timeout: seconds a cell may take; None for no limit.
    Raises: NotebookFailed.
    """
    probe = nbformat.v4.new_code_cell(PEAK_MEMORY)
    notebook.cells.append(probe)
    client = NotebookClient(
        notebook,
        kernel_manager_class=ThisPython,
        extra_arguments=["--log-level=ERROR"],
        timeout=timeout,
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        raise NotebookFailed(_where(notebook, error)) from error
    finally:
        notebook.cells.remove(probe)
    unit = 2**30 if sys.platform == "darwin" else 2**20  # getrusage counts bytes there, KiB elsewhere
    return int(probe.outputs[0].text) / unit


def _where(notebook: nbformat.NotebookNode, error: Exception) -> str:
    """The failing cell, its error and its first lines, in few lines."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    ran = [cell for cell in code if cell.get("execution_count")] or code
    cell = next((cell for cell in code if any(o.output_type == "error" for o in cell.outputs)), ran[-1])
    reason = f"{error.ename}: {error.evalue}" if isinstance(error, CellExecutionError) else str(error)
    source = "\n".join(f"    | {line}" for line in cell.source.splitlines()[:12])
    return f"  cell {notebook.cells.index(cell)}: {reason.strip().splitlines()[0]}\n{source}"


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Drop what differs between two runs of the same notebook: timings, widget state, the Python's patch
    level."""
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({key: cell.metadata[key] for key in ("tags",) if key in cell.metadata})


def page(notebook: nbformat.NotebookNode, title: str) -> str:
    """The notebook as one HTML page: figures keep their alt texts, links to other notebooks lead to their
    pages."""
    html, _ = HTMLExporter().from_notebook_node(notebook, resources={"metadata": {"name": title}})
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    alts = {
        output.data["image/png"].strip(): output.metadata.get("image/png", {}).get("alt")
        for output in outputs
        if "image/png" in output.get("data", {})
    }
    soup = BeautifulSoup(html, "html.parser")
    for image in soup.find_all("img"):  # the exporter's template leaves the alt text out
        if alt := alts.get(image["src"].partition(",")[2].strip()):
            image["alt"] = alt
    for link in soup.find_all("a", href=re.compile(r"^\d\d_\w+\.ipynb")):
        link["href"] = link["href"].replace(".ipynb", ".html")
    return str(soup)


def run(paths: list[Path], build: Path | None, timeout: float | None) -> int:
    """Execute notebooks in order, with a line for each. Into `build`, or in place if that is None.

    Returns: 0, or 1 at the first notebook that fails.
    """
    begin, measured, width = time.monotonic(), {}, max(len(path.stem) for path in paths)
    for path in paths:
        start = time.monotonic()
        notebook = nbformat.read(path, as_version=4)
        failure, memory = None, 0.0
        try:
            memory = execute(notebook, path.parent, timeout)
        except NotebookFailed as error:
            failure = error
        seconds = time.monotonic() - start
        tidy(notebook)
        if build:
            build.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, build / path.name)
            (build / f"{path.stem}.html").write_text(page(notebook, path.stem), encoding="utf-8")
        elif not failure:
            nbformat.write(notebook, path)
        if failure:
            print(f"{path.stem:{width}}  failed after {seconds:.1f} s\n{failure}", file=sys.stderr, flush=True)
            return 1
        print(f"{path.stem:{width}}  {seconds:6.1f} s  {memory:5.2f} GiB", flush=True)
        measured[path.stem] = {"seconds": round(seconds, 1), "peak_gib": round(memory, 2)}
    print(f"{'in all':{width}}  {time.monotonic() - begin:6.1f} s")
    if build:
        (build / "times.json").write_text(json.dumps({"preset": preset(), "notebooks": measured}, indent=1) + "\n")
    return 0


def budgets(paths: list[Path], build: Path) -> int:
    """Write what the last `run` measured into the budget line of each notebook: its part about quick, up to "Full"."""
    times = build / "times.json"
    measured = json.loads(times.read_text()) if times.exists() else {"preset": "none"}
    if measured["preset"] != "quick":
        print(f"{times} holds no times of a quick run: run `make notebooks` first", file=sys.stderr)
        return 2
    for path in paths:
        if found := measured["notebooks"].get(path.stem):
            notebook = nbformat.read(path, as_version=4)
            line = f"Budget: quick {found['seconds']:.0f} seconds, {found['peak_gib']:.1f} GiB (measured on one core). "
            notebook.cells[0].source = BUDGET.sub(line, notebook.cells[0].source, count=1)
            nbformat.write(notebook, path)
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bitlab.course.series", description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("run", "refresh", "budgets"), help=ACTIONS)
    parser.add_argument("only", nargs="*", help="numbers or names of notebooks, all if none: 02 05_binary_bert")
    parser.add_argument("--notebooks", type=Path, default=Path("notebooks"), metavar="DIR")
    parser.add_argument("--build", type=Path, default=Path("build"), metavar="DIR")
    options = parser.parse_args(arguments)

    full = preset() == "full"
    os.environ["BITLAB_HEADLESS"] = "1"
    if not full:  # quick needs no network; full may fetch models
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    paths = sorted(options.notebooks.glob("[0-9][0-9]_*.ipynb"))
    if options.only:
        paths = [path for path in paths if path.stem in options.only or path.stem[:2] in options.only]
    if not paths:
        print(f"no notebook to run in {options.notebooks}", file=sys.stderr)
        return 2
    if options.action == "budgets":
        return budgets(paths, options.build)
    return run(paths, options.build if options.action == "run" else None, timeout=None if full else 600)


if __name__ == "__main__":
    sys.exit(main())
