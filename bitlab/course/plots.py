"""The figures of the series: one style, fixed colours and line styles; helpers take `ax=None`, return axes.

    float     grey, dash-dotted      latent     dark blue, dashed
    binary    orange, solid          teacher    green, dotted

The four differ in lightness and in line style, so that they survive greyscale and colour blindness. End a
plotting cell with `show(ax, alt="what the picture says")`; figures that only call `plt.show()` get an alt
text made of their titles and labels.
"""

from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from textwrap import fill

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from bitlab.binarizers import elastic

LOOK = {
    "float": {"color": "#858585", "linestyle": "-."},
    "latent": {"color": "#152C6B", "linestyle": "--"},
    "binary": {"color": "#F9A63A", "linestyle": "-"},
    "teacher": {"color": "#13795B", "linestyle": ":"},
}
COLORS = {role: look["color"] for role, look in LOOK.items()}
TWO = ListedColormap(["white", COLORS["binary"]])  # for images of bits
PALE = "#fbc681"  # what stands beside the binary one
INK = "#222222"
PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.5}  # under a label that lines may cross
MARKS = {"alpha": (0, (1, 2)), "beta": (0, (5, 2))}
BESIDE = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}  # a legend to the right of its axes
CONTROL = {"facecolor": "white", "hatch": "////"}  # a bar of what must not work
DIAMOND = {"marker": "D", "color": "white", "markeredgecolor": INK, "markersize": 5, "linestyle": ""}  # a run of yours
GUESSING = {"color": INK, "linestyle": (0, (1, 2)), "linewidth": 1.1}  # a line at what guessing scores


def use_style() -> None:
    """Apply the style sheet, and give figures an alt text where they are shown in a notebook."""
    plt.style.use("bitlab.course.style")
    # The inline backend sets its own formatter when it loads, so it is loaded before ours is set.
    plt.switch_backend(plt.get_backend())
    try:
        from IPython import get_ipython
    except ModuleNotFoundError:
        return
    if shell := get_ipython():
        png = shell.display_formatter.formatters["image/png"]
        png.for_type(Figure, lambda figure: (picture(figure), {"alt": describe(figure)}))


def picture(figure: Figure) -> bytes:
    """A figure as PNG, drawn once; `savefig` draws twice, which sliders feel."""
    with BytesIO() as file:
        FigureCanvasAgg(figure).print_png(file)
        return file.getvalue()


def show(drawn, alt: str = "") -> None:
    """Show a figure and tell what is in it to those who cannot see it.

    Args:
        drawn: a figure, axes, or an array of axes.
        alt: one or two sentences with what the picture shows; if empty, those that whoever drew it has set as the
            figure's label, else titles, labels and legend.
    """
    if alt:
        figure_of(drawn).set_label(alt)
    plt.show()


def describe(figure: Figure) -> str:
    """The alt text of a figure: what `show` was given, else its titles, axis labels and legends."""
    parts = []
    for ax in figure.axes:
        legend = ", ".join(label for label in ax.get_legend_handles_labels()[1])
        named = {
            "": ax.get_title(loc="left") or ax.get_title(),
            "x: ": ax.get_xlabel(),
            "y: ": ax.get_ylabel(),
        }
        parts.append("; ".join(key + text for key, text in {**named, "shows: ": legend}.items() if text))
    return " ".join((figure.get_label() or "Figure. " + ". ".join(part for part in parts if part)).split())


def figure_of(drawn) -> Figure | None:
    """The figure of a figure, of axes, or of an array of axes; None of anything else."""
    artist = next(iter(np.ravel(np.asarray(drawn, dtype=object))), None)
    return artist.figure if isinstance(artist, (Figure, Axes)) else None


def histogram(before, after=None, alpha=None, beta=None, ax: Axes | None = None) -> Axes:
    """The distribution of a tensor before binarization, and the levels and shares after it.

    Args:
        before: real values, any shape (tensor or array).
        after: the same values binarized, any shape; drawn as one stem a level, with its share of the entries.
        alpha: the scale, marked at +-alpha (at alpha for a set without negative levels).
        beta: the threshold, a number or one a channel: the median is marked, the 5 % to 95 % range shaded.
    """
    ax = ax or plt.subplots()[1]
    values = _array(before)
    density, edges = np.histogram(values, bins=60, density=True)
    # one outline instead of 60 bars: it draws faster, and sliders feel it
    ax.stairs(density, edges, fill=True, color=COLORS["latent"], alpha=0.6, label="before")
    top, signed = density.max(), True
    if after is not None:
        levels, counts = np.unique(_array(after).round(6), return_counts=True)
        heights, signed = 1.1 * top * counts / counts.max(), levels.min() < 0
        width = 0.025 * (edges[-1] - edges[0])
        ax.bar(levels, heights, width, color=COLORS["binary"], edgecolor=INK, linewidth=0.7, label="after")
        for level, height, count in zip(levels, heights, counts) if levels.size <= 3 else ():
            note(ax, f"{count / values.size:.0%}", (level, height), (0, 2), bbox=PAPER)
    if beta is not None:
        low, middle, high = np.percentile(_array(beta), [5, 50, 95])
        ax.axvspan(low, high, ymax=0.68, color=INK, alpha=0.12, linewidth=0)
        _mark(ax, [middle], MARKS["beta"], f"beta = {middle:.2g}")
    if alpha is not None:
        scale = _array(alpha).item()
        _mark(ax, [-scale, scale] if signed else [scale], MARKS["alpha"], f"alpha = {scale:.2g}")
    ax.set(xlabel="value", ylabel="density", ylim=(0, 1.75 * top))  # the upper third is the legend's
    ax.legend(loc="upper center", ncols=2, columnspacing=1.2, handlelength=1.6)
    return ax


def _mark(ax: Axes, places: Sequence[float], linestyle, label: str) -> None:
    """Vertical lines, up to where the legend begins, with one legend entry."""
    for place in places:
        ax.axvline(place, ymax=0.68, color=INK, linestyle=linestyle, linewidth=1.1, label=label)
        label = "_"


def step_and_surrogate(bits: int = 1, signed: bool = True, alpha=1.0, beta=0.0, ax: Axes | None = None) -> Axes:
    """The forward step `elastic(x - beta, alpha)` and the surrogate gradient that training sees instead of
    its own.

    Both come from `bitlab.binarizers.elastic`: the gradient is what autograd returns for x.
    """
    ax = ax or plt.subplots()[1]
    alpha, beta = (torch.as_tensor(value).detach().float().mean() for value in (alpha, beta))
    reach = float(alpha) * max(2.0, 2 ** (bits - 1) + 1 if signed else 2**bits + 0.5)
    x = torch.linspace(-reach, reach, 2001).add(beta).requires_grad_()
    y = elastic(x - beta, alpha, bits, signed)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    x, y = x.detach(), y.detach()
    ax.plot(x, y, **LOOK["binary"], label="forward")
    ax.plot(x, gradient, **LOOK["latent"], label="surrogate gradient")
    ax.axvline(float(beta), color="#bbbbbb", linewidth=0.8, zorder=0)
    bottom, top = min(float(y.min()), 0), max(float(y.max()), 1)
    ax.set(xlabel="x", ylabel="value", ylim=(bottom - 0.1 * (top - bottom), top + 0.45 * (top - bottom)))
    ax.locator_params(axis="x", nbins=5)
    ax.legend(loc="upper center", ncols=2, columnspacing=1.2, handlelength=1.6)
    return ax


def pair(before, alpha, beta=None, bits: int = 1, signed: bool = True) -> np.ndarray:
    """The standard pair: the histogram before and after, beside the forward step and its surrogate gradient.

    Args:
        before: activations (..., channels), a tensor.
        alpha, beta, bits, signed: the binarizer; beta is (channels,), a number, or None for no threshold.
    Returns:
        The two axes.
    """
    _, axes = plt.subplots(1, 2)
    threshold = 0.0 if beta is None else beta
    with torch.no_grad():
        after = elastic(before - threshold, torch.as_tensor(alpha), bits, signed)
    histogram(before, after, alpha, beta, ax=axes[0]).set_title("before and after")
    step_and_surrogate(bits, signed, alpha, threshold, ax=axes[1]).set_title("step and surrogate")
    return axes


def heatmap(matrix, tokens: Sequence[str] | None = None, limit=None, ax: Axes | None = None) -> Axes:
    """An attention matrix (queries, keys): darker is more; `limit` is the value drawn black (the largest if
    None).

    tokens label both axes; without them, the axes count positions.
    """
    ax = ax or plt.subplots(figsize=(3.2, 3.0))[1]
    values = torch.as_tensor(matrix).detach().float().cpu().numpy()
    ax.imshow(values, vmin=min(0.0, float(values.min())), vmax=limit or float(values.max()) or 1.0)
    ax.grid(visible=False)
    ax.set(xlabel="key (looked at)", ylabel="query (looking)")
    if tokens is not None:
        ax.set_xticks(range(len(tokens)), tokens, rotation=90)
        ax.set_yticks(range(len(tokens)), tokens)
    return ax


def bars(
    scores: Mapping[str, float | Sequence[float]],
    baseline: str | None = None,
    control: str | None = None,
    chance: float | None = None,
    ylabel: str = "dev accuracy",
    ax: Axes | None = None,
) -> Axes:
    """Methods side by side: a bar at the mean, a whisker from lowest to highest, and a dot for each run.

    Args:
        scores: name -> one number, or one a seed.
        baseline: the name drawn in the float colour (what is to be reached).
        control: the name drawn hatched (what must not work), as are all that end in "(control)".
        chance: the score of guessing, drawn as a line.
    """
    ax = ax or plt.subplots()[1]
    for position, (name, runs) in enumerate(scores.items()):
        runs = np.atleast_1d(_array(runs))
        look = {"color": COLORS["float" if name == baseline else "binary"]}
        look = CONTROL if name == control or name.endswith("(control)") else look
        ax.bar(position, runs.mean(), width=0.62, edgecolor=INK, linewidth=0.8, **look)
        if runs.size > 1:
            # the mean of equal numbers may be rounded past them
            spread = [[max(0.0, runs.mean() - runs.min())], [max(0.0, runs.max() - runs.mean())]]
            ax.errorbar(position, runs.mean(), spread, color=INK, capsize=4, linewidth=1.2)
            ax.scatter(np.full(runs.size, position), runs, s=9, color=INK, zorder=3)
        text = f"{runs.mean():.3g}" if abs(runs.mean()) >= 1 else f"{runs.mean():.3f}".replace("0.", ".", 1)
        note(ax, text, (position, runs.max()), (0, 4), bbox=PAPER)
    if chance is not None:
        ax.axhline(chance, label="chance", **GUESSING)
        ax.legend(loc="upper right", bbox_to_anchor=(1, 1.16))
    below(ax, scores)
    ax.set_ylabel(ylabel)
    ax.margins(y=0.12)
    return ax


def curves(
    series: Mapping[str, Sequence[float]],
    roles: Mapping[str, str] | None = None,
    xlabel: str = "step",
    ylabel: str = "loss",
    ax: Axes | None = None,
) -> Axes:
    """Lines over training: name -> values, or name -> (steps, values).

    roles: name -> "float", "latent", "binary" or "teacher", for lines that stand for one of these.
    """
    ax = ax or plt.subplots()[1]
    for name, values in series.items():
        x, y = values if isinstance(values, tuple) else (range(len(values)), values)
        ax.plot(_array(x), _array(y), label=name, **(LOOK[roles[name]] if roles and name in roles else {}))
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.legend()
    return ax


def note(ax: Axes, text: str, at: tuple[float, float], away: tuple[float, float] = (4, 0), **look) -> None:
    """Write beside a point, or above it; `away` from it in points, to the right and up."""
    side = {"ha": "center"} if away[1] else {"va": "center"}
    ax.annotate(text, at, away, textcoords="offset points", **{"fontsize": 8} | side | look)


def below(ax: Axes, names: Iterable[str]) -> None:
    """Names under bars, over several lines."""
    broken = [fill(name, 12, break_long_words=False) for name in names]
    ax.set_xticks(range(len(broken)), broken)


def told(numbers: Mapping[str, float | Sequence[float]], form: str = ".2f") -> str:
    """ "float 0.91; sign 0.52": numbers, or the means of several, as an alt text says them."""
    return "; ".join(f"{name} {np.mean(_array(number)):{form}}" for name, number in numbers.items())


def _array(values) -> np.ndarray:
    """Flat float array of a tensor, an array, a number or a sequence, from any device."""
    if isinstance(values, torch.Tensor):
        values = values.detach().float().cpu().numpy()
    return np.asarray(list(values) if isinstance(values, range) else values, dtype=float).ravel()


class Page:
    """What is shown rich where that can be, as HTML or Markdown, and as text elsewhere."""

    def __init__(self, rich: str, text: str, kind: str = "html"):
        self.forms = {f"text/{kind}": rich, "text/plain": text}

    def _repr_mimebundle_(self, **_) -> dict[str, str]:
        return self.forms
