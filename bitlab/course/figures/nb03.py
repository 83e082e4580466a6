"""The pictures of notebook 03, elastic activation."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor

from bitlab.binarizers import levels
from bitlab.course import plots
from bitlab.course.figures.parts import seeds
from bitlab.course.plots import COLORS, INK, LOOK
from bitlab.course.probes import readable

SETS = {"{-a, +a}": (1, True), "{0, a}": (1, False), "2 bits, signed": (2, True), "2 bits, unsigned": (2, False)}


def staircases(step: Callable[..., Tensor]) -> list[Axes]:
    """`step(x, alpha, bits, signed)` at alpha = 1, for one and two bits and both sets."""
    _, axes = plt.subplots(1, 4, figsize=(8, 2.2), sharey=True)
    x, alpha = torch.linspace(-3, 4, 1401), torch.tensor(1.0)
    for ax, (title, (bits, signed)) in zip(axes, SETS.items()):
        ax.plot(x, x, **LOOK["float"] | {"linewidth": 1.0}, label="x")
        ax.plot(x, step(x, alpha, bits, signed), **LOOK["binary"], label="binarized")
        ax.set(title=title, xlabel="x / alpha", ylim=(-3, 4))
    axes[0].set_ylabel("y / alpha")
    axes[0].legend(loc="upper left")
    axes[0].figure.set_label("Four staircases around the line y = x: two steps for one bit, four for two bits.")
    return list(axes)


def ramp(bits: int, signed: bool, low: float, high: float, step: Callable[..., Tensor]) -> list[Axes]:
    """The step, and the ramp that takes its place on the way back; below them, their slopes."""
    x = torch.linspace(-2, 2.5, 901)
    _, axes = plt.subplots(1, 2, figsize=(6.6, 2.3))
    axes[0].plot(x, step(x, torch.tensor(1.0), bits, signed), **LOOK["binary"], label="forward: the step")
    axes[0].plot(x, x.clamp(low, high), **LOOK["latent"], label="backward: the ramp")
    axes[1].plot(x, 0 * x, **LOOK["binary"], label="slope of the step")
    axes[1].plot(x, ((x >= low) & (x <= high)).float(), **LOOK["latent"], label="slope of the ramp")
    axes[0].set(xlabel="x / alpha", ylim=(low - 0.2, high + 0.9), title="what is computed")
    axes[1].set(xlabel="x / alpha", ylim=(-0.1, 1.9), title="what x is told")
    for ax in axes:
        ax.legend(loc="upper left")
    axes[0].figure.set_label(
        "Left: a step and a ramp between its levels. Right: the step's slope is 0, the ramp's 1 inside."
    )
    return list(axes)


def slopes(x: Tensor, true: Mapping[str, Tensor], yours: Mapping[str, Tensor]) -> list[Axes]:
    """How y answers to alpha, at every x: as autograd has it, and as the backward says.

    An arrow at each border that moves with alpha is the spike that autograd leaves out, as long as its area.
    """
    _, axes = plt.subplots(1, len(true), figsize=(8, 2.5), sharey=True)
    arrow = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0}
    for ax, name in zip(axes, true):
        ax.plot(x, true[name], **LOOK["binary"], label="autograd")
        ax.plot(x, yours[name], **LOOK["latent"], label="your backward")
        low, high = levels(*SETS[name])
        for border in () if SETS[name] == (1, True) else np.arange(low, high) + 0.5:
            ax.annotate("", (border, 0), (border, border), arrowprops=arrow)
        ax.set(xlabel="x / alpha", title=name)
    axes[0].set(ylabel="dy / d alpha", ylim=(-2.4, 4.6))
    axes[0].legend(loc="upper left")
    axes[0].figure.set_label(
        "Slope of y in alpha. For signs both lines agree. Else autograd's steps rise at every border, from which an "
        "arrow points back to zero, and the backward is a saw around zero inside."
    )
    return list(axes)


def walks(paths: Mapping[str, Mapping[float, Sequence[float]]], best: Mapping[str, float]) -> list[Axes]:
    """Alpha over steps from several multiples of the usual start, and the best value."""
    _, axes = plt.subplots(1, len(paths), figsize=(7, 2.4))
    for ax, (name, several) in zip(axes, paths.items()):
        for factor, path in several.items():
            ax.plot(path, color=COLORS["binary"], linestyle="-", linewidth=1.3)
            plots.note(ax, f"{factor:g}", (0, path[0]), (-9, -3))
        ax.axhline(best[name], color=INK, linestyle=plots.MARKS["beta"], label=f"best: {best[name]:.2f}")
        ax.set(xlabel="step", ylabel="alpha", title=name, xlim=(-14, None), ylim=(0, None))
        ax.legend(loc="upper right")
    last = {name: [path[-1] for path in several.values()] for name, several in paths.items()}
    ends = "; ".join(f"{name} from {min(of):.2f} to {max(of):.2f}" for name, of in last.items())
    axes[0].figure.set_label(f"Alpha over steps from four starts. It ends: {ends}.")
    return list(axes)


HALVES = ("heights a tenth, fixed", "fence a tenth, fixed")  # what the control does at once, stored


def arms(live: Mapping[str, float], stored: Mapping[str, Mapping[str, Sequence[float]]], chance: float) -> list[Axes]:
    """Trainings whose scales learn or do not: bars are means over seeds, dots stored seeds, diamonds live.

    Args:
        live: name -> score; the one called control is hatched, and so are its `HALVES`.
        stored: "120 steps" (the live ones' names and `HALVES`) and "360 steps" (others) -> name -> scores of seeds, or
            empty.
        chance: the score of guessing.
    """
    soon, late = stored.get("120 steps", {}), stored.get("360 steps", {})
    early = {name: [*soon.get(name, ()), score] for name, score in live.items()}
    early |= {name: soon[name] for name in HALVES if name in soon}
    figure, axes = plt.subplots(1, 2, figsize=(9.8, 3.1), sharey=True, width_ratios=(len(early), max(1, len(late))))
    for ax, side in zip(axes, (early, late)):
        controls = [name for name in side if "control" in name or name in HALVES]
        looks = [plots.CONTROL if name in controls else {"color": COLORS["binary"]} for name in side]
        seeds(ax, side, looks)
        ax.axhline(chance, label="chance", **plots.GUESSING)
        ax.set_ylim(0, 1.15)
    axes[0].plot(range(len(live)), list(live.values()), label="yours", **plots.DIAMOND)
    axes[0].set(title="120 steps", ylabel="dev accuracy")
    axes[0].legend(loc="upper left", ncols=2, title="bars: means of all, dots: stored seeds", title_fontsize=8)
    axes[1].set_title("360 steps, stored")
    sides = f"120 steps: {plots.told(early)}. 360 steps: {plots.told(late)}."
    figure.set_label(f"Dev accuracy, means over seeds. {sides}")
    return list(axes)


def one_flip(weights: Tensor, flips: Tensor) -> tuple[int, int, int]:
    """(out, in, moment) of a weight whose bit jumps once, about half-way; of those, the one that travels furthest.

    Args:
        weights: (moments, out, in). flips: (moments - 1, out, in), whether a bit jumped on the way to the next moment.
    """
    when, moments = flips.float().argmax(dim=0), len(flips)
    candidates = (flips.sum(dim=0) == 1) & ((when - moments // 2).abs() < moments // 6)
    out, into = divmod(((weights[-1] - weights[0]).abs() * candidates).argmax().item(), weights.shape[-1])
    return out, into, when[out, into].item() + 1


def watched(
    alphas: Mapping[str, Tensor], thresholds: Tensor, weight: Tensor, middle: Tensor, bit: Tensor, every: int = 1
) -> list[Axes]:
    """Three things while a model learns: scales, thresholds, and one latent weight with its bit.

    Args:
        alphas: binarizer -> (moments, 1), as multiples of a good start.
        thresholds: (moments, channels), drawn are the five that went furthest.
        weight, middle, bit: (moments,), a latent weight, the mean of its matrix, and what the model multiplied with.
        every: steps between two moments.
    """
    _, axes = plt.subplots(1, 3, figsize=(8.6, 2.7), width_ratios=(1.25, 1, 1.1))
    looks, steps = (LOOK["latent"], LOOK["float"], LOOK["binary"], LOOK["teacher"]), every * torch.arange(len(weight))
    for (name, history), look in zip(alphas.items(), looks):
        axes[0].plot(steps, history.flatten(), **look, label=readable(name).removeprefix("layer 0 "))
    axes[0].axhline(1, color=INK, linewidth=0.8, linestyle=plots.MARKS["alpha"])
    axes[0].set(yscale="log", ylim=(0.05, 8), ylabel="alpha / good start", title="scales")
    axes[0].legend(loc="upper left", ncols=2, fontsize=7, columnspacing=0.8)
    far = (thresholds[-1] - thresholds[0]).abs().topk(5).indices
    axes[1].plot(steps, thresholds[:, far], color=COLORS["latent"], linestyle="-", linewidth=1.1)
    axes[1].set(ylabel="beta", title="five thresholds")
    axes[2].plot(steps, weight, **LOOK["latent"], label="latent weight")
    axes[2].plot(steps, middle, color=INK, linewidth=0.8, linestyle=plots.MARKS["alpha"], label="mean of W")
    axes[2].plot(steps, bit, **LOOK["binary"], label="its bit")
    low, high = float(min(weight.min(), bit.min())), float(max(weight.max(), bit.max()))
    axes[2].set(title="one weight", ylim=(low - 0.1 * (high - low), high + 0.6 * (high - low)))
    axes[2].legend(loc="upper left", fontsize=7)
    for ax in axes:
        ax.set_xlabel("step")
    ends = plots.told({readable(name): history[-1] for name, history in alphas.items()})
    axes[0].figure.set_label(
        f"Scales end at so many times a good start: {ends}. Thresholds leave zero. A latent weight drifts slowly "
        f"across the mean of its matrix, and its bit jumps once."
    )
    return list(axes)
