"""The pictures of notebook 06, distillation."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor
from torch.nn import functional as F

from bitlab.course.figures.parts import channels, seeds
from bitlab.course.plots import BESIDE, COLORS, CONTROL, DIAMOND, GUESSING, INK, LOOK, note, told


def margin(certainty: float, temperature: float) -> Axes:
    """The loss of one example against the student's margin, for a hard label and for a soft one."""
    x = torch.linspace(-6, 10, 321)
    student = torch.stack((torch.zeros_like(x), x), -1)
    goal = torch.logit(torch.tensor(certainty))
    answer = torch.stack((torch.zeros_like(x), goal.expand_as(x)), -1)
    soft = -(F.log_softmax(student / temperature, -1) * F.softmax(answer / temperature, -1)).sum(-1) * temperature**2
    _, ax = plt.subplots(figsize=(6.4, 2.6))
    ax.plot(x, F.softplus(-x), **LOOK["float"], label="hard label: positive")
    ax.plot(x, soft, **LOOK["teacher"], label=f"soft label: {certainty:.0%} positive")
    ax.plot(goal, soft.min(), "o", color=COLORS["teacher"])
    note(ax, "the teacher's margin", (goal, soft.min()), (0, 14))
    ax.set(xlabel="student's margin: logit of positive less logit of negative", ylabel="loss of one example")
    ax.set_ylim(0, max(6.0, 2 * float(soft.min())))
    ax.legend(loc="upper right")
    ax.figure.set_label(
        f"The hard label's loss falls for ever; the soft one's is lowest at the teacher's margin, {float(goal):.1f}."
    )
    return ax


def states(vectors: Mapping[str, Tensor], words: Sequence[str]) -> list[Axes]:
    """Hidden states (tokens, width) of several models as heatmaps, the first channels."""
    axes = channels(vectors, words, bound=2.5)
    axes[0].figure.set_label(f"Heatmaps of hidden states, a row a token: {', '.join(vectors)}.")
    return axes


def losses(yours: Sequence[float], theirs: Sequence[float]) -> Axes:
    """The losses of two loops, step by step: rings around dots."""
    _, ax = plt.subplots(figsize=(6.4, 2.3))
    steps = range(1, len(yours) + 1)
    ring = {"marker": "o", "markersize": 9, "markerfacecolor": "none", "linewidth": 0}
    ax.plot(steps, theirs, label="DistillationTrainer", **LOOK["teacher"] | ring)
    ax.plot(steps, yours, marker="o", markersize=3.5, label="your loop", **LOOK["binary"])
    ax.set(xlabel="step", ylabel="loss", ylim=(0, 1.1 * max(*yours, *theirs)))
    ax.set_xticks(steps[::2])
    ax.legend(**BESIDE)
    ax.figure.set_label(f"The losses of {len(yours)} steps, from {yours[0]:.2f} to {yours[-1]:.2f}, dots in rings.")
    return ax


def flips(rates: Sequence[float], shares: Mapping[str, Sequence[float]]) -> Axes:
    """Share of bits that turn in a step, against the learning rate; hollow where none turned."""
    _, ax = plt.subplots(figsize=(6.4, 2.7))
    looks = [LOOK["latent"] | {"marker": "o"}, {"color": INK, "linestyle": ":", "marker": "s"}]
    for (name, values), look in zip(shares.items(), looks):
        ax.plot(rates, values, label=name, **look)
        none = [rate for rate, share in zip(rates, values) if share == 0]
        ax.plot(none, [0] * len(none), look["marker"], color=look["color"], markerfacecolor="white")
    ax.set_xscale("log")
    ax.set_yscale("symlog", linthresh=1e-4)
    ax.set_yticks([0, 1e-4, 1e-3, 1e-2, 1e-1, 1], ["none", "0.01 %", "0.1 %", "1 %", "10 %", "all"])
    ax.set(xlabel="learning rate (log)", ylabel="bits that turn in a step", ylim=(-3e-5, 1.5))
    ax.legend(**BESIDE)
    sides = "; ".join(
        f"{name}: {', '.join(f'{share:.2%} at {rate:g}' for rate, share in zip(rates, values))}"
        for name, values in shares.items()
    )
    ax.figure.set_label(f"Share of bits that turn in a step. {sides}.")
    return ax


def ablation(
    live: Mapping[str, float],
    stored: Mapping[str, Sequence[float]],
    teacher: float,
    chance: float,
    real: Mapping[str, Sequence[float]],
    real_teacher: float,
    real_title: str,
) -> list[Axes]:
    """Every part added to those before it: a bar at the mean of all seeds, a dot a stored seed, a diamond the live one.

    Args:
        live: name -> score; names that begin with "+" or stand first are the ladder, the others stand beside it, and
            the last is the negative control.
        stored: the same names -> scores of other seeds.
        teacher, chance: scores drawn as lines.
        real, real_teacher, real_title: stored correlations of a real task, for the panel on the right.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9.4, 3.3), width_ratios=(len(live) + 0.5, len(real) + 0.6))
    first = next(iter(live))
    orange, beside = {"color": COLORS["binary"]}, {"color": COLORS["binary"], "alpha": 0.6}
    looks = [orange if name == first or name.startswith("+") else beside for name in live]
    runs = {name: [*stored.get(name, ()), score] for name, score in live.items()}
    seeds(axes[0], runs, [*looks[:-1], CONTROL])
    seeds(axes[1], real, [orange] * len(real))
    axes[0].plot(range(len(live)), list(live.values()), label="yours", **DIAMOND)
    for ax, best in zip(axes, (teacher, real_teacher)):
        ax.axhline(best, label="teacher", **LOOK["teacher"])
    axes[0].axhline(chance, label="chance", **GUESSING)
    for ax in axes:
        ax.set_ylim(0, 1.15)
    number = max(map(len, stored.values()), default=0)
    axes[0].set(title=f"sample task: means of yours and of {number} stored seeds (dots)", ylabel="dev accuracy")
    axes[0].legend(loc="upper left", ncols=3, bbox_to_anchor=(0.0, 1.0))
    axes[1].set(title=real_title, ylabel="correlation")
    sides = f"Sample task: {told(runs)}. Stored, real task: {told(real)}; its teacher {real_teacher:.2f}."
    figure.set_label(f"Bars from zero, means over seeds. {sides}")
    return list(axes)
