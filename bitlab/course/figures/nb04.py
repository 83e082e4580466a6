"""The pictures of notebook 04, binary attention."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitlab.course.drawings import TO_BITS, arrow, box
from bitlab.course.plots import BESIDE, COLORS, INK, LOOK, MARKS, TWO, heatmap, told
from bitlab.course.probes import record


def flow() -> Axes:
    """What runs through one binary head: floats on grey arrows, bits on orange ones, whole numbers on dashed blue."""
    _, ax = plt.subplots(figsize=(8.2, 3.0))
    ax.set(xlim=(0, 16.4), ylim=(0, 6))
    ax.axis("off")
    part = partial(box, ax, wide=1.32, high=1.02)
    for y, name in ((5, "q"), (3.4, "k"), (1, "v")):
        part(0.7, y, name)
        part(3.1, y, "sign", **TO_BITS)
        arrow(ax, (1.3, y), (2.4, y), **LOOK["float"])
    part(5.7, 4.2, "Q · Kᵀ")
    part(8.3, 4.2, "scale,\nmask,\nsoftmax", high=2.3)
    part(11.1, 4.2, "p > α/2", **TO_BITS)
    part(13.2, 2.2, "P · V")
    part(15.6, 2.2, "scale")
    for begin, end in (((3.8, 5), (5.0, 4.5)), ((3.8, 3.4), (5.0, 3.9)), ((3.8, 1), (12.5, 2.0))):
        arrow(ax, begin, end, **LOOK["binary"])
    arrow(ax, (11.5, 3.6), (13.0, 2.8), **LOOK["binary"])
    arrow(ax, (6.4, 4.2), (7.5, 4.2), **LOOK["latent"])
    arrow(ax, (13.9, 2.2), (14.9, 2.2), **LOOK["latent"])
    arrow(ax, (9.1, 4.2), (10.3, 4.2), **LOOK["float"])
    for x, y, text in ((3.1, 5.75, "{−1, +1}"), (6.9, 4.75, "whole\nnumbers"), (11.1, 5.0, "{0, 1}")):
        ax.text(x, y, text, ha="center", fontsize=8)
    for role, text in (("binary", "bits"), ("latent", "whole numbers"), ("float", "floats")):
        ax.plot([], [], **LOOK[role], label=text)
    ax.legend(loc="lower right", ncols=3, bbox_to_anchor=(1.0, -0.04))
    ax.figure.set_label(
        "One binary head from left to right: query, key and value become signs; the product of signs is whole numbers; "
        "scale, mask and softmax are floats; a threshold makes zeros and ones of them; these choose value vectors."
    )
    return ax


def barcodes(codes: Mapping[str, Tensor], words: Sequence[str]) -> list[Axes]:
    """Codes of one head (tokens, width) as bar codes, one picture a name."""
    _, axes = plt.subplots(1, len(codes), figsize=(8.2, 2.6), sharey=True)
    for ax, (name, matrix) in zip(axes, codes.items()):
        ax.imshow(matrix.detach().cpu() > 0, cmap=TWO, aspect="auto", interpolation="nearest")
        ax.set(title=name, xlabel="channel")
        ax.set_yticks(range(len(words)), words)
        ax.grid(visible=False)
    axes[0].figure.set_label(f"{', '.join(codes)} of one head as bar codes: a row a token, orange for +1.")
    return list(axes)


def scores(integers: Tensor, width: int) -> Axes:
    """How often each whole number appears among the scores, on the axis of all that are possible."""
    values, counts = integers.detach().int().cpu().unique(return_counts=True)
    _, ax = plt.subplots(figsize=(6.6, 2.3))
    ax.bar(values, counts, width=1.5, color=COLORS["binary"], edgecolor=INK, linewidth=0.5)
    ax.set(xlim=(-width - 3, width + 3), xlabel="score before the scales", ylabel="how often")
    ax.set_title(f"{values.numel()} of {width + 1} possible scores")
    ax.figure.set_label(
        f"Histogram of whole-numbered scores: {values.numel()} different ones, all even, between {int(values.min())} "
        f"and {int(values.max())}; possible are those from {-width} to {width}."
    )
    return ax


def row(words: Sequence[str], probs: Tensor, limit: float, title: str) -> Axes:
    """One row of attention probabilities; what lies above the limit is orange and becomes a one."""
    _, ax = plt.subplots(figsize=(6.6, 2.5))
    probs = probs.detach().cpu()
    colors = [COLORS["binary"] if p > limit else "white" for p in probs]
    ax.bar(range(len(words)), probs, color=colors, edgecolor=INK, linewidth=0.8)
    ax.axhline(limit, color=INK, linestyle=MARKS["alpha"], label=f"half of alpha: {limit:.3f}")
    for place, p in enumerate(probs):  # the bits stand in a line of their own, above
        ax.text(place, 1.02, int(p > limit), transform=ax.get_xaxis_transform(), ha="center", fontsize=9)
    ax.set_title(title, pad=18)
    ax.text(-1.0, 1.02, "bit", transform=ax.get_xaxis_transform(), ha="right", fontsize=9)
    ax.set_xticks(range(len(words)), words, rotation=45, ha="right")
    ax.set(ylabel="probability", ylim=(0, None))
    ax.legend()
    ax.figure.set_label(
        f"One row of attention over {len(words)} tokens: {int((probs > limit).sum())} bars reach above half of alpha, "
        "are orange and become ones; the others become zeros."
    )
    return ax


def heads(
    teacher: PreTrainedModel, student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Callable[[str, int, int], list[Axes]]:
    """A picture for a sentence, a layer and a head: the teacher's attention, the student's, and its bits."""

    @torch.no_grad()
    def draw(sentence: str, layer: int = 0, head: int = 0) -> list[Axes]:
        tokens = tokenizer(sentence, return_tensors="pt", truncation=True, max_length=64).to(student.device)
        words = tokenizer.convert_ids_to_tokens(tokens["input_ids"][0])
        soft = teacher(**tokens, output_attentions=True).attentions[layer][0, head]
        with record(student, names="probs_binarizer", keep=True) as seen:
            used = student(**tokens, output_attentions=True).attentions[layer][0, head]
        probs = list(seen.values())[layer][-1].tensor[0, head]
        figure, axes = plt.subplots(1, 3, figsize=(8.6, 3.4), layout="none")
        figure.subplots_adjust(left=0.09, right=0.99, bottom=0.23, top=0.84, wspace=0.1)  # measuring takes longer
        shown = {f"teacher, layer {layer}, head {head}": soft, "student": probs, "student's bits": (used > 0).float()}
        most = max(soft.max().item(), probs.max().item())
        for ax, (title, matrix), black in zip(axes, shown.items(), (most, most, 1.0)):
            heatmap(matrix, words if len(words) <= 24 else None, limit=black, ax=ax)
            ax.set_title(f"{title}\nblack: {black:.2g}", fontsize=9)
        for ax in axes[1:]:
            ax.set(ylabel="", yticks=[])
        figure.set_label(
            f"Layer {layer}, head {head}, {len(words)} tokens, three heatmaps: soft in the teacher, sharper in the "
            f"student, and the student's zeros and {int((used > 0).sum())} ones."
        )
        return list(axes)

    return draw


@torch.no_grad()
def rows(model: PreTrainedModel, sentences: Mapping[str, Tensor]) -> Tensor:
    """The rows of attention of all real tokens, layers and heads: (rows, keys)."""
    real = sentences["attention_mask"].bool()
    found = model(**sentences, output_attentions=True).attentions
    return torch.cat([used.transpose(1, 2)[real].flatten(0, 1) for used in found])


def widths(entropies: Mapping[str, Tensor]) -> Axes:
    """How many keys a row looks at, 2 to the power of its entropy: the middle half of the rows, and the median."""
    _, ax = plt.subplots(figsize=(6.6, 2.2))
    line = {"color": COLORS["binary"], "linewidth": 2.5}
    keys = {name: (2**bits).cpu() for name, bits in entropies.items()}
    ax.boxplot(keys.values(), orientation="horizontal", tick_labels=list(keys), showfliers=False, medianprops=line)
    ax.invert_yaxis()
    ax.set(xlabel="keys that a row looks at", xlim=(0, None))
    medians = told({name: value.median() for name, value in keys.items()}, ".1f")
    ax.figure.set_label(f"Box plots of how many keys a row of attention looks at. Medians: {medians}.")
    return ax


def padding(amounts: Sequence[int], moved: Mapping[str, Sequence[float]]) -> Axes:
    """How far padding moves the logits, in standard deviations over sentences; the first is the float baseline."""
    looks = [
        LOOK["teacher"] | {"marker": "o", "markersize": 9, "markerfacecolor": "none"},
        LOOK["binary"] | {"marker": "s", "markersize": 4},
        {"color": INK, "linewidth": 1.2, "marker": "^", "markersize": 5, "linestyle": "--"},
        {"color": INK, "linewidth": 1.2, "marker": "v", "markersize": 5, "linestyle": ":"},
    ]
    _, ax = plt.subplots(figsize=(7.2, 2.8))
    for (name, values), look in zip(moved.items(), looks):
        ax.plot(amounts, values, **look, label=name)
    ax.set_xscale("symlog", base=2, linthresh=1)
    ax.set_xticks(amounts, amounts)
    ax.set(xlabel="padding tokens appended", ylabel="change of the logits\n(1: one sentence to another)")
    ax.set_ylim(-0.05, None)
    ax.legend(**BESIDE)
    most = told({name: max(values) for name, values in moved.items()})
    ax.figure.set_label(f"Largest change of the logits when padding is appended, in standard deviations: {most}.")
    return ax
