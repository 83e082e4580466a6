"""The pictures of notebook 07, multi-step distillation."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from textwrap import fill

import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch
from torch import Tensor

from bitlab.binarizers import elastic, levels
from bitlab.course.plots import COLORS, INK, LOOK, PAPER, bars


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
            bend = {"arrowstyle": "-|>", "mutation_scale": 12, "connectionstyle": "arc3,rad=-0.3", "color": INK}
            ax.add_patch(FancyArrowPatch((left - 2.4, floor + drop), (left - 0.6, floor + 0.12), **bend))
    ax.set(ylim=(-drop * (len(stairs) - 1) - 0.5, 0.6), xlim=(-2, width * len(stairs) - 2))
    ax.axis("off")
    lost = [((y - row).square().sum() / row.square().sum()).item() for y, _ in list(stairs.values())[1:]]
    told = ", ".join(f"{name} loses {share:.0%}" for name, share in zip(list(stairs)[1:], lost))
    ax.figure.set_label(f"One row of attention on a staircase, with fewer bits on each step; of its square {told}.")
    return ax


def levels_at_change(values: Tensor, scales: Mapping[str, float]) -> list[Axes]:
    """The positive entries of a tensor, once a scale: its levels, and the lowest threshold.

    Args:
        scales: name -> alpha; the first is that of two bits, the others of one.
    """
    positive = values[values > 0]
    _, axes = plt.subplots(1, len(scales), figsize=(9, 2.4), sharey=True)
    told = []
    for ax, (name, alpha) in zip(axes, scales.items()):
        y = elastic(values, torch.tensor(alpha), 1 if told else 2, signed=False)
        error = ((y - values).square().mean() / values.square().mean()).item()
        ax.hist(positive, bins=24, color=COLORS["latent"], alpha=0.6)
        for level in y.unique():
            ax.axvline(level, color=COLORS["binary"], linewidth=2)
        ax.axvline(alpha / 2, color=INK, linestyle=(0, (5, 2)), linewidth=1, label="lowest border")
        ax.set(xlabel="ReLU output", title=f"{name}: α = {alpha:.2f}\nloses {error:.0%} of x²")
        told.append(f"{name} {error:.0%}")
    axes[0].set_ylabel("how many (zeros left out)")
    axes[0].legend(loc="upper right", fontsize=7)
    axes[0].figure.set_label(
        f"The same histogram with the levels of each scale as lines, the lowest threshold dashed. "
        f"Of the square is lost: {', '.join(told)}."
    )
    return list(axes)


def race(budgets: Mapping[str, Mapping[str, Sequence[float]]], control: str, chance: float) -> list:
    """Dev accuracy of every way down, a panel a budget, a dot a seed.

    Args:
        budgets: title -> name -> scores; the first name is the teacher.
    """
    _, (axes,) = plt.subplots(1, len(budgets), figsize=(9.6, 3.1), sharey=True, squeeze=False)
    told = []
    for ax, (title, ways) in zip(axes, budgets.items()):
        bars(ways, baseline=next(iter(ways)), control=control, chance=chance, ax=ax)
        ax.set(title=title, ylabel="dev accuracy" if ax is axes[0] else "", ylim=(0, 1.14))
        ax.set_xticks(range(len(ways)), [fill(name, 11) for name in ways], fontsize=8)
        told.append(title + ": " + ", ".join(f"{name} {mean(scores):.2f}" for name, scores in ways.items()))
    axes[0].figure.set_label(f"Dev accuracy, means over seeds. {'. '.join(told)}.")
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
        _, axes = plt.subplots(2, 1, figsize=(6.4, 4.0), sharex=True)
        for walked, look in ((straight, LOOK["float"]), (found, LOOK["binary"])):
            ends, name = [0, *itertools.accumulate(walked.steps[1:])], next(iter(walked.schedule), "")
            axes[1].plot(ends, walked.score, **(look | {"linestyle": ""}), marker="o", markeredgecolor=INK, label=name)
        for begin, curve in zip(ends, found.curve[1:]):
            steps, losses = zip(*curve)
            axes[0].plot([begin + step for step in steps], losses, **LOOK["binary"])
        for end, row in zip(itertools.accumulate([0, *found.steps[1:]]), found.itertuples()):
            place = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center", "fontsize": 8}
            axes[1].annotate(f"{row.precision} {row.score:.3f}", (end, row.score), **place)
        if len(straight) and len(found) > 2:
            last = {"xytext": (0, -14), "textcoords": "offset points", "ha": "center", "fontsize": 8}
            axes[1].annotate(
                f"{straight.score.iloc[-1]:.3f}", (straight.steps[1:].sum(), straight.score.iloc[-1]), **last
            )
        axes[0].set(title=f"{schedule}, alpha: {alpha}, seed {seed} (stored)", ylabel="loss")
        axes[1].set(xlabel="step of the student", ylabel="dev accuracy", ylim=(0.4, 1.1), xlim=(-45, 445))
        axes[1].legend(loc="lower left", fontsize=8)
        scores = ", ".join(f"{row.precision} {row.score:.3f}" for row in found.itertuples())
        axes[0].figure.set_label(f"Loss and accuracy along {schedule}, alpha {alpha}, seed {seed}: {scores}.")
        return axes

    return walk


def real_tasks(scores: Mapping[str, Mapping[str, Sequence[float]]], constant: Mapping[str, float]) -> list[Axes]:
    """Scores on real tasks, a dot a seed; the first arm of each is its teacher, a line the constant answer's score."""
    _, axes = plt.subplots(1, len(scores), figsize=(8.4, 2.8), sharey=True)
    told = []
    for ax, (task, arms) in zip(axes, scores.items()):
        bars(arms, baseline=next(iter(arms)), ylabel="dev score (stored)", ax=ax)
        ax.axhline(constant[task], color=INK, linestyle=(0, (1, 2)), linewidth=1.1, label="always the same answer")
        ax.set(title=task, ylim=(0, 1.05))
        ax.set_xticks(range(len(arms)), [fill(name, 11) for name in arms], fontsize=7)
        told.append(f"{task}: " + ", ".join(f"{name} {sum(s) / len(s):.2f}" for name, s in arms.items()))
    axes[-1].legend(loc="upper right", fontsize=8)
    axes[0].figure.set_label(f"Dev scores, means over seeds. {'; '.join(told)}. Constant answers: {dict(constant)}.")
    return list(axes)


def released(scores: Mapping[str, Sequence[float]]) -> Axes:
    """One step and two, by the loss as released and as corrected: "released one" and so on -> scores of seeds."""
    _, ax = plt.subplots(figsize=(6.4, 2.6))
    words, ticks = {"one": "one step", "landing": "at two bits", "two": "two steps"}, []
    for place, (name, seeds) in enumerate(scores.items()):
        loss, way = name.split()
        ticks.append(f"{words[way]}\n{loss}")
        ax.bar(place, mean(seeds), 0.66, color=COLORS["float" if loss == "released" else "binary"], edgecolor=INK)
        ax.plot([place] * len(seeds), seeds, "o", color=INK, markersize=3)
        ax.text(place, 0.03, f"{mean(seeds):.2f}", ha="center", fontsize=8, bbox=PAPER)
    ax.set_xticks(range(len(ticks)), ticks, fontsize=8)
    ax.set(ylabel="correlation", title="toy pairs, three stored seeds")
    ax.figure.set_label(f"Correlation: {', '.join(f'{name} {mean(seeds):.2f}' for name, seeds in scores.items())}.")
    return ax


def gradients(norms: Mapping[str, Mapping[str, float]]) -> Axes:
    """Gradient norms by part of the model, one group of bars for each way to compute the loss."""
    _, ax = plt.subplots(figsize=(6.4, 2.6))
    for place, ((name, parts), role) in enumerate(zip(norms.items(), ("float", "binary"))):
        places = [position + 0.4 * place - 0.2 for position in range(len(parts))]
        drawn = ax.bar(places, parts.values(), 0.38, color=COLORS[role], edgecolor=INK, label=name)
        ax.bar_label(drawn, fmt="%.2g", fontsize=7, padding=2)
    ax.set_xticks(range(len(parts)), parts)
    ax.set_ylabel("gradient norm")
    ax.margins(y=0.15)
    ax.legend(loc="upper left")
    told = "; ".join(f"{name}: classifier {parts['classifier']:.2g}" for name, parts in norms.items())
    ax.figure.set_label(f"Gradient norms by part of the model. {told}.")
    return ax
