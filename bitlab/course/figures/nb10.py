"""What notebook 10 shows of one GLUE task: its file, a command at work, its scores, and what a shipped model scores."""

import contextlib
import io
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from bitlab import inference, results
from bitlab.cli import program
from bitlab.course.plots import COLORS, GUESSING, INK, PALE, bars, below, note, told
from bitlab.data.glue import load_glue
from bitlab.data.tasks import TASKS, get_task
from bitlab.experiments import Experiment
from bitlab.files import zoo
from bitlab.results import GLUE
from bitlab.terminal.options import given

# ------------------------------------------------------------------------------------------------ one task


def write_tsv(task: str, folder: Path) -> Path:
    """The sample sentences of a task of single sentences as original GLUE files; returns the folder of all tasks."""
    place = folder / get_task(task).folder
    place.mkdir(parents=True)
    for split, rows in load_glue(task, "sample").items():
        lines = [f"{row['sentence']}\t{row['label']}\n" for row in rows]
        (place / f"{split.replace('validation', 'dev')}.tsv").write_text("".join(["sentence\tlabel\n", *lines]))
    return folder


def asked_for(command: str) -> Experiment:
    """The experiment that a line `bitlab glue ...` asks for."""
    return Experiment(**given(Experiment, program.parser().parse_args(shlex.split(command)[1:])))


class _Shell(io.TextIOBase):
    """Standard output that hands on what is printed, and on which somebody presses Ctrl-C when a certain text comes."""

    def __init__(self, steps: bool, stop_at: str | None):
        self.shown, self.steps, self.stop_at, self.left_out = sys.stdout, steps, stop_at, False

    def write(self, text: str) -> int:
        stop = bool(self.stop_at and self.stop_at in text)
        if text != "\n":
            self.left_out = " step " in text and not self.steps and not stop
        if not self.left_out:
            self.shown.write(f"{text}\n" if stop else text)
        if stop:
            raise KeyboardInterrupt
        return len(text)


def typed(command: str, folder: Path, steps: bool = False, stop_at: str | None = None) -> None:
    """Type a command in a folder, and print what it prints.

    Args:
        command: "bitlab glue ...".
        steps: the lines of progress, too.
        stop_at: press Ctrl-C as soon as this text is printed.
    """
    shell = _Shell(steps, stop_at)
    with contextlib.chdir(folder), contextlib.redirect_stdout(shell), contextlib.redirect_stderr(shell):
        program.main(shlex.split(command)[1:])


def there(tasks: Sequence[str], source: str | Path) -> list[str]:
    """The tasks whose training files a folder has; says which it lacks. Of another source: all."""
    if not Path(source).is_dir():
        return list(tasks)
    found = [task for task in tasks if (Path(source) / get_task(task).folder / "train.tsv").is_file()]
    for task in set(tasks) - set(found):
        print(f"{get_task(task).title}: no train.tsv in this folder, left out")
    return found


def row(run: Path) -> str:
    """A run's rows of the table, as text: its columns alone."""
    table = results.tabulate(results.frame([results.collect(run)]))
    known = table[[column for column in GLUE if table[column].notna().any()]]
    shown = (
        table[["model", "data", "method", "schedule"]].join(known.round(1)).join(table[["size_mib", "steps", "seeds"]])
    )
    return shown.to_string(index=False)


def scores(found: Mapping[str, float], constant: float, baseline: str, control: str, metric: str) -> Axes:
    """Scores as bars from zero, with what always the same answer scores."""
    percent = {name: 100 * score for name, score in found.items()}
    ax = bars(percent, baseline=baseline, control=control, ylabel=metric)
    ax.axhline(100 * constant, label="always the same answer", **GUESSING)
    ax.set_ylim(0, 115)
    ax.legend(loc="upper right", bbox_to_anchor=(1, 1.16))
    ends = f"{told(percent, '.1f')}; always the same answer {100 * constant:.1f}"
    ax.figure.set_label(f"Dev scores in percent, bars from zero: {ends}.")
    return ax


# ------------------------------------------------------------------------------------------------ by heart

SIDES = {"train": "sentences trained on", "validation": "new ones"}


def by_heart(examined: Mapping[str, Mapping[str, Mapping]], errors_of: Sequence[str]) -> list[Axes]:
    """Models on sentences that they were trained on, and on new ones: scores, and errors of hidden states.

    Args:
        examined: "train" and "validation" -> model -> {"score": a fraction, "errors": one a hidden state}.
        errors_of: models whose errors are drawn.
    """
    _, (left, right) = plt.subplots(1, 2, figsize=(8.8, 3.2), width_ratios=(1.1, 1))
    sides = []
    looks = ((-0.2, "white", "--"), (0.2, COLORS["binary"], "-"))
    for (split, sentences), (shift, color, line) in zip(SIDES.items(), looks):
        scores = {name: 100 * each["score"] for name, each in examined[split].items()}
        places = [place + shift for place in range(len(scores))]
        left.bar(places, scores.values(), 0.4, color=color, edgecolor=INK, linewidth=0.8, label=sentences)
        for place, score in zip(places, scores.values()):
            note(left, f"{score:.0f}", (place, score), (0, 3))
        for name, tint, marker in zip(errors_of, (PALE, COLORS["binary"]), "so"):
            errors = examined[split][name]["errors"]
            right.plot(errors, line, color=tint, marker=marker, label=f"{name}, {sentences}")
            sides.append(f"{name}, {sentences}: error of the last state {errors[-1]:.2f}")
        sides.append(f"scores on {sentences}: {told(scores, '.0f')}")
    below(left, examined["train"])
    left.set(ylabel="score, percent", ylim=(0, 119), yticks=range(0, 101, 25))
    left.legend(loc="upper right", ncols=2)
    right.axhline(1, **GUESSING)
    right.set(xlabel="hidden state (0: embedding)", ylabel="squared error over variance", ylim=(0, 1.12))
    right.legend(loc="upper left", bbox_to_anchor=(0, 0.88), fontsize=7, handlelength=3.5)
    left.figure.set_label(f"{'. '.join(sides)}.")
    return [left, right]


# ------------------------------------------------------------------------------------------------ shipped models


def shipped() -> dict[str, str]:
    """The trained models that come with bitlab: name -> task."""
    return {name: task for name in zoo() for task in (*TASKS, "squad") if name.startswith(task)}


def recomputed(name: str, task: str, source: str | None) -> str:
    """A shipped model's score on real dev data, with its seconds; or what is missing for it."""
    if source is None:
        return f"{name}: needs the dev file of {get_task(task).title}; name its folder in BITLAB_DATA"
    found = inference.evaluate(name, task, source)
    numbers = ", ".join(f"{metric} {100 * value:.1f}" for metric, value in found["metrics"].items())
    return f"{name} ({found['precision']}): {numbers} on {found['examples']} examples in {found['seconds']:.1f} s"


def real_data() -> str | None:
    """The folder of GLUE's tasks that BITLAB_DATA names, or that lies in the folder that it names; None where unset."""
    named = os.environ.get("BITLAB_DATA")
    places = [Path(named), *sorted(Path(named).glob("*/"))] if named else []
    return next((str(place) for place in places if (place / TASKS["sst2"].folder).is_dir()), named or None)
