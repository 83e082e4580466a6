"""The pictures of notebook 02, two-set binarization."""

from collections.abc import Callable, Mapping, Sequence

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor

from bitlab.binarizers import elastic
from bitlab.course import plots
from bitlab.course.figures.nb01 import attention_row
from bitlab.course.figures.parts import groups, seeds
from bitlab.course.plots import COLORS, INK, LOOK

__all__ = ["attention_row", "error_curves", "errors", "histograms", "sets_compared", "tensor_and_error"]

SETS = {True: "{−a, +a}", False: "{0, a}"}


def histograms(tensors: Mapping[str, Tensor]) -> list[Axes]:
    """Four tensors, and the shares of the two levels that sign would give them."""
    _, axes = plt.subplots(2, 2, figsize=(6.4, 4.2))
    for ax, (name, x) in zip(axes.flat, tensors.items()):
        plots.histogram(x, elastic(x, x.abs().mean()), ax=ax).set(title=name, xlabel="", ylabel="")
        ax.get_legend().remove()
    for ax in axes[:, 0]:
        ax.set_ylabel("density")
    for ax in axes[1]:
        ax.set_xlabel("value")
    axes[0, 0].legend(loc="upper left")
    plus = plots.told({name: (x >= 0).float() for name, x in tensors.items()}, ".0%")
    axes[0, 0].figure.set_label(f"Histograms of four tensors and of their signs; share of signs that are plus: {plus}.")
    return list(axes.flat)


def relative_error(x: Tensor, y: Tensor) -> float:
    """Squared error as a share of x's squares."""
    return ((x - y).square().sum() / x.square().sum()).item()


def error_curves(tensors: Mapping[str, Tensor], best: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> list[Axes]:
    """The error of bits against their scale, one panel a set; a dot marks where BiT starts."""
    _, axes = plt.subplots(1, 2, figsize=(6.8, 2.7), sharey=True)
    ratios, looks = torch.linspace(0.05, 2.5, 80), (LOOK["latent"], LOOK["float"])
    for ax, (signed, title) in zip(axes, SETS.items()):
        names = [name for name, x in tensors.items() if bool(x.min() < 0) == signed]
        for name, look in zip(names, looks):
            x, scale = tensors[name], best[name]
            ax.plot(
                ratios, [relative_error(x, elastic(x, r * scale, signed=signed)) for r in ratios], **look, label=name
            )
            error = relative_error(x, elastic(x, start[name], signed=signed))
            label = "BiT's start" if name == names[-1] else "_"
            ax.plot(start[name] / scale, error, "o", color=COLORS["binary"], markeredgecolor=INK, label=label)
            if not signed:
                of, place = ("4/T", (-22, -5)) if name.startswith("attention") else ("ReLU", (6, -11))
                ax.annotate(of, (start[name] / scale, error), place, textcoords="offset points", fontsize=7.5)
        ax.axvline(1, ymax=0.6, color=INK, linewidth=0.8, linestyle=plots.MARKS["alpha"])
        ax.set(title=title, xlabel="scale / best scale", ylim=(0, 1.7))
        ax.legend(loc="upper center", fontsize=7.5)
    axes[0].set_ylabel("relative error")
    starts = plots.told({name: start[name] / best[name] for name in tensors})
    axes[0].figure.set_label(
        f"Error against scale, lowest at the best scale; BiT starts at so many times it: {starts}."
    )
    return list(axes)


SIGNS = {"facecolor": "#fcdcab"}  # a paler orange, where {0, a} has the full one


def errors(found: Mapping[str, Mapping[str, float]]) -> Axes:
    """What one bit loses of four tensors: tensor -> method -> relative error."""
    _, ax = plt.subplots(figsize=(6.2, 2.6))
    by_method = {method: [of[method] for of in found.values()] for method in next(iter(found.values()))}
    groups(ax, by_method, (SIGNS, {"color": COLORS["binary"]}, plots.CONTROL))
    ax.axhline(1, color=INK, linewidth=0.8, linestyle=plots.MARKS["alpha"], label="all zeros")
    ax.set(title="what one bit loses of a tensor", ylabel="relative error", ylim=(0, 2.3))
    ax.set_xticks(range(len(found)), [name.replace(" ", "\n") for name in found])
    ax.legend(loc="upper left", ncols=4, columnspacing=0.8, handlelength=1.4)
    smallest = "; ".join(f"{name} {min(of, key=of.get)}" for name, of in found.items())
    ax.figure.set_label(f"Error of four tensors by set; the smallest: {smallest}.")
    return ax


def sets_compared(live: Mapping[str, float], stored: Mapping[str, Sequence[float]], chance: float) -> Axes:
    """What a model still knows whose probabilities became bits: means over teachers, dots stored, diamonds live.

    Args:
        live: name -> score; the first is the float model's.
        stored: the same names -> scores of other teachers, or empty.
        chance: the score of guessing.
    """
    _, ax = plt.subplots(figsize=(7.4, 2.9))
    found = {name: [*stored.get(name, ()), score] for name, score in live.items()}
    looks = [{"color": COLORS["binary"]} for _ in found]
    looks[0], looks[1:3], looks[-1] = {"color": COLORS["float"]}, (SIGNS, SIGNS), plots.CONTROL
    seeds(ax, found, looks)
    ax.plot(range(len(live)), list(live.values()), label="your teacher", **plots.DIAMOND)
    ax.axhline(chance, label="chance", **plots.GUESSING)
    ax.set(ylabel="dev accuracy", ylim=(0, 1.1))
    ax.legend(
        loc="upper right",
        ncols=2,
        bbox_to_anchor=(1, 1.32),
        title="bars: means of all, dots: stored teachers",
        title_fontsize=8,
    )
    ax.figure.set_label(f"Dev accuracy with the probabilities in one bit, means over teachers: {plots.told(found)}.")
    return ax


def tensor_and_error(
    tensors: Mapping[str, Tensor], best: Callable[[Tensor, bool], Tensor]
) -> Callable[..., list[Axes]]:
    """A picture for a tensor, a set and a scale: where the levels stand, and the place on the error curve."""

    def draw(tensor: str, signed: bool, scale: float) -> list[Axes]:
        x = tensors[tensor]
        alpha = best(x, signed)
        y = elastic(x, scale * alpha, signed=signed)
        _, axes = plt.subplots(1, 2, figsize=(7, 2.6))
        plots.histogram(x, y, alpha=scale * alpha, ax=axes[0]).set_title(f"{tensor}, {SETS[signed]}")
        ratios = torch.linspace(0.1, 3, 50)
        axes[1].plot(
            ratios, [relative_error(x, elastic(x, r * alpha, signed=signed)) for r in ratios], **LOOK["latent"]
        )
        axes[1].plot(scale, relative_error(x, y), "o", color=COLORS["binary"], markeredgecolor=INK)
        axes[1].set(xlabel="scale / best scale", ylabel="relative error", ylim=(0, 2))
        axes[1].set_title(f"error {relative_error(x, y):.3f}")
        axes[0].figure.set_label(f"{tensor} and its two levels, beside the error as a function of the scale.")
        return list(axes)

    return draw
