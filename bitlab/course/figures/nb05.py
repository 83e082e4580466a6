"""The pictures of notebook 05, binary BERT."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from bitlab.config import BitConfig
from bitlab.convert import binarize
from bitlab.cost import summary
from bitlab.course.plots import COLORS, INK, bars

FAMILIES = {"BERT-base": "bert", "RoBERTa-base": "roberta", "ELECTRA-small": "electra", "DistilBERT": "distilbert"}


def empty(family: str) -> PreTrainedModel:
    """A model of this family in its published size: shapes without numbers, nothing is downloaded."""
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(FAMILIES[family]))


def words(latent: Tensor, binary: Tensor, names: Sequence[str], channels: int = 32) -> list[Axes]:
    """Rows of the word table, float and binary, their first channels."""
    figure, axes = plt.subplots(1, 2, figsize=(8.2, 2.5), sharey=True)
    bound = latent.detach().abs().max().item()
    for ax, matrix, title in zip(axes, (latent, binary), ("latent rows", "what the model reads")):
        drawn = ax.imshow(matrix.detach().cpu()[:, :channels], cmap="PuOr_r", vmin=-bound, vmax=bound, aspect="auto")
        ax.set(title=title, xlabel=f"channel (the first {channels} of {latent.shape[1]})")
        ax.set_yticks(range(len(names)), names)
        ax.grid(visible=False)
    figure.colorbar(drawn, ax=axes, label="value")
    figure.set_label(
        f"Heatmaps of {len(names)} word vectors: left in float, many shades; right binary, two shades a row, and every "
        "row with a strength of its own."
    )
    return list(axes)


def cost(encoder: str, precision: str, length: int) -> list[Axes]:
    """Size and operations of an encoder in float and in bits, on logarithmic axes."""
    before = summary(empty(encoder), length)
    after = summary(binarize(empty(encoder), BitConfig.from_precision(precision)), length)
    _, axes = plt.subplots(1, 2, figsize=(7, 1.9))
    panels = {"MiB (log)": (before.mib, after.mib), "GFLOPs (log)": (before.flops / 1e9, after.flops / 1e9)}
    for ax, (unit, (a, b)) in zip(axes, panels.items()):
        for place, (number, role) in enumerate(((b, "binary"), (a, "float"))):
            ax.plot([number], [place], "o", color=COLORS[role], markeredgecolor=INK, markersize=9)
            ax.annotate(f"{number:.3g}", (number, place), (9, 0), textcoords="offset points", va="center", fontsize=8)
        ax.set_yticks((0, 1), (precision, "float"))
        ax.set(xscale="log", xlabel=unit, ylim=(-0.6, 1.6), title=f"{a / b:.1f} times less")
        ax.set_xlim(min(a, b) / 3, max(a, b) * 4)
    told = f"{before.mib:.0f} MiB become {after.mib:.1f}, {before.flops / 1e9:.1f} GFLOPs {after.flops / 1e9:.2f}"
    axes[0].figure.set_label(f"{encoder} at {precision} and length {length}: {told}.")
    return list(axes)


def knows(accuracy: Mapping[str, float | list[float]], chance: float) -> Axes:
    """Accuracy of a model before and after conversion; the first is the baseline, the last the negative control."""
    _, ax = plt.subplots(figsize=(5.6, 2.9))
    first, *_, last = accuracy
    bars(accuracy, baseline=first, control=last, chance=chance, ax=ax)
    told = ", ".join(f"{name} {np.mean(score):.2f}" for name, score in accuracy.items())
    ax.figure.set_label(f"Dev accuracy: {told}; guessing {chance:.2f}.")
    return ax


def agreement(cosines: Mapping[str, Sequence[float]]) -> Axes:
    """How alike two models' hidden states are: precision by place in the model, every number written."""
    table = np.array(list(cosines.values()))
    figure, ax = plt.subplots(figsize=(6.6, 0.55 + 0.42 * len(table)))
    drawn = ax.imshow(table, vmin=0, vmax=1, aspect="auto")
    for row, line in enumerate(table):
        for column, value in enumerate(line):
            color = "white" if value > 0.55 else INK
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=color)
    ax.set_yticks(range(len(table)), cosines)
    ax.set_xticks(range(table.shape[1]), ["embedding", *range(1, table.shape[1])])
    ax.set(xlabel="after layer")
    ax.grid(visible=False)
    figure.colorbar(drawn, ax=ax, label="cosine with float")
    told = "; ".join(f"{name} from {line[0]:.2f} to {line[-1]:.2f}" for name, line in cosines.items())
    figure.set_label(f"A heatmap of cosines between hidden states of the float and the converted model: {told}.")
    return ax


def alone(live: Mapping[str, float], stored: Mapping[str, float], chance: float, metric: str) -> list[Axes]:
    """What is left where one kind of tensor alone is binary: here, untrained, and stored, after some training."""
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.3), sharey=True)
    panels = {"here, nothing trained": (live, "dev accuracy"), "stored, 120 steps on STS-B": (stored, metric)}
    for ax, (title, (scores, label)) in zip(axes, panels.items()):
        for place, score in enumerate(scores.values()):
            role = "binary" if place else "float"
            ax.barh(place, score, height=0.66, color=COLORS[role], edgecolor=INK, linewidth=0.8)
            ax.annotate(f"{score:.2f}", (score, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
        ax.set(title=title, xlabel=label, xlim=(0, 1.12))
        ax.grid(visible=False)
    axes[0].axvline(chance, color=INK, linestyle=(0, (1, 2)), linewidth=1.1)
    axes[0].set_yticks(range(len(live)), live)
    axes[0].invert_yaxis()
    sides = ("; ".join(f"{name} {score:.2f}" for name, score in side.items()) for side in (live, stored))
    figure.set_label("Bars: one kind of tensor binary, the rest float. Untrained: {}. Stored: {}.".format(*sides))
    return list(axes)
