"""Notebook 00, start here: the 1-bit model that answers first, its pictures, and the tables of the series."""

import copy
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import nbformat
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from bitlab.convert import binarize
from bitlab.cost import summary
from bitlab.course.figures.parts import lying, side_by_side
from bitlab.course.lab import Lab
from bitlab.course.plots import COLORS, CONTROL, INK, Page, note, told
from bitlab.files import shipped
from bitlab.models import load_tokenizer
from bitlab.packed import load_packed, pack, save_packed
from bitlab.packed.bits import unpack_bits

SHIPPED = ("sst2-w1a4", "sst2-w1a1")  # the first one that is there answers
BITS = 48  # of a word's vector that are drawn
LONGEST = 32  # tokens that are drawn


class Ready(NamedTuple):
    """A packed model that tells kind from unkind, its tokenizer, and a sentence of its world."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sentence: str


def one_bit_model(lab: Lab) -> Ready:
    """The 1-bit model that comes with bitlab; where none does, a small one, trained now, in seconds. Says which."""
    if name := next(filter(shipped, SHIPPED), None):
        bits = name[-1]
        print(f"{name}, which came with bitlab: MiniLM, six layers, taught on real film reviews;")
        print(f"weights of one bit, activations of {'one' if bits == '1' else bits}")
        return Ready(load_packed(name), load_tokenizer(name), "not very clever, but the cast is lovely")
    data = lab.data("sst2")
    teacher = lab.teacher(data)
    student = binarize(copy.deepcopy(teacher))
    lab.train(student, data, teacher=teacher, steps=lab.pick(quick=200, full=1500))
    print("a small model, trained just now (none came with this bitlab): two layers, made-up film reviews;")
    print("weights of one bit, activations of one")
    print(f"of the sentences of its dev set it gets {lab.score(student, data):.0%} right")
    words = sorted(set(data.tokenizer.get_vocab()) & set(FILMS.split()))
    print("it knows few words:", ", ".join(words))
    return Ready(pack(student.cpu().eval()), data.tokenizer, "the script is not very clever but the cast is lovely")


FILMS = """film script cast plot story music ending hero camera dialogue clever lovely funny warm bright fresh dull slow
clumsy cold weak stale very quite really rather the is not and but"""


def ask(ready: Ready) -> Callable[[str], list[Axes]]:
    """For `explore`: the bits of a sentence's words, and what the model says to it."""
    table = ready.model.get_input_embeddings()

    @torch.no_grad()
    def draw(sentence: str) -> list[Axes]:
        inputs = ready.tokenizer(sentence, return_tensors="pt", truncation=True, max_length=LONGEST)
        ids = inputs["input_ids"][0]
        bits = unpack_bits(table.weight[ids], table.embedding_dim)[:, :BITS]
        kind = ready.model(**inputs).logits.softmax(-1)[0, 1].item()
        figure, axes = plt.subplots(1, 2, figsize=(7.6, 0.9 + 0.17 * len(ids)), width_ratios=(2, 1))
        axes[0].imshow(bits, aspect="auto", interpolation="nearest", cmap="gray_r")
        axes[0].set_yticks(range(len(ids)), ready.tokenizer.convert_ids_to_tokens(ids))
        axes[0].set(title=f"every word is a row of bits (black: 1, white: 0), the first {BITS}", xlabel="bit")
        axes[0].title.set_fontsize(9)
        axes[0].grid(visible=False)
        for place, share in enumerate((1 - kind, kind)):
            face = COLORS["binary"] if share > 0.5 else "white"
            axes[1].bar(place, share, width=0.6, color=face, edgecolor=INK)
            note(axes[1], f"{share:.2f}", (place, share), (0, 3))
        axes[1].set_xticks((0, 1), ("unkind", "kind"))
        axes[1].set(title="what it says", ylim=(0, 1.2), ylabel="probability", xlim=(-0.6, 1.6))
        axes[1].title.set_fontsize(9)
        said = "kind" if kind > 0.5 else "unkind"
        figure.set_label(
            f"Rows of bits, one a token of {sentence!r}; the model says {said}, {max(kind, 1 - kind):.2f}."
        )
        return list(axes)

    return draw


def kindness(shares: Mapping[str, float]) -> Axes:
    """How likely the model finds it that each sentence is kind, bars from zero; filled above one half."""
    ax = plt.subplots(figsize=(7.6, 0.6 + 0.28 * len(shares)))[1]
    looks = [{"color": COLORS["binary"] if share > 0.5 else "white"} for share in shares.values()]
    lying(ax, shares, looks, [f"{share:.2f}" for share in shares.values()])
    ax.axvline(0.5, color=INK, linewidth=0.8, linestyle=":")
    ax.set(xlim=(0, 1.15), xlabel="probability of kind")
    ax.figure.set_label(f"Bars. Probability of kind: {told(shares, '.2f')}.")
    return ax


def twins(ready: Ready) -> dict[str, PreTrainedModel]:
    """The packed model, and two of the same shape beside it: in float, and binary with its bits kept in floats.

    Their weights are random: size and time are the same whatever they are.
    """
    config = copy.deepcopy(ready.model.config)
    del config.quantization_config
    dense = AutoModelForSequenceClassification.from_config(config).eval()
    binary = binarize(copy.deepcopy(dense)).train()
    with torch.no_grad():
        binary(**ready.tokenizer(ready.sentence, return_tensors="pt"))  # alphas
    return {"float": dense, "bits kept in floats (control)": binary.eval(), "packed": ready.model}


def disk(models: Mapping[str, PreTrainedModel]) -> dict[str, float]:
    """MiB of each model's weights as they are stored."""
    with tempfile.TemporaryDirectory() as folder:
        packed = save_packed(models["packed"], Path(folder) / "packed").stat().st_size / 2**20
    floats = summary(models["float"]).mib
    return {name: packed if name == "packed" else floats for name in models}


def cost(mib: Mapping[str, float], seconds: Mapping[str, float]) -> list[Axes]:
    """Size and time of some models, bars from zero."""
    panels = {"MiB on disk": mib, "milliseconds a sentence": {name: 1e3 * time for name, time in seconds.items()}}
    looks = {"float": {"color": COLORS["float"]}, "packed": {"color": COLORS["binary"]}}
    return side_by_side(panels, [looks.get(name, CONTROL) for name in mib], figsize=(8.4, 1.7))


def overview(claims: Mapping[str, str]) -> Page:
    """The series as a table: a row a notebook, with what its own budget line says."""
    rows = [f"| [{name[:2]}]({name}.ipynb) | {claim} | {_budget(name)} |" for name, claim in claims.items()]
    table = "\n".join(["| | what happens there | quick |", "|---|---|---|", *rows])
    return Page(table, table, "markdown")


def _budget(name: str) -> str:
    """ "40 seconds"; nothing where the notebook is not beside this one."""
    path = Path(f"{name}.ipynb")
    text = nbformat.read(path, as_version=4).cells[0].source if path.exists() else ""
    found = re.search(r"Budget.*?(\d+) (s|seconds|min|minutes)\b", text, flags=re.DOTALL)
    return f"{found[1]} {found[2]}" if found else ""
