"""Executes notebooks, several at a time, and makes pages of them."""

import html
import re
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import ipykernel.kernelspec
import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter
from nbformat import NotebookNode

KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
PEAK_MEMORY = """
try:
    import resource
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
except ImportError:  # Windows
    import psutil
    print(psutil.Process().memory_info().peak_wset // 1024)
"""


class ThisPython(AsyncKernelManager):
    """Starts the Python that runs this program, whatever kernels named python3 the user has installed."""

    @property
    def kernel_spec(self):
        return KernelSpec(resource_dir=ipykernel.kernelspec.RESOURCES, **ipykernel.kernelspec.get_kernel_dict())


@dataclass(frozen=True)
class Done:
    """A notebook after its run: seconds, the kernel's peak memory in GiB, and why it failed, None if it did not."""

    notebook: NotebookNode
    seconds: float
    gib: float
    failure: str | None


def execute_all(paths: list[Path], at_once: int, timeout: float | None) -> Iterator[tuple[Path, Done]]:
    """Execute notebooks in their folders; yields them in order, up to the first that fails, after which none begins."""
    failed = threading.Event()

    def execute_one(path: Path) -> Done | None:
        if failed.is_set():
            return None
        done = execute(path, timeout)
        if done.failure:
            failed.set()
        return done

    with ThreadPoolExecutor(at_once) as pool:
        try:
            for path, done in zip(paths, pool.map(execute_one, paths)):
                yield path, done
                if done.failure:
                    return
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def execute(path: Path, timeout: float | None = None) -> Done:
    """Run all cells of a notebook in its folder.

    Args:
        path: of the notebook; the file stays as it is.
        timeout: seconds a cell may take; None for no limit.
    """
    begin = time.monotonic()
    notebook = nbformat.read(path, as_version=4)
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
        resources={"metadata": {"path": str(path.parent)}},
    )
    failure, gib = None, 0.0
    try:
        client.execute()
        unit = 2**30 if sys.platform == "darwin" else 2**20  # getrusage counts bytes there, KiB elsewhere
        gib = int(probe.outputs[0].text) / unit
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        failure = _where(notebook, error)
    notebook.cells.remove(probe)
    tidy(notebook)
    return Done(notebook, time.monotonic() - begin, gib, failure)


def _where(notebook: NotebookNode, error: Exception) -> str:
    """The failing cell, its error and its first lines, in few lines."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    ran = [cell for cell in code if cell.get("execution_count")] or code
    cell = next((cell for cell in code if any(o.output_type == "error" for o in cell.outputs)), ran[-1])
    reason = f"{error.ename}: {error.evalue}" if isinstance(error, CellExecutionError) else str(error)
    source = "\n".join(f"    | {line}" for line in cell.source.splitlines()[:12])
    return f"  cell {notebook.cells.index(cell)}: {reason.strip().splitlines()[0]}\n{source}"


def tidy(notebook: NotebookNode) -> None:
    """Drop what differs between two runs of the same notebook: timings, widget state, the Python's patch level."""
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({key: cell.metadata[key] for key in ("tags",) if key in cell.metadata})


def write(notebook: NotebookNode, build: Path, name: str) -> None:
    """Write a notebook and its HTML page into the folder `build`."""
    build.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, build / f"{name}.ipynb")
    (build / f"{name}.html").write_text(page(notebook, name), encoding="utf-8")


def page(notebook: NotebookNode, title: str) -> str:
    """A notebook as an HTML page: pictures with their alt texts, links to the pages of the others."""
    page, _ = HTMLExporter().from_notebook_node(with_alt_texts(notebook), resources={"metadata": {"name": title}})
    return re.sub(r'href="(\d\d_\w+)\.ipynb', r'href="\1.html', page)


def with_alt_texts(notebook: NotebookNode) -> NotebookNode:
    """A copy in which each picture is an <img> with its alt text, which those who make pages of a PNG leave out."""
    notebook = nbformat.from_dict(notebook)
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if png := output.get("data", {}).pop("image/png", None):
            alt = html.escape(output.metadata.get("image/png", {}).get("alt", ""))
            output.data["text/html"] = f'<img alt="{alt}" src="data:image/png;base64,{png.strip()}">'
    return notebook
