"""What figures of several notebooks are made of: bars in rows, in groups and lying, and vectors as heatmaps."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from torch import Tensor

from bitlab.course.plots import INK, PAPER, below, note, told

CHANNELS = 32  # of a vector that are drawn


def seeds(ax: Axes, scores: Mapping[str, Sequence[float]], looks: Iterable[Mapping], form: str = ".2f") -> None:
    """Methods side by side: a bar at the mean, which stands at its foot, and a dot for each of several runs."""
    for place, (runs, look) in enumerate(zip(scores.values(), looks)):
        ax.bar(place, np.mean(runs), width=0.66, edgecolor=INK, linewidth=0.8, **look)
        if len(runs) > 1:
            ax.plot([place] * len(runs), runs, "o", color=INK, markersize=3)
        foot = {"transform": ax.get_xaxis_transform(), "ha": "center", "fontsize": 8, "bbox": PAPER}
        ax.text(place, 0.05, f"{np.mean(runs):{form}}", **foot)
    below(ax, scores)


def groups(ax: Axes, series: Mapping[str, Sequence[float]], looks: Iterable[Mapping]) -> list[BarContainer]:
    """A group of bars at every place, one of each series, which are as long as there are places."""
    wide, drawn = 0.8 / len(series), []
    for turn, ((name, values), look) in enumerate(zip(series.items(), looks)):
        places = np.arange(len(values)) + wide * (turn - (len(series) - 1) / 2)
        drawn.append(ax.bar(places, values, 0.95 * wide, label=name, **{"edgecolor": INK, "linewidth": 0.8} | look))
    return drawn


def lying(ax: Axes, numbers: Mapping[str, float], looks: Iterable[Mapping], texts: Iterable[str]) -> None:
    """Horizontal bars from zero, the first on top, with a text at the end of each."""
    for place, (number, look, text) in enumerate(zip(numbers.values(), looks, texts)):
        ax.barh(place, number, height=0.66, edgecolor=INK, linewidth=0.8, **look)
        note(ax, text, (number, place))
    ax.set_yticks(range(len(numbers)), numbers)
    ax.set(xlim=(0, 1.25 * max(numbers.values())), ylim=(len(numbers) - 0.4, -0.6))
    ax.grid(visible=False)


def side_by_side(
    panels: Mapping[str, Mapping[str, float]], looks: Sequence[Mapping], form: str = ".3g", **figure
) -> list[Axes]:
    """Lying bars of several quantities of the same names, title -> name -> number, a panel each; told as alt text."""
    drawn, axes = plt.subplots(1, len(panels), sharey=True, **figure)
    for ax, (title, numbers) in zip(axes, panels.items()):
        lying(ax, numbers, looks, [f"{number:{form}}" for number in numbers.values()])
        ax.set_title(title)
    sides = ". ".join(f"{title}: {told(numbers, form)}" for title, numbers in panels.items())
    drawn.set_label(f"Bars. {sides}.")
    return list(axes)


def channels(panels: Mapping[str, Tensor], words: Sequence[str], bound: float) -> list[Axes]:
    """The first channels of vectors, one a word, as heatmaps violet below zero and orange above."""
    figure, axes = plt.subplots(1, len(panels), figsize=(8.3, 2.6), sharey=True)
    shown = {title: vectors.detach().float().cpu()[:, :CHANNELS] for title, vectors in panels.items()}
    for ax, (title, vectors) in zip(axes, panels.items()):
        drawn = ax.imshow(shown[title], cmap="PuOr_r", vmin=-bound, vmax=bound, aspect="auto")
        ax.set(title=title, xlabel=f"channel (the first {CHANNELS} of {vectors.shape[1]})")
        ax.set_yticks(range(len(words)), words)
        ax.grid(visible=False)
    beyond = any(vectors.abs().max() > bound for vectors in shown.values())
    figure.colorbar(drawn, ax=axes, label="value", extend="both" if beyond else "neither")
    return list(axes)
