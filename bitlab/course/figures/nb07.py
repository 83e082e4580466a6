"""The pictures of notebook 07, multi-step distillation."""

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor

from bitlab.binarizers import elastic, levels
from bitlab.course.drawings import arrow
from bitlab.course.plots import COLORS, DIAMOND, INK, LOOK, note, told


def staircase(row: Tensor, alphas: Mapping[int, Tensor]) -> Axes:
    """A row of attention probabilities going down the stairs: as floats, then with ever fewer bits.

    Args:
        row: probabilities, (tokens,).
        alphas: bits -> scale, the most bits first.
    """
    stairs: dict[str, tuple[Tensor, str]] = {"W32A32": (row, "float")}
    for bits, alpha in alphas.items():
        stairs[f"W1A{bits}"] = (elastic(row, alpha, bits, signed=False), "binary")
    width, drop = len(row) + 3, 0.75
    _, ax = plt.subplots(figsize=(7.6, 3.6))
    for step, (name, (values, role)) in enumerate(stairs.items()):
        left, floor = step * width, -drop * step
        (seen,) = torch.nonzero(values, as_tuple=True)
        ax.bar(left + seen, values[seen], bottom=floor, color=COLORS[role], edgecolor=INK, linewidth=0.6)
        ax.plot([left - 1, left + len(row)], [floor, floor], color=INK, linestyle="-", linewidth=1.5)
        ax.vlines(left + np.arange(len(row)), floor - 0.03, floor, color=INK, linewidth=1)  # a tick a token
        known = "floats" if step == 0 else f"{1 + levels(int(name[3:]), False)[1]} levels"
        ax.text(left + len(row) / 2 - 0.5, floor - 0.17, f"{name}\n{known}", ha="center", va="top", fontsize=8)
        if step:
            look = {"connectionstyle": "arc3,rad=-0.3", "color": INK, "linewidth": 1}
            arrow(ax, (left - 2.4, floor + drop), (left - 0.6, floor + 0.12), **look)
    ax.set(ylim=(-drop * (len(stairs) - 1) - 0.5, 0.6), xlim=(-2, width * len(stairs) - 2))
    ax.axis("off")
    lost = [((y - row).square().sum() / row.square().sum()).item() for y, _ in list(stairs.values())[1:]]
    losses = ", ".join(f"{name} loses {share:.0%}" for name, share in zip(list(stairs)[1:], lost))
    ax.figure.set_label(f"One row of attention on a staircase, with fewer bits on each step; of its square {losses}.")
    return ax


def gains(panels: Mapping[str, Mapping[str, Sequence[float]]], run: str) -> list[Axes]:
    """Points gained against one step with the same seed: a dot a stored run, a diamond what has just been run.

    Args:
        panels: title -> name -> scores, seed by seed: of "teacher", "one step", "at two bits", then of what is drawn.
        run: title of the panel whose first seed has just been run.
    """
    _, (axes,) = plt.subplots(1, len(panels), figsize=(10.2, 2.5), sharex=True, sharey=True, squeeze=False)
    sides = []
    for ax, (title, scores) in zip(axes, panels.items()):
        teacher, one, two_bits, *names = scores
        for place, name in enumerate(names):
            dots = 100 * np.subtract(scores[name], scores[one])
            color = COLORS["float" if name.endswith("(control)") else "binary"]
            live = int(title == run)
            ax.plot(dots[live:], [place] * len(dots[live:]), "o", color=color, markeredgecolor=INK, markersize=6)
            ax.plot(dots[:live], [place] * live, **DIAMOND | {"markersize": 6})
            sides.append(f"{title}, {name}: {', '.join(f'{dot:+.0f}' for dot in dots)}")
        ax.axvline(0, color=INK, linewidth=1)
        ax.set_yticks(range(len(names)), names)
        mean = {name: f"{np.mean(scores[name]):.2f}".removeprefix("0") for name in (teacher, one, two_bits)}
        known = f"points against one step ({mean[one]})\n{two_bits} {mean[two_bits]}, {teacher} {mean[teacher]}"
        ax.set(title=title, xlabel=known, ylim=(len(names) - 0.5, -0.5))
        ax.xaxis.label.set_size(8)
    axes[0].figure.set_label(f"Points gained against one step, seed by seed. {'; '.join(sides)}.")
    return list(axes)


def walker(runs: pd.DataFrame) -> Callable:
    """A picture of a stored walk: its loss stage by stage, and its accuracy where each stage ends.

    Args:
        runs: stored stages (`bitlab.results.load`) of one task, with "path", "alpha" and "curve".
    """

    def walk(schedule: str, alpha: str, seed: int):
        found = runs[(runs.schedule == schedule) & (runs.seed == seed) & (runs.alpha == alpha)]
        if found.empty:
            return f"{schedule} with alpha {alpha} and seed {seed} is not stored: choose rescale, or another path."
        straight = runs[(runs.schedule == "W32A32 -> W1A1") & (runs.seed == seed)]
        _, (top, bottom) = plt.subplots(2, 1, figsize=(6.4, 4.0), sharex=True)
        dot = {"linestyle": "", "marker": "o", "markeredgecolor": INK}
        for walked, look in ((straight, LOOK["float"]), (found, LOOK["binary"])):
            bottom.plot(_ends(walked), walked.score, **look | dot, label=walked.schedule.iloc[0])
        for begin, curve in zip(_ends(found), found.curve[1:]):
            steps, losses = zip(*curve)
            top.plot([begin + step for step in steps], losses, **LOOK["binary"])
        for end, row in zip(_ends(found), found.itertuples()):
            note(bottom, f"{row.precision} {row.score:.3f}", (end, row.score), (0, 6))
        if len(found) > 2:
            last = straight.score.iloc[-1]
            note(bottom, f"{last:.3f}", (_ends(straight)[-1], last), (0, -14))
        top.set(title=f"{schedule}, alpha: {alpha}, seed {seed} (stored)", ylabel="loss")
        bottom.set(xlabel="step of the student", ylabel="dev accuracy", ylim=(0.4, 1.1), xlim=(-45, 445))
        bottom.legend(loc="lower left", fontsize=8)
        scores = told(dict(zip(found.precision, found.score)), ".3f")
        top.figure.set_label(f"Loss and accuracy along {schedule}, alpha {alpha}, seed {seed}: {scores}.")
        return [top, bottom]

    return walk


def _ends(stages: pd.DataFrame) -> list[int]:
    """Steps of the student at the end of each stage; the first stage is its teacher's."""
    return [0, *itertools.accumulate(stages.steps[1:])]
