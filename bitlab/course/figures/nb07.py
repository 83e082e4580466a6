"""The pictures of notebook 07, multi-step distillation."""

import itertools
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor

from bitlab.binarizers import elastic, levels
from bitlab.course.drawings import arrow
from bitlab.course.figures.parts import groups, seeds
from bitlab.course.plots import COLORS, GUESSING, INK, LOOK, MARKS, bars, note, told


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


def levels_at_change(values: Tensor, scales: Mapping[str, float]) -> list[Axes]:
    """The positive entries of a tensor, once a scale: its levels, and the lowest threshold.

    Args:
        scales: name -> alpha; the first is that of two bits, the others of one.
    """
    positive = values[values > 0]
    _, axes = plt.subplots(1, len(scales), figsize=(9, 2.4), sharey=True)
    lost: dict[str, float] = {}
    for ax, (name, alpha) in zip(axes, scales.items()):
        y = elastic(values, torch.tensor(alpha), 1 if lost else 2, signed=False)
        lost[name] = ((y - values).square().mean() / values.square().mean()).item()
        ax.hist(positive, bins=24, color=COLORS["latent"], alpha=0.6)
        for level in y.unique():
            ax.axvline(level, color=COLORS["binary"], linewidth=2)
        ax.axvline(alpha / 2, color=INK, linestyle=MARKS["beta"], linewidth=1, label="lowest border")
        ax.set(xlabel="ReLU output", title=f"{name}: α = {alpha:.2f}\nloses {lost[name]:.0%} of x²")
    axes[0].set_ylabel("how many (zeros left out)")
    axes[0].legend(loc="upper right", fontsize=7)
    axes[0].figure.set_label(
        f"The same histogram with the levels of each scale as lines, the lowest threshold dashed. "
        f"Of the square is lost: {told(lost, '.0%')}."
    )
    return list(axes)


def race(budgets: Mapping[str, Mapping[str, Sequence[float]]], control: str, chance: float) -> list:
    """Dev accuracy of every way down, a panel a budget, a dot a seed.

    Args:
        budgets: title -> name -> scores; the first name is the teacher.
    """
    _, (axes,) = plt.subplots(1, len(budgets), figsize=(9.6, 3.1), sharey=True, squeeze=False)
    for ax, (title, ways) in zip(axes, budgets.items()):
        bars(ways, baseline=next(iter(ways)), control=control, chance=chance, ax=ax)
        ax.set(title=title, ylabel="dev accuracy" if ax is axes[0] else "", ylim=(0, 1.14))
    sides = ". ".join(f"{title}: {told(ways)}" for title, ways in budgets.items())
    axes[0].figure.set_label(f"Dev accuracy, means over seeds. {sides}.")
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


def real_tasks(scores: Mapping[str, Mapping[str, Sequence[float]]], constant: Mapping[str, float]) -> list[Axes]:
    """Scores on real tasks, a dot a seed; the first arm of each is its teacher, a line the constant answer's score."""
    _, axes = plt.subplots(1, len(scores), figsize=(8.4, 2.8), sharey=True)
    for ax, (task, arms) in zip(axes, scores.items()):
        bars(arms, baseline=next(iter(arms)), ylabel="dev score (stored)", ax=ax)
        ax.axhline(constant[task], label="always the same answer", **GUESSING)
        ax.set(title=task, ylim=(0, 1.05))
    axes[-1].legend(loc="upper right", fontsize=8)
    sides = ". ".join(f"{task}: {told(arms)}" for task, arms in scores.items())
    axes[0].figure.set_label(f"Dev scores, means over seeds. {sides}. Constant answers: {told(constant)}.")
    return list(axes)


def released(scores: Mapping[str, Sequence[float]]) -> Axes:
    """One step and two, by the loss as released and as corrected: "released one" and so on -> scores of seeds."""
    _, ax = plt.subplots(figsize=(6.4, 2.6))
    words = {"one": "one step", "landing": "at two bits", "two": "two steps"}
    named = {f"{words[name.split()[1]]} {name.split()[0]}": runs for name, runs in scores.items()}
    seeds(ax, named, [{"color": COLORS["float" if name.endswith("released") else "binary"]} for name in named])
    ax.set(ylabel="correlation", title="toy pairs, three stored seeds")
    ax.figure.set_label(f"Correlation: {told(named)}.")
    return ax


def gradients(norms: Mapping[str, Mapping[str, float]]) -> Axes:
    """Gradient norms by part of the model, one group of bars for each way to compute the loss."""
    _, ax = plt.subplots(figsize=(6.4, 2.6))
    heights = {name: list(parts.values()) for name, parts in norms.items()}
    for drawn in groups(ax, heights, ({"color": COLORS["float"]}, {"color": COLORS["binary"]})):
        ax.bar_label(drawn, fmt="%.2g", fontsize=7, padding=2)
    parts = next(iter(norms.values()))
    ax.set_xticks(range(len(parts)), parts)
    ax.set_ylabel("gradient norm")
    ax.margins(y=0.15)
    ax.legend(loc="upper left")
    sides = ". ".join(f"{name}: {told(parts, '.2g')}" for name, parts in norms.items())
    ax.figure.set_label(f"Gradient norms by part of the model. {sides}.")
    return ax
