"""The series of notebooks: laid down in a folder of one's own, or run without a browser.

python -m bitlab.course.series copy DIR          # as `bitlab notebooks DIR`
python -m bitlab.course.series run               # executed copies, an HTML page of each and times.json in build/
python -m bitlab.course.series refresh           # in place, stripped of what differs between runs, to be committed
python -m bitlab.course.series budgets           # the times of the last run, into the notebooks' budget lines
"""

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path

from bitlab.course.lab import preset
from bitlab.errors import BitlabError
from bitlab.files import write_bytes, writing

AT_ONCE = 2  # notebooks in the quick preset, each with one thread
BUDGET = re.compile(r"^Budget: .*?(?=Full\b|$)", re.MULTILINE)


def home() -> Path:
    """Where the series lies: in the package where it was installed from a wheel, else in the checkout around it."""
    installed = Path(__file__).parent / "notebooks"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "notebooks"


def notebooks(folder: Path) -> list[Path]:
    """The notebooks of a folder, in order."""
    return sorted(folder.glob("[0-9][0-9]_*.ipynb"))


def copy(folder: str | Path) -> list[Path]:
    """Lay the series down, to be opened, run and changed.

    Args:
        folder: made if there is none; nothing that lies in it is replaced.

    Returns:
        The notebooks' new paths.

    Raises:
        BitlabError: if the folder holds a file of the same name, or can't be written.
    """
    folder = Path(folder).expanduser()
    names = [path.relative_to(home()) for path in (*notebooks(home()), *sorted(home().glob("images/*")))]
    if taken := next((name for name in names if (folder / name).exists()), None):
        raise BitlabError(f"{folder} holds {taken} already: choose another folder, or move that file")
    with writing(folder):
        for name in names:
            write_bytes(folder / name, (home() / name).read_bytes())
    return notebooks(folder)


def run(paths: list[Path], build: Path | None, at_once: int = AT_ONCE, timeout: float | None = 600) -> int:
    """Execute notebooks, some at a time, with a line for each in their order. Into `build`, or in place if None.

    Args:
        paths: of the notebooks.
        build: for the executed copies, pages, and times.json.
        at_once: so many at a time, each in a process of its own.
        timeout: seconds that a cell may take; None for no limit.

    Returns:
        0, or 1 if a notebook failed; those that had not begun by then are left out.
    """
    import nbformat

    from bitlab.course import runner

    begin, measured, width = time.monotonic(), {}, max(len(path.stem) for path in paths)
    for path, done in runner.execute_all(paths, at_once, timeout):
        if build:
            runner.write(done.notebook, build, path.stem)
        elif not done.failure:
            nbformat.write(done.notebook, path)
        if done.failure:
            print(
                f"{path.stem:{width}}  failed after {done.seconds:.1f} s\n{done.failure}", file=sys.stderr, flush=True
            )
            return 1
        print(f"{path.stem:{width}}  {done.seconds:6.1f} s  {done.gib:5.2f} GiB", flush=True)
        measured[path.stem] = {"seconds": round(done.seconds, 1), "peak_gib": round(done.gib, 2)}
    print(f"{'in all':{width}}  {time.monotonic() - begin:6.1f} s")
    if build:
        (build / "times.json").write_text(json.dumps({"preset": preset(), "notebooks": measured}, indent=1) + "\n")
    return 0


def budgets(paths: list[Path], build: Path) -> int:
    """Write what the last `run` measured into the budget line of each notebook: its part about quick, up to "Full"."""
    import nbformat

    times = build / "times.json"
    measured = json.loads(times.read_text()) if times.exists() else {"preset": "none"}
    if measured["preset"] != "quick":
        raise BitlabError(f"{times} holds no times of a quick run: run `make notebooks` first")
    for path in paths:
        if found := measured["notebooks"].get(path.stem):
            notebook = nbformat.read(path, as_version=4)
            line = f"Budget: quick {found['seconds']:.0f} seconds, {found['peak_gib']:.1f} GiB (measured on one core). "
            notebook.cells[0].source = BUDGET.sub(line, notebook.cells[0].source, count=1)
            nbformat.write(notebook, path)
    return 0


def _main(options: argparse.Namespace) -> int:
    if options.action == "copy":
        if len(options.only) != 1:
            raise BitlabError("copy takes one folder: python -m bitlab.course.series copy DIR")
        print(f"{len(copy(options.only[0]))} notebooks: jupyter lab {options.only[0]}")
        return 0
    full = preset() == "full"
    os.environ["BITLAB_HEADLESS"] = "1"
    if not full:  # quick needs no network and one thread a notebook; full may fetch models, and takes what there is
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    paths = [p for p in notebooks(options.notebooks) if not {p.stem, p.stem[:2]}.isdisjoint(options.only or [p.stem])]
    if not paths:
        raise BitlabError(f"no notebook to run in {options.notebooks}")
    if options.action == "budgets":
        return budgets(paths, options.build)
    build = options.build if options.action == "run" else None
    return run(paths, build, at_once=1, timeout=None) if full else run(paths, build)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line above; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bitlab.course.series", description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("copy", "run", "refresh", "budgets"))
    parser.add_argument("only", nargs="*", help="numbers or names of notebooks, all if none: 02 05_binary_bert")
    parser.add_argument("--notebooks", type=Path, default=Path("notebooks"), metavar="DIR")
    parser.add_argument("--build", type=Path, default=Path("build"), metavar="DIR")
    try:
        return _main(parser.parse_args(arguments))
    except BitlabError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
