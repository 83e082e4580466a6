"""Drawings that several notebooks share, and the boxes and arrows that others are made of."""

from itertools import pairwise

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

from bitlab.course.plots import COLORS, INK

HIGH = 1.15  # of a box
TO_BITS = {"edgecolor": COLORS["binary"], "linewidth": 2.2}  # the edge of what makes or takes bits


def block() -> Axes:
    """A binary layer of BERT, from word to next layer: what is one bit, what is float, and which notebook builds it."""
    figure, ax = plt.subplots(figsize=(9.6, 5.0))
    ax.set(xlim=(0, 19.2), ylim=(0.6, 10.4))
    ax.set_aspect("equal")
    ax.axis("off")
    _words(ax)
    _attention(ax)
    _feed_forward(ax)
    _around(ax)
    figure.set_label(
        "Block diagram of a binary layer. Word vectors (one bit, notebook 05) enter attention: three binarizers with "
        "learned thresholds (03), three binary linear layers (01), binarizers of queries, keys and values, their "
        "product, a float softmax, the set zero and one for the probabilities (02, 04), their product with the "
        "values, a binary linear layer, a float residual path and LayerNorm. The feed-forward follows: binarizer, "
        "binary linear layer, ReLU, the set zero and one, binary linear layer, residual path and LayerNorm. A walk "
        "that builds it (05), distillation (06), multi-step distillation (07), packing (08), other "
        "methods (09), the tasks of GLUE (10) and SQuAD (11)."
    )
    return ax


def _words(ax: Axes) -> None:
    _box(ax, 1.5, 9.0, "words", 2.0)
    _box(ax, 1.5, 6.9, "word table", 2.0, bit=True, room="05")
    _box(ax, 1.5, 4.8, "+ position\nLayerNorm", 2.0)
    _line(ax, (1.5, 8.4), (1.5, 7.5))
    _line(ax, (1.5, 6.3), (1.5, 5.4))
    _line(ax, (2.5, 4.8), (3.1, 4.8), (3.1, 8.4), (3.5, 8.4))


def _attention(ax: Axes) -> None:
    """The upper row."""
    _frame(ax, 3.4, 6.0, 15.4, 4.2, "attention")
    for y, name in ((9.2, "query"), (8.0, "key"), (6.8, "value")):
        _binarizer(ax, 4.1, y, "±1")
        _box(ax, 5.9, y, name, 1.9, bit=True, room="01" if name == "query" else "", high=0.9)
        _binarizer(ax, 7.6, y, "±1")
        _line(ax, (4.45, y), (4.95, y))
        _line(ax, (6.85, y), (7.25, y))
    ax.text(4.1, 9.78, "03", ha="center", fontsize=7, **_BADGE)
    _box(ax, 9.2, 8.6, "Q · Kᵀ", 1.5, room="04", ring=True)
    _line(ax, (7.95, 9.2), (8.45, 8.8))
    _line(ax, (7.95, 8.0), (8.45, 8.4))
    _box(ax, 11.2, 8.6, "scale, mask\nsoftmax", 1.9)
    _line(ax, (9.95, 8.6), (10.25, 8.6))
    _binarizer(ax, 12.9, 8.6, "0/1", room="02")
    _line(ax, (12.15, 8.6), (12.55, 8.6))
    _box(ax, 14.4, 7.6, "P · V", 1.4, room="04", ring=True)
    _line(ax, (13.2, 8.4), (13.7, 8.0))
    _line(ax, (7.95, 6.8), (14.4, 6.8), (14.4, 7.02))
    _binarizer(ax, 15.75, 7.6, "±1")
    _line(ax, (15.1, 7.6), (15.4, 7.6))
    _box(ax, 17.5, 7.6, "output", 1.8, bit=True, room="01")
    _line(ax, (16.1, 7.6), (16.6, 7.6))


def _feed_forward(ax: Axes) -> None:
    """The lower row, from right to left: as one reads on where the upper row ends."""
    _frame(ax, 3.4, 2.6, 15.4, 2.9, "feed-forward")
    y = 4.0
    _box(ax, 17.2, y, "+ residual\nLayerNorm", 2.1)
    _line(ax, (17.5, 7.02), (17.5, 4.62))
    _binarizer(ax, 15.2, y, "±1", room="03")
    _box(ax, 13.3, y, "FFN-1", 1.8, bit=True, room="01")
    _box(ax, 11.2, y, "ReLU", 1.3)
    _binarizer(ax, 9.7, y, "0/1", room="02")
    _box(ax, 7.9, y, "FFN-2", 1.8, bit=True, room="01")
    _box(ax, 5.2, y, "+ residual\nLayerNorm", 2.1)
    for begin, end in ((16.15, 15.55), (14.85, 14.2), (12.4, 11.85), (10.55, 10.05), (9.35, 8.8), (7.0, 6.25)):
        _line(ax, (begin, y), (end, y))
    _line(ax, (3.1, 5.75), (16.7, 5.75), (16.7, 4.62))  # past attention
    _line(ax, (17.2, 3.38), (17.2, 2.95), (5.6, 2.95), (5.6, 3.38))  # past the feed-forward
    _line(ax, (4.15, y), (3.55, y))
    ax.text(3.55, 3.12, "next layer, or\nclassifier", fontsize=7, va="center")


def _around(ax: Axes) -> None:
    """What is done with the block, and the legend."""
    rooms = (("05", "a walk puts it\ninto a BERT"), ("06", "a teacher\ntrains it"), ("07", "in steps:\n2 bits, then 1"))
    rooms += (("08", "packed:\nbits on disk"), ("09", "other ways\nto do it"), ("10", "GLUE"), ("11", "SQuAD"))
    for x, (room, text) in zip((3.4, 6.5, 8.9, 11.4, 13.9, 16.3, 17.9), rooms):
        ax.text(x, 1.45, room, ha="center", va="center", fontsize=8, **_BADGE)
        ax.text(x + 0.4, 1.45, text, va="center", fontsize=7.5)
    _box(ax, 0.75, 3.5, "", 0.7, bit=True, high=0.45)
    _box(ax, 0.75, 2.8, "", 0.7, high=0.45, ring=True)
    _box(ax, 0.75, 2.1, "", 0.7, high=0.45)
    ax.text(0.75, 1.4, "04", ha="center", va="center", fontsize=8, **_BADGE)
    for y, text in ((3.5, "1-bit weights"), (2.8, "makes or takes bits"), (2.1, "float"), (1.4, "notebook")):
        ax.text(1.25, y, text, va="center", fontsize=7.5)


def packed() -> Axes:
    """How a packed layer computes: weights from the file to the sums, activations from one binarizer to the next."""
    figure, ax = plt.subplots(figsize=(9.6, 3.9))
    ax.set(xlim=(0, 19.2), ylim=(0, 7.8))
    ax.set_aspect("equal")
    ax.axis("off")
    for x, wide, text in ((2.0, 2.9, "file:\n1 bit a weight"), (6.2, 2.9, "memory:\nthe same bits")):
        _box(ax, x, 6.6, text, wide, bit=True)
    _box(ax, 10.9, 6.6, "first cache: 32 outputs,\nas bits, or opened to ±1 bytes", 4.9, bit=True)
    _line(ax, (3.45, 6.6), (4.75, 6.6))
    _line(ax, (7.65, 6.6), (8.45, 6.6))
    _line(ax, (10.9, 6.02), (10.9, 5.0), (8.3, 5.0), (8.3, 4.18))
    _box(ax, 1.8, 3.6, "hidden state", 2.6)
    _binarizer(ax, 4.1, 3.6, "±1")
    _box(ax, 5.9, 3.6, "codes", 1.6, bit=True)
    _box(ax, 8.3, 3.6, "multiply\nand add", 1.9, ring=True)
    _box(ax, 10.7, 3.6, "sums:\nintegers", 1.7, bit=True)
    _box(ax, 13.4, 3.6, "bias + scale · sum\n− β", 2.7)
    _binarizer(ax, 15.7, 3.6, "±1")
    _box(ax, 17.6, 3.6, "codes", 1.6, bit=True)
    ends = ((3.1, 3.74), (4.46, 5.1), (6.7, 7.35), (9.25, 9.85), (11.55, 12.05), (14.75, 15.34), (16.06, 16.8))
    for begin, end in ends:
        _line(ax, (begin, 3.6), (end, 3.6))
    _box(ax, 13.4, 1.4, "+ residual\nLayerNorm", 2.7)
    _line(ax, (13.4, 3.0), (13.4, 2.0))
    _line(ax, (12.05, 1.4), (1.8, 1.4), (1.8, 3.0))
    ax.text(14.9, 1.4, "only after attention\nand after FFN-2", va="center", fontsize=8)
    ax.text(7.0, 1.65, "the next hidden state", fontsize=8)
    ax.text(13.4, 4.45, "16 at a time, in registers", ha="center", fontsize=8)
    ax.text(17.6, 4.45, "of the next layer", ha="center", fontsize=8)
    ax.text(0.5, 5.55, "orange: bits and small integers     grey: floats", fontsize=8)
    figure.set_label(
        "Data flow of a packed layer. Weights are one bit each in the file and in memory; 32 outputs at a time come "
        "into the first cache, as bits or opened to bytes. A hidden state (float) becomes codes, codes and weights "
        "are multiplied and added to integers; scale, bias and threshold are applied in registers, and the next codes "
        "come out. Only after attention and FFN-2 are there floats in memory: the residual sum and LayerNorm."
    )
    return ax


_BADGE = {"color": "white", "bbox": {"boxstyle": "round,pad=0.18", "facecolor": INK, "edgecolor": INK}}


def box(ax: Axes, x: float, y: float, text: str, wide: float, high: float = HIGH, face: str = "white", **edge) -> None:
    """A rounded box around its text, whose middle is at x and y."""
    corner, style = (x - wide / 2, y - high / 2), "round,pad=0,rounding_size=0.12"
    look = {"boxstyle": style, "facecolor": face, "edgecolor": INK, "linewidth": 1} | edge
    ax.add_patch(FancyBboxPatch(corner, wide, high, **look))
    ax.text(x, y, text, ha="center", va="center", fontsize=8)


def arrow(ax: Axes, begin: tuple[float, float], end: tuple[float, float], **look) -> None:
    """An arrow with a small head."""
    ax.add_patch(FancyArrowPatch(begin, end, arrowstyle="-|>", **{"mutation_scale": 12, "linewidth": 1.6} | look))


def _box(ax: Axes, x: float, y: float, text: str, wide: float, bit=False, room="", high=HIGH, ring=False) -> None:
    face = COLORS["binary"] if bit else "white" if ring else "#e6e6e6"
    box(ax, x, y, text, wide, high, face, **(TO_BITS if ring else {}))
    if room:
        ax.text(x + wide / 2 - 0.1, y + high / 2 + 0.02, room, ha="center", va="center", fontsize=7, **_BADGE)


def _binarizer(ax: Axes, x: float, y: float, text: str, room: str = "") -> None:
    ax.add_patch(Circle((x, y), 0.36, facecolor="white", **TO_BITS))
    ax.text(x, y, text, ha="center", va="center", fontsize=7.5)
    if room:
        ax.text(x + 0.3, y + 0.55, room, ha="center", va="center", fontsize=7, **_BADGE)


def _frame(ax: Axes, x: float, y: float, wide: float, high: float, title: str) -> None:
    style = {"boxstyle": "round,pad=0,rounding_size=0.25", "facecolor": "none", "edgecolor": "#999999"}
    ax.add_patch(FancyBboxPatch((x, y), wide, high, linestyle="--", **style))
    ax.text(x + wide - 3.2, y + high - 0.42, title, ha="right", fontsize=8, color="#555555")


def _line(ax: Axes, *points: tuple[float, float]) -> None:
    """A path whose last piece is an arrow."""
    for begin, end in pairwise(points[:-1]):
        ax.plot(*zip(begin, end), color=INK, linewidth=1.1, linestyle="-")
    arrow(ax, *points[-2:], mutation_scale=9, linewidth=1.1, color=INK, shrinkA=0)
