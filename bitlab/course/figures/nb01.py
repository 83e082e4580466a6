"""The pictures of notebook 01, why one bit."""

from collections.abc import Callable, Mapping

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from bitlab.config import BitConfig
from bitlab.convert import binarize
from bitlab.cost import Summary, summary
from bitlab.course.drawings import arrow, box
from bitlab.course.figures.parts import side_by_side
from bitlab.course.plots import COLORS, INK, LOOK, TWO, bars, note, told


def bits(x: Tensor, w: Tensor) -> Axes:
    """Two vectors of signs as rows of bits, and where they agree."""
    rows = torch.stack([x > 0, w > 0, x == w]).int()
    _, ax = plt.subplots(figsize=(5, 1.6))
    ax.imshow(rows, cmap=TWO)
    _write(ax, rows)
    agree, n = int(rows[2].sum()), x.numel()
    ax.set(xticks=[], title=f"{agree} agree, {n - agree} differ: {agree} − {n - agree} = {2 * agree - n}")
    ax.set_yticks(range(3), ["x", "w", "XNOR"])
    ax.grid(visible=False)
    ax.figure.set_label(
        f"Rows of {n} bits: x, w and their XNOR, which has {agree} ones; the product is {2 * agree - n}."
    )
    return ax


def _write(ax: Axes, numbers: Tensor) -> None:
    """Every number of a matrix into its cell."""
    for row, line in enumerate(numbers.int().tolist()):
        for column, number in enumerate(line):
            ax.text(column, row, number, ha="center", va="center", fontsize=8)


def on_paper(counts: Mapping[str, Summary]) -> list[Axes]:
    """Size by kind of number, and operations by precision, on logarithmic axes: from float (grey) to bits (orange).

    Args:
        counts: precision -> summary; the first is the float model, the last the one with the fewest bits.
    """
    first, *_, last = counts
    _, (left, right) = plt.subplots(1, 2, figsize=(7.6, 2.7), width_ratios=(1.25, 1))
    _sizes(left, counts[first], counts[last])
    parts = {"products": ("matmul_flops", "binary", "o"), "all the rest": ("elementwise_flops", "float", "s")}
    for name, (attribute, role, marker) in parts.items():
        flops = [getattr(count, attribute) / 1e9 for count in counts.values()]
        right.plot(list(counts), flops, marker=marker, markeredgecolor=INK, label=name, **LOOK[role])
        for place, number in enumerate(flops):
            note(right, f"{number:.2g}", (place, number), (0, 6))
    right.set(yscale="log", ylim=(0.03, 100), ylabel="GFLOPs (log)", title="operations, 128 tokens")
    right.set_xlim(-0.4, len(counts) - 0.6)
    right.legend()
    sizes, flops = ([getattr(counts[p], name) for p in (first, last)] for name in ("mib", "flops"))
    left.figure.set_label(
        f"Left: {first} to {last}, {sizes[0]:.0f} MiB to {sizes[1]:.1f}: weights and word embedding shrink 32 times, "
        f"the rest stays. Right: the products fall from {flops[0] / 1e9:.0f} GFLOPs 64 times, the rest stays."
    )
    return [left, right]


def _sizes(ax: Axes, floats: Summary, binary: Summary) -> None:
    """Each kind of number as two dots: what it takes as floats, and what it takes beside bits."""
    kinds = sorted((k for k in binary.kinds.values() if k.mib > 0.01), key=lambda k: k.mib)
    for place, cost in enumerate(kinds):
        before = floats.kinds[cost.kind].mib if cost.kind in floats.kinds else 0
        if before:
            ax.plot([cost.mib, before], [place, place], color="#bbbbbb", linestyle="-", linewidth=1.2, zorder=1)
            ax.plot(before, place, "s", color=COLORS["float"], markeredgecolor=INK)
        role = "binary" if cost.one_bit_parameters else "float"
        ax.plot(cost.mib, place, "o", color=COLORS[role], markeredgecolor=INK)
        note(ax, f"{cost.mib:.2g}", (cost.mib, place), (-6, 0), ha="right")
        if before > 2 * cost.mib:
            note(ax, f"{before:.3g}", (before, place), (6, 0))
    ax.set_yticks(range(len(kinds)), [cost.kind for cost in kinds])
    ax.set(xscale="log", xlim=(0.03, 2000), ylim=(-0.6, len(kinds) - 0.4), xlabel="MiB (log)")
    ax.set_title(f"size: {floats.mib:.0f} MiB to {binary.mib:.1f}")
    ax.grid(visible=False)


def cost(layers: int, width: int, length: int, precision: str) -> list[Axes]:
    """Size and operations of a BERT of this shape, in float and in bits."""
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 64}
    with torch.device("meta"):
        model = BertForSequenceClassification(
            BertConfig(**shape, intermediate_size=4 * width, max_position_embeddings=512)
        )
    return shrunk(f"{layers} layers of width {width}", model, precision, length)


def shrunk(name: str, model: PreTrainedModel, precision: str, length: int) -> list[Axes]:
    """Size and operations of a float model, which becomes one of that precision."""
    before = summary(model, length)
    after = summary(binarize(model, BitConfig.from_precision(precision)), length)
    looks = ({"color": COLORS["float"]}, {"color": COLORS["binary"]})
    panels = {"MiB": {"float": before.mib, precision: after.mib}}
    panels["GFLOPs"] = {"float": before.flops / 1e9, precision: after.flops / 1e9}
    axes = side_by_side(panels, looks, figsize=(7, 1.6))
    for ax, (unit, numbers) in zip(axes, panels.items()):
        ax.set_title(f"{unit}: {numbers['float'] / numbers[precision]:.3g} times less")
        ax.set_xlabel(f"{name}, {length} tokens")
    axes[0].figure.set_label(f"{name} at {precision} and length {length}. {axes[0].figure.get_label()}")
    return axes


def straight_through() -> Axes:
    """The graph of the straight-through estimator: forward through the step, backward around it."""
    _, ax = plt.subplots(figsize=(6.6, 2.2))
    ax.set(xlim=(0, 10), ylim=(0, 3.4))
    ax.axis("off")
    for x, text in ((0.8, "real\nw"), (4.2, "sign"), (7.3, "bit\n±1"), (9.3, "loss")):
        face = COLORS["binary"] if text.startswith("bit") else "white"
        box(ax, x, 2.2, text, 1.16, face=face)
    for begin, end in ((1.4, 3.6), (4.8, 6.7), (7.9, 8.7)):
        arrow(ax, (begin, 2.5), (end, 2.5), **LOOK["binary"])
    for begin, end in ((8.7, 7.9), (6.7, 4.8), (3.6, 2.7)):
        arrow(ax, (begin, 1.95), (end, 1.95), **LOOK["latent"])
    ax.text(2.5, 2.75, "forward", ha="center")
    ax.text(5.75, 2.1, "gradient g", ha="center", color=COLORS["latent"])
    ax.text(2.5, 1.95, "g × 0", ha="right", va="center", fontweight="bold", color=COLORS["latent"])
    arrow(ax, (7.3, 1.6), (0.8, 1.6), connectionstyle="arc3,rad=-0.17", **LOOK["latent"])
    ax.text(4.05, 0.25, "straight through: g goes around the step, as it is", ha="center", color=COLORS["latent"])
    ax.figure.set_label(
        "A graph from left to right: the real number w, its sign, the bit, the loss. Backward through sign, the "
        "gradient g would be multiplied by zero; the straight-through estimator leads it around sign, as it is."
    )
    return ax


def product_of_codes(codes: Tensor, signs: Tensor) -> list[Axes]:
    """codes (tokens, in) times signs (out, in), transposed: every entry written into its cell."""
    product = codes @ signs.T
    drawn = {"codes of x": codes, "signs of W, transposed": signs.T, "their product": product}
    figure, axes = plt.subplots(1, 3, figsize=(7.6, 3.1), width_ratios=[m.shape[1] for m in drawn.values()])
    for ax, (title, matrix) in zip(axes, drawn.items()):
        bound = product.abs().max().item()
        if matrix is product:
            ax.imshow(matrix, cmap="Greys", vmin=-bound, vmax=3 * bound)
        else:
            ax.imshow(matrix > 0, cmap=TWO)
        _write(ax, matrix)
        ax.set_title(f"{title}\n{tuple(matrix.shape)}", fontsize=9)
        ax.axis("off")
    for ax, mark in zip(axes, "·="):
        note(ax, mark, (1, 0.5), (14, 0), xycoords="axes fraction", va="center", fontsize=16)
    least, most = int(product.min()), int(product.max())
    figure.set_label(f"Two matrices of plus and minus ones, and their product: whole numbers from {least} to {most}.")
    return list(axes)


def attention_row(words: list[str], rows: Mapping[str, Tensor]) -> list[Axes]:
    """One row of attention, in float first and then in bits: how much one word looks at every word."""
    _, axes = plt.subplots(1, len(rows), figsize=(6.6, 2.3), sharey=True)
    for place, (ax, (name, row)) in enumerate(zip(axes, rows.items())):
        color = COLORS["binary" if place else "float"]
        ax.bar(range(len(row)), row.detach().cpu(), width=0.65, color=color, edgecolor=INK, linewidth=0.7)
        ax.set_title(name)
        ax.set_xticks(range(len(words)), words, rotation=60)
    axes[0].set_ylabel("attention")
    heights = [f"{name}, {len(set(row.tolist()))} different heights" for name, row in rows.items()]
    axes[0].figure.set_label(f"A row of attention as bars, one a word: {'; '.join(heights)}.")
    return list(axes)


PLACES = ("linear layers", "queries, keys, values", "probabilities")
SIGNS = {  # which of the places hold signs, by the names of the scores
    "signs in the linear layers": (0,),
    "signs everywhere, untrained": (0, 1, 2),
    "signs everywhere": (0, 1, 2),
    "all but the probabilities": (0, 1),
    "all but q, k, v (control)": (0, 2),
    "only the probabilities": (2,),
}


def blame(scores: Mapping[str, float], chance: float) -> Axes:
    """Who breaks the model: the first score is the baseline, those whose names end in "(control)" are hatched.

    Below each bar stand its signs, as filled circles; a bar without training is left white.
    """
    _, ax = plt.subplots(figsize=(8.6, 3.4))
    bars(scores, baseline=next(iter(scores)), chance=chance, ax=ax)
    for bar, name in zip(ax.patches, scores):
        if name.endswith("untrained"):
            bar.set(facecolor="white", edgecolor=COLORS["binary"], linewidth=1.6)
    for row, place in enumerate(PLACES):
        height = {"y": -0.08 - 0.075 * row, "transform": ax.get_xaxis_transform(), "va": "center", "clip_on": False}
        ax.text(-0.75, s=place, ha="right", fontsize=8, **height)
        for column, name in enumerate(scores):
            signs = row in SIGNS.get(name, ())
            alike = row == 2 and name.startswith("all words alike")
            mark, color = ("=", INK) if alike else ("●", COLORS["binary"]) if signs else ("○", "#bbbbbb")
            ax.text(column, s=mark, ha="center", color=color, fontsize=11, **height)
    ax.tick_params(axis="x", pad=46, length=0)
    ax.set_xlim(-0.6, len(scores) - 0.4)
    ax.figure.set_label(f"Dev accuracy: {told(scores)}; guessing {chance:.2f}.")
    return ax


def readers(models: Mapping[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase) -> Callable[..., list[Axes]]:
    """A picture for two sentences: how positive each model finds them. The first model is the float one."""

    @torch.no_grad()
    def read(sentence: str, another: str) -> list[Axes]:
        figure, axes = plt.subplots(2, 1, figsize=(6, 3.6), sharex=True)
        for ax, text in zip(axes, (sentence, another)):
            tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=64)
            for place, model in enumerate(models.values()):
                positive = model.eval()(**tokens.to(model.device)).logits.softmax(-1)[0, 1].item()
                ax.barh(place, positive - 0.5, left=0.5, color=COLORS["binary" if place else "float"], edgecolor=INK)
            ax.axvline(0.5, color=INK, linewidth=0.8)
            ax.set_yticks(range(len(models)), list(models))
            ax.set_title(tokenizer.decode(tokens["input_ids"][0, 1:-1])[:56] or "(nothing)", parse_math=False)
            ax.invert_yaxis()
        axes[1].set(xlim=(0, 1), xlabel="probability of a positive sentence")
        figure.set_label("How positive each model finds two sentences, as bars to the left or right of one half.")
        return list(axes)

    return read
