"""The pictures of notebook 09, rivals and augmentation."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from pandas import DataFrame
from torch import Tensor

from bitlab import results
from bitlab.course.figures.parts import seeds
from bitlab.course.plots import BESIDE, COLORS, DIAMOND, GUESSING, INK, MARKS, told
from bitlab.data import sample
from bitlab.data.glue import encode
from bitlab.data.tasks import TASKS, Task
from bitlab.experiments.prepared import Prepared
from bitlab.results import GLUE
from bitlab.terminal.text import aligned

STORED = {"binarybert-w1a1": "BinaryBERT", "bibert": "BiBERT", "one-step": "BiT*", "two-steps": "BiT"}
STORED |= {"binarybert-w1a4": "BinaryBERT, 4-bit act."}
REAL = {"BinaryBERT": "binarybert-minilm-W1A1", "BiBERT": "bibert-minilm-W1A1", "BiT*": "bit-minilm-W1A1-relative"}
SEEDS = {"first stored seed": ("o-", -0.12), "second": ("^--", 0.0), "third": ("s:", 0.12)}
GROUPS = {(1, 0, 0): sample.SUBJECTS, (0, 1, 0.2): sample.GOOD, (0, 1, -0.2): sample.BAD, (0, 0, 1): sample.DEGREES}


def splitting(panels: Mapping[str, tuple[Tensor, Tensor]]) -> list[Axes]:
    """Latent weights as bars and what they are rounded to as dots, a panel each."""
    _, axes = plt.subplots(1, len(panels), figsize=(9, 2.6), sharey=True)
    for ax, (title, (latent, rounded)) in zip(axes, panels.items()):
        places = range(len(latent))
        ax.bar(places, latent, width=0.7, color=COLORS["latent"], alpha=0.6, label="latent")
        ax.scatter(places, rounded, s=40, color=COLORS["binary"], edgecolor=INK, zorder=3, label="rounded")
        ax.axhline(0, color=INK, linewidth=0.8)
        ax.set(title=title, xlabel="weight", xticks=places)
    axes[0].set_ylabel("value")
    axes[-1].legend(**BESIDE)
    levels = "; ".join(f"{name} {len(rounded.round(decimals=6).unique())}" for name, (_, rounded) in panels.items())
    axes[0].figure.set_label(f"Weights as bars, rounded as dots. Different levels: {levels}.")
    return list(axes)


def looker(scores: Tensor) -> Callable:
    """A picture of where one query looks, by BiT and by BiBERT, for `explore`."""

    def draw(shift: float, sharpness: float, alpha: float) -> list[Axes]:
        s = scores * sharpness + shift
        p = s.softmax(-1)
        _, axes = plt.subplots(1, 2, figsize=(7.4, 2.7))
        rows = (("BiT: softmax, then bits", p, alpha / 2, "probability"), ("BiBERT: bits", s, 0.0, "score"))
        for ax, (title, values, limit, label) in zip(axes, rows):
            colors = [COLORS["binary"] if value > limit else COLORS["float"] for value in values]
            ax.bar(range(len(s)), values, color=colors, edgecolor=INK, linewidth=0.8)
            ax.axhline(limit, color=INK, linestyle=MARKS["alpha"])
            ax.set(title=f"{title} (1 above {limit:.2f})", xlabel="key (orange: bit 1)", ylabel=label)
            ax.set_xticks(range(len(s)))
        axes[0].set_ylim(0, 1.05)
        looked = f"BiT looks at {int((p > alpha / 2).sum())} of {len(s)} keys, BiBERT at {int((s > 0).sum())}"
        axes[0].figure.set_label(f"Probabilities and scores of one row, shifted by {shift}: {looked}.")
        return list(axes)

    return draw


def stored_losses() -> dict[str, list[float]]:
    """What the stored runs of the sample task lost against their own teachers, as shares, a number a seed."""
    runs = results.load()
    ends = runs[runs.name.str.startswith("sst2-sample-")].groupby("name").score.agg(["first", "last"])
    lost = (ends["first"] - ends["last"]).groupby(
        ends.index.str.removeprefix("sst2-sample-").str.rsplit("-", n=1).str[0]
    )
    return {label: list(lost.get_group(name)) for name, label in STORED.items() if name in lost.groups}


def losses(
    live: Mapping[str, Sequence[float]],
    stored: Mapping[str, Sequence[float]],
    run: Iterable[str],
    nothing: float,
    steps: int,
) -> list[Axes]:
    """Points lost against the teacher, from zero: on the left run and stored, on the right stored, a line a seed.

    Args:
        live: name -> what is lost, as shares: of those `run` just now first, then of stored ones.
        nothing: what always the same answer loses.
    """
    _, axes = plt.subplots(1, 2, figsize=(9.4, 3.1), sharey=True, width_ratios=(len(live), len(stored) or 1))
    _points(axes[0], live, nothing, run)
    _points(axes[1], stored, nothing)
    axes[0].set(title=f"{steps} steps: run and stored", ylabel="points of accuracy lost")
    axes[1].set(title="400 steps: stored")
    _legend(axes[0])
    sides = f"Run and stored: {told(_percent(live), '.0f')}. Stored: {told(_percent(stored), '.0f') or 'none'}."
    axes[0].figure.set_label(f"Points of accuracy lost, means over seeds. {sides}")
    return list(axes)


def swaps(lost: Mapping[str, Sequence[float]], run: Iterable[str], nothing: float) -> Axes:
    """Points lost by two methods, and by each with something of the other's; of those `run` the first seed is live."""
    _, ax = plt.subplots(figsize=(8.6, 3))
    _points(ax, lost, nothing, run)
    ax.set_ylabel("points of accuracy lost")
    _legend(ax)
    ax.figure.set_label(f"Points of accuracy lost, means over seeds. {told(_percent(lost), '.0f')}.")
    return ax


def _points(ax: Axes, lost: Mapping[str, Sequence[float]], nothing: float, run: Iterable[str] = ()) -> None:
    """Bars of means, a mark and a line for each stored seed; of those just run the first seed is a diamond."""
    points = _percent(lost)
    means = {name: [runs.mean()] for name, runs in points.items()}
    seeds(ax, means, [{"color": COLORS["binary"]}] * len(means), ".0f")
    stored = min(map(len, points.values()), default=0)  # the last ones, of the same seeds
    for (name, (look, shift)), runs in zip(SEEDS.items(), zip(*(runs[-stored:] for runs in points.values()))):
        places = np.arange(len(runs)) + shift  # side by side, so that equal numbers don't hide each other
        ax.plot(places, runs, look, color=INK, markersize=4, linewidth=0.7, label=name)
    for place, (name, runs) in enumerate(points.items()):
        if name in run:
            ax.plot(place, runs[0], label="run here", **DIAMOND)
    ax.axhline(100 * nothing, label="always the same answer", **GUESSING)
    ax.set_ylim(0, 55)


def _legend(ax: Axes) -> None:
    """What bars, dots, lines and diamonds are, under the figure."""
    ax.patches[0].set_label("mean of all")
    named = dict(zip(*ax.get_legend_handles_labels()[::-1]))
    ax.figure.legend(named.values(), named, loc="outside lower center", ncols=6, fontsize=8)


def _percent(lost: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray]:
    return {name: 100 * np.array(shares) for name, shares in lost.items()}


def real_tasks(constant: Mapping[str, float]) -> str:
    """Scores on real tasks as text, seed 0, beside those in print and their mean; last the steps of BiT*.

    Args:
        constant: column -> percent of the same answer always.
    """
    runs = results.load().rename(columns={"matthews_correlation": "CoLA", "accuracy": "MRPC", "score": "STS-B"})
    eight = {column: task for column, task in GLUE.items() if column != "MNLI-mm"}  # MNLI counts once
    paper = results.published(columns=eight).query("precision in ('W32A32', 'W1A1')").set_index("method")
    tasks, steps = {task.title: task for task in TASKS.values()}, ["steps"]
    table = [["percent", *(f"{title}{side}" for title in constant for side in (" here", ", print")), "8 tasks, print"]]
    for method in ("full precision", *REAL, "BiT"):
        row = [method]
        for title in constant:
            stages = runs[runs.name == f"{tasks[title].name}-{REAL.get(method, REAL['BiT*'])}-seed0"]
            here = stages[title].iloc[-1 if method in REAL else 0]
            row += ["" if method == "BiT" else f"{100 * here:.1f}", f"{paper.loc[method, title]:.1f}"]
            if method == "BiT*":
                steps += [f"{number:,.0f}" for number in (stages.steps.iloc[-1], _papers_steps(stages, tasks[title]))]
        table += [[*row, f"{paper.loc[method, 'avg']:.1f}"]]
    same = (f"{value:.1f}" for value in constant.values() for _ in range(2))
    return "\n".join(aligned([*table, ["always the same", *same, ""], [*steps, ""]]))


def _papers_steps(stages: DataFrame, task: Task) -> float:
    """Steps of the paper's training on as many examples as the last of these stages had."""
    last = stages.iloc[-1]
    return task.epochs * (last.steps * last.batch_size / last.epochs) / task.batch_size


def encoded(sentences: Sequence[tuple[str, int]], data: Prepared) -> Dataset:
    """Sentences with their labels as the rows that training takes."""
    columns = dict(zip((data.task.text_columns[0], "label"), map(list, zip(*sentences))))
    return encode(Dataset.from_dict(columns), data.task, data.tokenizer)


def write_vectors(path: Path) -> Path:
    """Word vectors of three numbers for the sample task's words, in GloVe's format."""
    jitter = random.Random(0)
    lines = [
        " ".join([word, *(f"{x + jitter.gauss(0, 0.1):.3f}" for x in direction)])
        for direction, words in GROUPS.items()
        for word in words
    ]
    path.write_text("\n".join(lines) + "\n")
    return path
