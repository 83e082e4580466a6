"""The pictures of notebook 06, distillation."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor
from torch.nn import functional as F

from bitlab.course.plots import COLORS, INK, LOOK


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
    ax.annotate(
        "the teacher's margin", (goal, soft.min()), (0, 14), textcoords="offset points", ha="center", fontsize=8
    )
    ax.set(xlabel="student's margin: logit of positive less logit of negative", ylabel="loss of one example")
    ax.set_ylim(0, max(6.0, 2 * float(soft.min())))
    ax.legend(loc="upper right")
    ax.figure.set_label(
        f"The hard label's loss falls for ever; the soft one's is lowest at the teacher's margin, {float(goal):.1f}."
    )
    return ax


def states(vectors: Mapping[str, Tensor], words: Sequence[str], channels: int = 32) -> list[Axes]:
    """Hidden states (tokens, width) of several models as heatmaps, the first channels."""
    figure, axes = plt.subplots(1, len(vectors), figsize=(8.4, 2.6), sharey=True)
    for ax, (name, matrix) in zip(axes, vectors.items()):
        shades = matrix.detach().float().cpu()[:, :channels]
        drawn = ax.imshow(shades, cmap="PuOr_r", vmin=-2.5, vmax=2.5, aspect="auto")
        ax.set(title=name, xlabel=f"channel (first {channels})")
        ax.set_yticks(range(len(words)), words)
        ax.grid(visible=False)
    figure.colorbar(drawn, ax=axes, label="value", extend="both")
    figure.set_label(f"Heatmaps of hidden states, a row a token: {', '.join(vectors)}.")
    return list(axes)


def padding(lengths: Sequence[int], losses: Mapping[str, Sequence[float]]) -> Axes:
    """By how much a loss changes as a batch is padded further; the first is over real tokens, the second careless."""
    _, ax = plt.subplots(figsize=(6.4, 2.3))
    for (name, values), role in zip(losses.items(), ("binary", "float")):
        change = [100 * (value / values[0] - 1) for value in values]
        ax.plot(lengths, change, marker="o", markersize=4, label=name, **LOOK[role])
    ax.set(xlabel="length that the batch is padded to", ylabel="change of the term, %")
    ax.margins(x=0.05, y=0.15)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    told = "; ".join(f"{name} from {values[0]:.2f} to {values[-1]:.2f}" for name, values in losses.items())
    ax.figure.set_label(f"The hidden-state term of one batch, padded further and further: {told}.")
    return ax


def losses(yours: Sequence[float], theirs: Sequence[float]) -> Axes:
    """The losses of two loops, step by step: rings around dots."""
    _, ax = plt.subplots(figsize=(6.4, 2.3))
    steps = range(1, len(yours) + 1)
    ring = {"marker": "o", "markersize": 9, "markerfacecolor": "none", "linewidth": 0}
    ax.plot(steps, theirs, label="DistillationTrainer", **LOOK["teacher"] | ring)
    ax.plot(steps, yours, marker="o", markersize=3.5, label="your loop", **LOOK["binary"])
    ax.set(xlabel="step", ylabel="loss", ylim=(0, 1.1 * max(*yours, *theirs)))
    ax.set_xticks(steps[::2])
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    ax.figure.set_label(f"The losses of {len(yours)} steps, from {yours[0]:.2f} to {yours[-1]:.2f}, dots in rings.")
    return ax


def flips(rates: Sequence[float], shares: Mapping[str, Sequence[float]]) -> Axes:
    """Share of bits that turn in a step, against the learning rate; hollow where none turned."""
    _, ax = plt.subplots(figsize=(6.4, 2.7))
    looks = [LOOK["latent"] | {"marker": "o"}, {"color": INK, "linestyle": ":", "marker": "s"}]
    for (name, values), look in zip(shares.items(), looks):
        ax.plot(rates, values, label=name, **look)
        none = [(rate, share) for rate, share in zip(rates, values) if share == 0]
        ax.plot(
            [r for r, _ in none], [s for _, s in none], look["marker"], color=look["color"], markerfacecolor="white"
        )
    ax.set_xscale("log")
    ax.set_yscale("symlog", linthresh=1e-4)
    ax.set_yticks([0, 1e-4, 1e-3, 1e-2, 1e-1, 1], ["none", "0.01 %", "0.1 %", "1 %", "10 %", "all"])
    ax.set(xlabel="learning rate (log)", ylabel="bits that turn in a step", ylim=(-3e-5, 1.5))
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    told = "; ".join(
        f"{name}: {', '.join(f'{share:.2%} at {rate:g}' for rate, share in zip(rates, values))}"
        for name, values in shares.items()
    )
    ax.figure.set_label(f"Share of bits that turn in a step. {told}.")
    return ax


def ablation(
    live: Mapping[str, float],
    stored: Mapping[str, Sequence[float]],
    teacher: float,
    chance: float,
    real: Mapping[str, Sequence[float]],
    real_title: str,
) -> list[Axes]:
    """Every part added to those before it: a bar at the mean of all seeds, a dot a stored seed, a diamond the live one.

    Args:
        live: name -> score; names that begin with "+" or stand first are the ladder, the others stand beside it, and
            the last is the negative control.
        stored: the same names -> scores of other seeds.
        teacher, chance: scores drawn as lines.
        real, real_title: stored correlations of a real task, for the panel on the right.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9.4, 3.3), width_ratios=(len(live) + 0.5, len(real) + 0.6))
    first, *_, control = live
    ladder = [name for name in live if name == first or name.startswith("+")]
    places = {name: place + (name not in ladder) * 0.5 for place, name in enumerate(live)}
    for name, score in live.items():
        look = {"facecolor": "white", "hatch": "////"} if name == control else {"color": COLORS["binary"]}
        look |= {} if name in ladder else {"alpha": 0.6}
        _bar(axes[0], places[name], [*stored.get(name, ()), score], look)
        diamond = {"color": "white", "markeredgecolor": INK, "markersize": 5}
        axes[0].plot(places[name], score, "D", label="yours" if name == first else "_", **diamond)
    for place, scores in enumerate(real.values()):
        _bar(axes[1], place, scores, {"color": COLORS["binary"]})
    axes[0].axhline(teacher, label="teacher", **LOOK["teacher"])
    axes[0].axhline(chance, color=INK, linestyle=(0, (1, 2)), linewidth=1.1, label="chance")
    axes[0].set_xticks([*places.values()], [_broken(name) for name in live], fontsize=8)
    axes[1].set_xticks(range(len(real)), [*real])
    for ax in axes:
        ax.set_ylim(0, 1.15)
    seeds = max(map(len, stored.values()), default=0)
    axes[0].set(title=f"sample task: yours, and {seeds} stored seeds", ylabel="dev accuracy")
    axes[0].legend(loc="upper left", ncols=3, bbox_to_anchor=(0.0, 1.0))
    axes[1].set(title=real_title, ylabel="correlation")
    means = {name: np.mean([*stored.get(name, ()), score]) for name, score in live.items()}
    sides = ("; ".join(f"{name} {np.mean(score):.2f}" for name, score in side.items()) for side in (means, real))
    figure.set_label("Bars from zero, means over seeds. Sample task: {}. Stored, real task: {}.".format(*sides))
    return list(axes)


def _broken(name: str) -> str:
    """A name over several lines, so that it fits below a bar."""
    return name.replace("+ ", "+").replace(" ", "\n")


def _bar(ax: Axes, place: int, scores: Sequence[float], look: dict) -> None:
    ax.bar(place, np.mean(scores), width=0.66, edgecolor=INK, linewidth=0.8, **look)
    ax.plot([place] * len(scores), scores, "o", color=INK, markersize=3)
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    ax.text(place, 0.06, f"{np.mean(scores):.2f}", ha="center", fontsize=8, bbox=paper)
