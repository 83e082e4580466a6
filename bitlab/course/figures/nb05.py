"""The pictures of notebook 05, binary BERT."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from bitlab.course.figures.nb01 import shrunk
from bitlab.course.figures.parts import channels, side_by_side
from bitlab.course.plots import COLORS, GUESSING, INK, bars, told

FAMILIES = {"BERT-base": "bert", "RoBERTa-base": "roberta", "ELECTRA-small": "electra", "DistilBERT": "distilbert"}


def empty(family: str) -> PreTrainedModel:
    """A model of this family in its published size: shapes without numbers, nothing is downloaded."""
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(FAMILIES[family]))


def words(latent: Tensor, binary: Tensor, names: Sequence[str]) -> list[Axes]:
    """Rows of the word table, float and binary, their first channels."""
    bound = latent.detach().abs().max().item()
    axes = channels({"latent rows": latent, "what the model reads": binary}, names, bound)
    axes[0].figure.set_label(
        f"Heatmaps of {len(names)} word vectors: left in float, many shades; right binary, two shades a row, and every "
        "row with a strength of its own."
    )
    return axes


def cost(encoder: str, precision: str, length: int) -> list[Axes]:
    """Size and operations of an encoder in float and in bits."""
    return shrunk(encoder, empty(encoder), precision, length)


def knows(accuracy: Mapping[str, float | list[float]], chance: float) -> Axes:
    """Accuracy of a model before and after conversion; the first is the baseline, the last the negative control."""
    _, ax = plt.subplots(figsize=(5.6, 2.9))
    first, *_, last = accuracy
    bars(accuracy, baseline=first, control=last, chance=chance, ax=ax)
    ax.figure.set_label(f"Dev accuracy: {told(accuracy)}; guessing {chance:.2f}.")
    return ax


def agreement(cosines: Mapping[str, Sequence[float]]) -> Axes:
    """How alike hidden states are: name (a precision, a control) by place in the model, every number written."""
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
    ends = "; ".join(f"{name} from {line[0]:.2f} to {line[-1]:.2f}" for name, line in cosines.items())
    figure.set_label(f"A heatmap of cosines with the hidden states of the float model: {ends}.")
    return ax


def alone(live: Mapping[str, float], stored: Mapping[str, float], chance: float, metric: str) -> list[Axes]:
    """What is left where one kind of tensor alone is binary: here, untrained, and stored, after some training."""
    looks = [{"color": COLORS["float"]}, *[{"color": COLORS["binary"]}] * len(live)]
    panels = {"here, nothing trained": live, "stored, 120 steps on STS-B": stored}
    axes = side_by_side(panels, looks, ".2f", figsize=(8.4, 3.3))
    for ax, label in zip(axes, ("dev accuracy (dotted: chance)", metric)):
        ax.set(xlabel=label, xlim=(0, 1.15))
    axes[0].axvline(chance, **GUESSING)
    axes[0].figure.set_label(f"One kind of tensor binary, the rest float. {axes[0].figure.get_label()}")
    return axes
