"""The pictures of notebook 08, packed inference, and the stored measurements that two of them show."""

import copy
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor
from transformers import BertConfig, BertModel

from bitlab import results
from bitlab.bench.packed import ENCODERS
from bitlab.course.figures.parts import lying, side_by_side
from bitlab.course.plots import COLORS, CONTROL, GUESSING, INK, LOOK, MARKS, told
from bitlab.files import read_json
from bitlab.packed.bits import pack_bits, unpack_bits
from bitlab.packed.layers import PackedLinear
from bitlab.terminal.text import aligned

OURS = "packed"  # how the names of our contenders begin
OTHERS = "#cfcfcf"  # bars of other engines


def threshold(linear: PackedLinear, binarizer, turns: Tensor) -> Callable[[int], Axes]:
    """For `explore`: a channel's line over the integers, its beta, and the integer from which on its bit is 1.

    Args:
        linear: a packed layer of one input scale. binarizer: of its output, one bit, signed.
        turns: (outputs,), what the reader found.
    """

    def draw(channel: int) -> Axes:
        turn = int(turns[channel])
        middle = min(max(turn, 24 - linear.in_features), linear.in_features - 24)
        dots = torch.arange(middle - 24, middle + 25, 2)  # the sums that there are
        y = (linear.bias[channel] + linear.scale() * dots).detach()
        beta = float(binarizer.beta[channel].detach())
        _, ax = plt.subplots(figsize=(5.4, 2.7))
        ax.plot(dots, y, **LOOK["latent"], label="bias + scale · sum")
        faces = [COLORS["binary"] if dot >= turn else "white" for dot in dots]
        ax.scatter(dots, y, s=14, c=faces, edgecolors=INK, linewidths=0.6, zorder=3)
        ax.axhline(beta, color=INK, linestyle=MARKS["beta"], linewidth=1, label="beta")
        if abs(turn) <= linear.in_features:
            ax.axvline(turn - 1, **LOOK["binary"], label=f"bit = 1 from sum = {turn} on")
        ax.set(xlabel="sum of signs (an integer)", ylabel="value before the sign", title=f"query channel {channel}")
        ax.legend(fontsize=8, loc="upper left")
        ax.figure.set_label(f"Query channel {channel}: a line that crosses beta; the bit is 1 from {turn} on.")
        return ax

    return draw


@torch.no_grad()
def positive(model, inputs: Mapping[str, Tensor]) -> Tensor:
    """Probabilities of the second class."""
    return model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.softmax(-1)[:, 1]


def damage(
    flipped: Callable, healthy: Tensor, packed, hundred: Mapping[str, Tensor], tokenizer
) -> Callable[[str, str, int, int], list[Axes]]:
    """For `explore`: what some flipped weight bits do to one sentence, and to a hundred.

    Args:
        flipped: (layer, bits, seed) -> a damaged copy of the model.
        healthy: what the packed model itself says of the hundred.
    """

    def draw(sentence: str, layer: str, bits: int, seed: int) -> list[Axes]:
        damaged, linear = flipped(layer, bits, seed), packed.get_submodule(layer)
        size = linear.in_features * linear.out_features
        one = tokenizer(sentence, return_tensors="pt", truncation=True, max_length=64)
        answers, after = [positive(model, one).item() for model in (packed, damaged)], positive(damaged, hundred)
        kept = (after > 0.5) == (healthy > 0.5)
        _, axes = plt.subplots(1, 2, figsize=(7.4, 2.9), width_ratios=(4, 3))
        looks, said = ({"color": COLORS["binary"]}, CONTROL), dict(zip(("undamaged", "damaged"), answers))
        lying(axes[0], said, looks, [f"{answer:.2f}" for answer in answers])
        title = f"{min(bits, size):,} of {size:,} bits flipped"
        axes[0].set(title=title, xlim=(0, 1.15), xlabel="probability of positive")
        axes[1].axline((0, 0), slope=1, color=INK, linewidth=0.7, zorder=0)
        faces = [COLORS["binary"] if same else "white" for same in kept]
        axes[1].scatter(healthy, after, s=18, c=faces, edgecolors=INK, linewidths=0.6)
        both = f"{int(kept.sum())} of {len(kept)} answers kept"
        axes[1].set(title=both, xlabel="undamaged", ylabel="damaged", ylim=(-0.04, 1.04))
        axes[0].figure.set_label(f"Flipped bits move {answers[0]:.2f} to {answers[1]:.2f}; {both}.")
        return list(axes)

    return draw


def flip(packed, layer: str, bits: int, seed: int):
    """A copy of a packed model with so many weight bits of a layer, drawn by the seed, turned over."""
    model = copy.deepcopy(packed)
    linear = model.get_submodule(layer)
    signs = unpack_bits(linear.weight, linear.in_features)
    places = torch.randperm(signs.numel(), generator=torch.Generator().manual_seed(seed))[:bits]
    signs.view(-1)[places] ^= True
    linear.weight.copy_(pack_bits(signs))
    return model


def size(parts: Mapping[str, float], whole: float) -> Axes:
    """What a packed model is made of, MiB by kind, on one bar; `whole` is the float model's."""
    _, ax = plt.subplots(figsize=(7, 1.6))
    left, shades = 0.0, (COLORS["binary"], "#fbd29b", "#b9b9b9", COLORS["float"])
    for (name, mib), shade in zip(parts.items(), shades):
        ax.barh(0, mib, left=left, color=shade, edgecolor=INK, label=f"{name}: {mib:.2f}")
        left += mib
    ax.axvline(13.4, label="printed in the papers: 13.4", **GUESSING)
    ax.set(yticks=[], xlabel=f"MiB, {left:.1f} in all; in float {whole:.1f}", ylim=(-0.5, 0.5))
    ax.legend(fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    ax.figure.set_label(
        f"BERT-base in bits, one bar in MiB: {told(parts)}; the papers print 13.4, float has {whole:.0f}."
    )
    return ax


def roofline(
    points: Mapping[str, Sequence[tuple[int, float, float]]], limits: Mapping[str, float], bandwidth: float
) -> Axes:
    """Speed against work for each byte, both on logarithmic axes, under the roofs of the processor.

    Args:
        points: contender -> (tokens, multiply-adds a byte, multiply-adds a second).
        limits: name -> multiply-adds a second in registers alone. bandwidth: bytes a second.
    """
    _, ax = plt.subplots(figsize=(7.4, 3.9))
    looks = {"torch float32": ("float", "o"), "your C loop": ("latent", "s"), "bitlab": ("binary", "D")}
    reach = np.geomspace(0.1, 1000.0, 200)
    for (name, limit), line in zip(limits.items(), ("-.", ":", "-")):
        ax.plot(reach, np.minimum(reach * bandwidth, limit) / 1e9, color="#999999", linestyle=line, linewidth=1.3)
        ax.text(reach[-1], limit / 1e9 * 1.12, f"{name}, in registers", ha="right", fontsize=8, color="#555555")
    told_limits = {0.35: f"waits for its weights,\n{bandwidth / 1e9:.0f} GB a second", 150: "waits for arithmetic"}
    for place, text in told_limits.items():
        ax.text(place, 0.11 * bandwidth / 1e9, text, fontsize=8, color="#555555", style="italic")
    for name, measured in points.items():
        role, marker = looks[name]
        xs, ys = [p[1] for p in measured], [p[2] / 1e9 for p in measured]
        look = {"marker": marker, "color": COLORS[role], "markeredgecolor": INK, "markersize": 7}
        ax.plot(xs, ys, linestyle="-", linewidth=0.8, label=name, **look)
        for (tokens, _, _), x, y in zip(measured, xs, ys):
            left = name == "bitlab"  # its points lie beside the C loop's
            look = {"xytext": (-7, 3), "ha": "right"} if left else {"xytext": (6, -9)}
            ax.annotate(str(tokens), (x, y), textcoords="offset points", fontsize=7.5, **look)
    ax.set(xscale="log", yscale="log", xlim=reach[[0, -1]])
    ax.set_xlabel("multiply-adds for each byte that is read or written (log)")
    ax.set_ylabel("billion multiply-adds\na second (log)")
    ax.legend(fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    speeds = {name: {f"{tokens} tokens": speed / 1e9 for tokens, _, speed in of} for name, of in points.items()}
    sides = ". ".join(f"{name}: {told(of, '.1f')}" for name, of in speeds.items())
    ax.figure.set_label(f"A roofline of one linear layer, billion multiply-adds a second. {sides}.")
    return ax


def milliseconds(rows: Sequence[Mapping], title: str, ax: Axes | None = None) -> Axes:
    """Contenders of one bench, the last row on top: a bar from zero each, with its factor against float32."""
    ax = ax or plt.subplots(figsize=(7, 0.7 + 0.3 * len(rows)))[1]
    looks, texts, times = [], [], {}
    for row in reversed(rows):
        name, time = row["contender"], row["seconds"] * 1e3
        face = COLORS["binary"] if name.startswith(OURS) else COLORS["float"] if name == "float32" else OTHERS
        looks.append(CONTROL if name == "fake-quant" else {"color": face})
        texts.append(f"{time:.1f} ms" + ("" if name == "float32" else f", {row['ratio']:.1f} times"))
        times[_name(name)] = time
    lying(ax, times, looks, texts)
    ax.set(title=title, xlabel="milliseconds", xlim=(0, 1.3 * max(times.values())))
    ax.figure.set_label(f"{title}, bars of milliseconds: {told(times, '.1f')}.")
    return ax


def _name(contender: str) -> str:
    """ "packed, c, W1A4" -> "ours, W1A4"."""
    named = {"packed, c": "ours, W1A1", "packed, int8": "ours, no compiler", "fake-quant": "bits kept in floats"}
    return named.get(contender, contender.replace("packed, c,", "ours,"))


def like_minilm() -> BertModel:
    """An encoder of MiniLM's shape with random weights, as `bitlab bench` measures it."""
    width, heads, inner = ENCODERS["minilm"]
    shape = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": inner, "num_hidden_layers": 6}
    return BertModel(BertConfig(vocab_size=1000, **shape), add_pooling_layer=False).eval()


def stored_speeds(what: str) -> dict[str, list[dict]]:
    """Stored benches of an encoder with engines beside ours, on one thread: a title that names the processor -> rows.

    Args:
        what: how the bench names it, "12 layers, length 128, batch 1".
    """
    found = {}
    for path in sorted((results.SHIPPED / "speed").glob("*.json")):
        bench = read_json(path) or {}
        alone = bench.get("machine", {}).get("threads") == 1
        rows = [row for row in bench.get("rows", ()) if alone and row.get("what") == what]
        if any("int8" in row["contender"] and not row["contender"].startswith(OURS) for row in rows):
            found[f"{rows[0]['processor'].split(' (')[0]} ({bench['kernel']['name']}), {what}"] = rows
    return found


def factors(live: Sequence[Mapping]) -> str:
    """One bit against float32 as text: this run, and what is stored; with multiply-adds of products a second.

    Args:
        live: rows of this run's bench of MiniLM's shape, 6 layers, 128 tokens.
    """
    benches = [("minilm", 6, "this run", live)]
    for shape, layers, end in (("minilm", 6, ", minilm"), ("base", 12, "")):
        stored = stored_speeds(f"{layers} layers, length 128, batch 1{end}")
        benches += [(shape, layers, "stored", rows) for rows in [*stored.values()][:1]]
    lines = [["encoder", "from", "float32, ms", "ours, ms", "times", "float32, billion a second", "ours"]]
    for shape, layers, source, rows in benches:
        width, _, inner = ENCODERS[shape]
        billions = layers * 128 * (4 * width**2 + 2 * width * inner + 2 * 128 * width) / 1e9
        found = {row["contender"]: row for row in rows}
        bits = found.get("packed, c", found["packed, int8"])
        whole, ours = found["float32"]["seconds"], bits["seconds"]
        times = f"{1e3 * whole:.1f}", f"{1e3 * ours:.1f}", f"{bits['ratio']:.1f}"
        lines += [[shape, source, *times, f"{billions / whole:.0f}", f"{billions / ours:.0f}"]]
    return "\n".join(aligned(lines, left=2))


def engines(stored: Mapping[str, Sequence[Mapping]], most: int = 2) -> list[Axes]:
    """A panel of milliseconds for each stored bench."""
    chosen = dict(list(stored.items())[:most])
    rows = max(map(len, chosen.values()))
    _, axes = plt.subplots(len(chosen), 1, figsize=(7.4, len(chosen) * (0.9 + 0.27 * rows)), squeeze=False)
    labels = []
    for ax, (title, measured) in zip(axes[:, 0], chosen.items()):
        milliseconds(measured, f"stored: {title}", ax)
        labels.append(ax.figure.get_label())
    axes[0, 0].figure.set_label(" ".join(labels))
    return list(axes[:, 0])


def fastest(
    stored: Mapping[str, Sequence[Mapping]], live: Sequence[Mapping], scored: Mapping[str, float]
) -> tuple[dict[str, float], str, str]:
    """Milliseconds by precision, of the first stored bench, or of this run's where none is stored.

    Args:
        scored: engines whose score is known.

    Returns:
        Milliseconds of "float32", "bf16", "int8" (of each the fastest engine) and ours; the name of that int8 engine;
        where the times are from.
    """
    title, rows = next(iter(stored.items()), ("this run", live))
    seconds = {row["contender"]: row["seconds"] for row in rows}
    engine = min((name for name in seconds if "int8" in name and name in scored), key=seconds.get)
    bf16 = min(time for name, time in seconds.items() if "bf16" in name)
    times = {"float32": seconds["float32"], "bf16": bf16, "int8": seconds[engine]}
    ours = {"W1A4": "packed, c, W1A4", "W1A2": "packed, c, W1A2", "W1A1": "packed, c"}
    times |= {precision: seconds[name] for precision, name in ours.items()}
    return {name: 1e3 * time for name, time in times.items()}, engine, title.split(",")[0]


def trade(
    score: Mapping[str, float],
    mib: Mapping[str, float],
    ms: Mapping[str, float],
    source: str,
    stored: Mapping[str, Sequence[float]],
) -> list[Axes]:
    """What one gives for what: score, size and time of some precisions, three panels of bars from zero.

    Args:
        score: accuracy, a fraction, by precision. mib, ms: the same names. source: of the times, a short line.
        stored: scores of all trainings of a precision, a dot each.
    """
    panels = {"accuracy on SST-2 (stored)": score, "MiB": mib, "milliseconds": ms}
    faces = [COLORS["binary"] if name.startswith("W1") else OTHERS for name in score]
    looks = [{"color": face} for face in (COLORS["float"], *faces[1:])]
    axes = side_by_side(panels, looks, figsize=(9.4, 0.9 + 0.36 * len(score)))
    for place, (name, text) in enumerate(zip(score, axes[0].texts)):
        others = stored.get(name, [])
        axes[0].plot(others, [place] * len(others), "o", color="white", markeredgecolor=INK, markersize=4)
        text.xy = (max([score[name], *others]), place)  # the number stands behind the last dot
    axes[0].axvline(0.509, **GUESSING)
    axes[0].set_xlabel("orange bar: equal training; dots: all stored", fontsize=7)
    axes[2].set_xlabel(source.replace("(R)", ""), fontsize=7)
    ranges = "; ".join(f"{name} {min(others):.3f} to {max(others):.3f}" for name, others in stored.items())
    axes[0].figure.set_label(f"{axes[0].figure.get_label()} Guessing scores 0.509. Stored trainings: {ranges}.")
    return axes
