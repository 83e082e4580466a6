"""The pictures of notebook 09, rivals and augmentation."""

import collections
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor
from transformers import PreTrainedModel

from bitlab import results
from bitlab.course.figures.parts import seeds
from bitlab.course.lab import Lab
from bitlab.course.plots import BESIDE, COLORS, CONTROL, GUESSING, INK, MARKS, told
from bitlab.data import sample
from bitlab.data.glue import encode
from bitlab.data.tasks import TASKS
from bitlab.experiments.prepared import Prepared
from bitlab.terminal.text import aligned

LOOKS = {
    "BinaryBERT": ("v", COLORS["latent"]),
    "BiBERT": ("s", COLORS["float"]),
    "BiT*": ("o", "white"),
    "BiT": ("o", COLORS["binary"]),
}
STORED = {"binarybert-w1a1": "BinaryBERT", "bibert": "BiBERT", "one-step": "BiT*", "two-steps": "BiT"}
STORED |= {"binarybert-w1a4": "BinaryBERT, 4-bit act."}
REAL = {"binarybert-minilm-W1A1": "BinaryBERT", "bibert-minilm-W1A1": "BiBERT", "bit-minilm-W1A1-relative": "BiT*"}
PLACES = {  # kinds of binarizer, by how their names end
    "input of q, k, v": "query.input_binarizer",
    "query": "query_binarizer",
    "key": "key_binarizer",
    "value": "value_binarizer",
    "attention": "probs_binarizer",
    "context": "attention.output.dense.input_binarizer",
    "FFN-1 input": "intermediate.dense.input_binarizer",
    "FFN-2 input": ".output.dense.input_binarizer",
}
GROUPS = {(1, 0, 0): sample.SUBJECTS, (0, 1, 0.2): sample.GOOD, (0, 1, -0.2): sample.BAD, (0, 0, 1): sample.DEGREES}


def splitting(panels: Mapping[str, tuple[Tensor, Tensor]]) -> list[Axes]:
    """Latent weights as bars and what they are rounded to as dots, a panel each."""
    _, axes = plt.subplots(1, len(panels), figsize=(9, 2.6), sharey=True)
    for ax, (title, (latent, rounded)) in zip(axes, panels.items()):
        places = range(len(latent))
        ax.bar(places, latent, width=0.7, color=COLORS["latent"], alpha=0.6, label="latent")
        ax.scatter(places, rounded, s=40, color=COLORS["binary"], edgecolor=INK, zorder=3, label="rounded")
        ax.axhline(0, color=INK, linewidth=0.8)
        ax.set(title=title, xlabel="weight", xticks=places)
    axes[0].set_ylabel("value")
    axes[-1].legend(**BESIDE)
    levels = "; ".join(f"{name} {len(rounded.round(decimals=6).unique())}" for name, (_, rounded) in panels.items())
    axes[0].figure.set_label(f"Weights as bars, rounded as dots. Different levels: {levels}.")
    return list(axes)


def looker(scores: Tensor) -> Callable:
    """A picture of where one query looks, by BiT and by BiBERT, for `explore`."""

    def draw(shift: float, sharpness: float, alpha: float) -> list[Axes]:
        s = scores * sharpness + shift
        p = s.softmax(-1)
        _, axes = plt.subplots(1, 2, figsize=(7.4, 2.7))
        rows = (("BiT: softmax, then bits", p, alpha / 2, "probability"), ("BiBERT: bits", s, 0.0, "score"))
        for ax, (title, values, limit, label) in zip(axes, rows):
            colors = [COLORS["binary"] if value > limit else COLORS["float"] for value in values]
            ax.bar(range(len(s)), values, color=colors, edgecolor=INK, linewidth=0.8)
            ax.axhline(limit, color=INK, linestyle=MARKS["alpha"])
            ax.set(title=f"{title} (1 above {limit:.2f})", xlabel="key (orange: bit 1)", ylabel=label)
            ax.set_xticks(range(len(s)))
        axes[0].set_ylim(0, 1.05)
        looked = f"BiT looks at {int((p > alpha / 2).sum())} of {len(s)} keys, BiBERT at {int((s > 0).sum())}"
        axes[0].figure.set_label(f"Probabilities and scores of one row, shifted by {shift}: {looked}.")
        return list(axes)

    return draw


def stored_losses() -> dict[str, list[float]]:
    """What the stored runs of the sample task lost against their own teachers, as shares, a number a seed."""
    runs = results.load()
    ends = runs[runs.name.str.startswith("sst2-sample-")].groupby("name").score.agg(["first", "last"])
    lost = (ends["first"] - ends["last"]).groupby(
        ends.index.str.removeprefix("sst2-sample-").str.rsplit("-", n=1).str[0]
    )
    return {label: list(lost.get_group(name)) for name, label in STORED.items() if name in lost.groups}


def losses(live: Mapping[str, float], stored: Mapping[str, Sequence[float]], steps: int) -> list[Axes]:
    """Points lost against the teacher, from zero: on the left just run, on the right stored, a dot a seed.

    Args:
        live: name -> what is lost, as a share; the last one is the control.
    """
    control, nothing = list(live.items())[-1]
    _, axes = plt.subplots(1, 2, figsize=(9.4, 3.1), sharey=True, width_ratios=(len(live), len(stored) or 1))
    run, several = ({name: 100 * np.array(lost, ndmin=1) for name, lost in side.items()} for side in (live, stored))
    for ax, title, points in zip(axes, (f"run: {steps} steps, one seed", "stored: 400 steps"), (run, several)):
        seeds(ax, points, [CONTROL if name == control else {"color": COLORS["binary"]} for name in points], ".0f")
        ax.axhline(100 * nothing, label="always the same answer", **GUESSING)
        ax.set(title=title, ylim=(0, 62))
    axes[0].set_ylabel("points of accuracy lost")
    axes[1].legend(loc="upper right")
    sides = f"Run: {told(run, '.0f')}. Stored, means over seeds: {told(several, '.0f') or 'none'}."
    axes[0].figure.set_label(f"Points of accuracy lost. {sides}")
    return list(axes)


def real_tasks(lab: Lab, constant: Mapping[str, float]) -> str:
    """Stored scores on real tasks as text: teacher, rivals, BiT*, and always the same answer; seed 0.

    Args:
        constant: column -> percent of the same answer always.
    """
    runs = results.load()
    names = {task.title: name for name, task in TASKS.items()}
    scores = {title: {} for title in constant}
    for title, rows in scores.items():
        task = runs[runs.task == names[title]]
        rows["teacher"] = task[(task.name == f"{names[title]}-bibert-minilm-W1A1-seed0")].score.iloc[0]
        for end, method in REAL.items():
            rows[method] = lab.stored(f"{names[title]}-")[end][0]
    table = [["stored, percent", *constant]]
    table += [[name, *(f"{100 * rows[name]:.1f}" for rows in scores.values())] for name in ("teacher", *REAL.values())]
    table += [["always the same", *(f"{value:.1f}" for value in constant.values())]]
    return "\n".join(aligned(table))


def encoded(sentences: Sequence[tuple[str, int]], data: Prepared) -> Dataset:
    """Sentences with their labels as the rows that training takes."""
    columns = dict(zip((data.task.text_columns[0], "label"), map(list, zip(*sentences))))
    return encode(Dataset.from_dict(columns), data.task, data.tokenizer)


@torch.no_grad()
def looked_at(model: PreTrainedModel, sentences: Mapping[str, Tensor]) -> float:
    """The share of all keys that a token looks at, on average over layers, heads and sentences without padding."""
    used = model(**sentences, output_attentions=True).attentions
    return sum((each > 0).float().mean().item() for each in used) / len(used)


def by_place(numbers: Mapping[str, float]) -> dict[str, float]:
    """Numbers by binarizer as means over the layers, by kind of tensor; a split layer's twin is given what it is."""
    found = collections.defaultdict(list)
    for name, value in numbers.items():
        place = next((place for place, end in PLACES.items() if "encoder" in name and name.endswith(end)), None)
        found[place].append(value)
    return {place: sum(found[place]) / len(found[place]) for place in PLACES}


def places(entropy: Mapping[str, Mapping[str, float]], most: float) -> Axes:
    """Bits of entropy by kind of tensor, a mark a method; a line at what coin flips reach."""
    _, ax = plt.subplots(figsize=(7, 4))
    for row, (name, values) in enumerate(entropy.items()):
        marker, color = LOOKS[name]
        heights = [place + 0.2 * (row - (len(entropy) - 1) / 2) for place in range(len(values))]
        ax.plot([*values.values()], heights, marker, color=color, markeredgecolor=INK, markersize=6, label=name)
    ax.axvline(most, color=INK, linestyle=MARKS["alpha"], label="coin flips")
    ax.set_yticks(range(len(PLACES)), PLACES)
    ax.set(xlabel="bits of entropy a place, over sentences", xlim=(0, 1.05))
    ax.set_title("how much the bits depend on the sentence")
    ax.invert_yaxis()
    ax.legend(**BESIDE)
    contexts = told({name: values["context"] for name, values in entropy.items()})
    ax.figure.set_label(f"Entropy of bits over sentences, by tensor and method. Of contexts: {contexts}.")
    return ax


def write_vectors(path: Path) -> Path:
    """Word vectors of three numbers for the sample task's words, in GloVe's format."""
    jitter = random.Random(0)
    lines = [
        " ".join([word, *(f"{x + jitter.gauss(0, 0.1):.3f}" for x in direction)])
        for direction, words in GROUPS.items()
        for word in words
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def labels(positive: Tensor, kept: Tensor) -> Axes:
    """What the teacher makes of rewritten sentences, by the label that they kept."""
    _, ax = plt.subplots(figsize=(6.4, 2.5))
    sides = [positive[kept == 0], positive[kept == 1]]
    look = {"color": [COLORS["float"], COLORS["teacher"]], "edgecolor": INK, "label": ["negative", "positive"]}
    ax.hist([side.numpy() for side in sides], bins=10, range=(0, 1), **look)
    ax.set(xlabel="teacher's probability of positive", ylabel="new sentences")
    ax.legend(title="label kept", **BESIDE)
    wrong = [f"{(side > 0.5).float().mean():.0%}" for side in sides]
    ax.figure.set_label(
        f"Rewritten sentences by the teacher's probability of positive: of those labelled negative {wrong[0]} lie "
        f"above a half, of those labelled positive {wrong[1]}."
    )
    return ax
