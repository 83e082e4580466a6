"""The pictures of notebook 11, SQuAD: windows, logits over words, and answers in their paragraphs."""

import html
import itertools
import textwrap
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from datasets import Dataset
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from bitlab.course.figures.budgets import share_kept
from bitlab.course.figures.parts import groups
from bitlab.course.plots import COLORS, CONTROL, INK, Page, bars, told
from bitlab.data.metrics import normalize_answer
from bitlab.data.squad import Windows, encode_windows
from bitlab.data.tasks import SQUAD
from bitlab.results import CONSTANT
from bitlab.terminal.text import aligned

TABLE = '<table style="text-align:left;font-size:90%;width:100%"><tr>{}</tr></table>'
CELL = '<td style="width:50%;vertical-align:top;text-align:left">{}</td>'


def windows(tokens: int, places: Sequence[tuple[int, int]], answer: tuple[int, int]) -> Axes:
    """Each window as a bar over the paragraph's tokens; green where the answer lies, a label where it is whole."""
    _, ax = plt.subplots(figsize=(6.6, 0.9 + 0.35 * len(places)))
    for row, (begin, end) in enumerate(places):
        holds = begin <= answer[0] and answer[1] <= end
        ax.barh(row, end - begin, left=begin, height=0.6, color=COLORS["float"], alpha=0.5, edgecolor=INK)
        if holds:
            ax.barh(row, answer[1] - answer[0], left=answer[0], height=0.6, color=COLORS["teacher"], edgecolor=INK)
        ax.text(end + 0.6, row, "holds the answer" if holds else "points at [CLS]", va="center", fontsize=8)
    ax.set_yticks(range(len(places)), [f"window {n}" for n in range(len(places))])
    ax.set(xlim=(0, 1.25 * tokens), xlabel="token of the paragraph")
    ax.invert_yaxis()
    ax.grid(visible=False)
    ends = ", ".join(f"{begin} to {end}" for begin, end in places)
    ax.figure.set_label(f"A paragraph of {tokens} tokens is read through windows that overlap: tokens {ends}.")
    return ax


def one_question(data, question: str, paragraph: str) -> Windows:
    """The windows of a question that nobody has answered yet, cut as those of `data`."""
    row = {"id": "mine", "title": "", "question": question, "context": paragraph}
    row["answers"] = {"text": [paragraph[:1]], "answer_start": [0]}  # never looked at
    return encode_windows(Dataset.from_list([row]), data.tokenizer, data.window_sizes)


def sureness(row: Mapping, models: Mapping[str, tuple], most: int = 40) -> list:
    """How sure each model is that a word starts (full bar) and that it ends (hatched bar) the answer.

    Args:
        row: a question of SQuAD; its answer is written under the question.
        models: name -> (start logits, end logits, offsets) of the question's windows; the first window is drawn.
        most: tokens, of a long paragraph those around the answer.
    """
    _, axes = plt.subplots(len(models), 1, figsize=(7.2, 4.0), sharex=True)
    peaks = []
    for ax, role, (name, (starts, ends, offsets)) in zip(axes, ("teacher", "binary"), models.items()):
        inside = np.flatnonzero(offsets[0][:, 0] >= 0)
        answer = np.searchsorted(offsets[0][inside, 1], row["answers"]["answer_start"][0], side="right")
        begin = max(0, min(answer - most // 2, len(inside) - most))
        inside = inside[begin : begin + most]
        words = [row["context"][a:b] for a, b in offsets[0][inside]]
        odds = [np.exp(logits[0][: len(offsets[0])] - logits[0].max()) for logits in (starts, ends)]
        start, end = ((odd / odd.sum())[inside] for odd in odds)
        groups(ax, {"start": start, "end": end}, ({"color": COLORS[role]}, CONTROL | {"edgecolor": COLORS[role]}))
        ax.set(ylim=(0, 1.08), ylabel="probability")
        ax.set_title(name, loc="left", fontsize=9)
        ax.legend(loc="lower right", ncols=2, fontsize=8, bbox_to_anchor=(1, 1.0))
        peaks.append(f"{name}: starts at {words[start.argmax()]!r}, ends at {words[end.argmax()]!r}")
    axes[-1].set_xticks(range(len(words)), words, rotation=60, ha="right", fontsize=7)
    title = f"{row['question']}  right: {row['answers']['text'][0]}"
    axes[0].figure.suptitle(textwrap.fill(title, 90), x=0.1, ha="left", fontsize=9, style="italic")
    axes[0].figure.set_label(f"Probability of start and end for each word. Surest, {'; '.join(peaks)}.")
    return list(axes)


def scores(found: Mapping[str, Mapping[str, float]], baseline: str, control: str) -> list[Axes]:
    """Exact match and F1 of several ways to answer, in percent."""
    titles = {"exact_match": "exact match, %", "f1": "F1, %"}
    _, axes = plt.subplots(1, 2, figsize=(7.2, 2.7), sharey=True)
    for ax, (metric, title) in zip(axes, titles.items()):
        shown = {name: 100 * metrics[metric] for name, metrics in found.items()}
        bars(shown, baseline=baseline, control=control, ylabel="", ax=ax)
        ax.patches[-1].set(facecolor="white", edgecolor=INK)  # no model, no bits
        ax.set_title(title)
    axes[0].figure.set_label(f"Exact match and F1 in percent. F1: {told(shown, '.0f')}.")
    return list(axes)


def edges(percent: Mapping[str, Mapping[str, float]]) -> list[Axes]:
    """Left: the surest start and end, and both at once. Right: the best pair, with nothing given and with one edge.

    Args:
        percent: name -> "start", "end", "both" and the ways to a pair -> percent right; the last name is the control.
    """
    own = {name: {**each, "product": each["start"] * each["end"] / 100} for name, each in percent.items()}
    panels = {"each edge's surest token": ("start", "end", "product", "both")}
    panels["best pair"] = [of for of in next(iter(own.values())) if of.endswith("given")]
    _, axes = plt.subplots(1, 2, figsize=(8.4, 3.0), sharey=True, width_ratios=(4, 3))
    looks = ({"color": COLORS["float"]}, {"color": COLORS["binary"]}, CONTROL)
    for ax, (title, places) in zip(axes, panels.items()):
        drawn = groups(ax, {name: [each[of] for of in places] for name, each in own.items()}, looks)
        for each in drawn:
            ax.bar_label(each, fmt="%.0f", fontsize=7, padding=1)
        ax.set_xticks(range(len(places)), places)
        ax.set(ylim=(0, 108))
        ax.set_title(title, fontsize=9)
    axes[0].set_ylabel("right, %")
    axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    sides = ". ".join(f"{name}: {told(each, '.0f')}" for name, each in own.items())
    axes[0].figure.set_label(f"Percent right of start, end and both, and of the best pair with an edge given. {sides}.")
    return list(axes)


def spoiled(runs: Sequence[Mapping]) -> str:
    """Runs and what each lost, a line each, as text: name of a column -> what stands in it."""
    return "\n".join(aligned([[*runs[0]], *([str(each) for each in run.values()] for run in runs)]))


def kept_above_constant(glue, squad) -> dict[str, float]:
    """Of what full precision has above the constant answer, the percent that BiT keeps at W1A1, in print.

    Args:
        glue, squad: as of `bitlab.results.published`.
    """
    printed = []
    for bits, method in (("W32A32", "full precision"), ("W1A1", "BiT")):
        rows = [table[(table.precision == bits) & (table.method == method)].iloc[-1] for table in (glue, squad)]
        printed.append(rows[0].to_dict() | rows[1].add_prefix("SQuAD ").to_dict())
    full, binary = printed
    titles = ("SST-2", "STS-B", "CoLA", "SQuAD F1", "SQuAD EM")
    return {title: share_kept(binary[title], full[title], CONSTANT.get(title, 0.0)) for title in titles}


def kept(shares: Mapping[str, float]) -> Axes:
    """What `kept_above_constant` found, a bar a task."""
    _, ax = plt.subplots(figsize=(4.6, 2.6))
    bars(shares, ylabel="kept above constant, %", ax=ax)
    ax.set(ylim=(0, 112))
    ax.figure.set_label(
        f"Of what full precision has above the constant answer, W1A1 keeps in percent: {told(shares, '.0f')}."
    )
    return ax


def marked(row: Mapping, answer: str, known: bool = True) -> tuple[str, str]:
    """A question and its paragraph, as HTML and as text: _underlined_ is the reference, [framed] the model's answer.

    Args:
        known: whether the reference is known to be right; if not, no mark says that the answer is.
    """
    text, right = row["context"], row["answers"]["text"][0]
    start = row["answers"]["answer_start"][0]
    at = start if answer == right else max(text.find(answer), 0)
    end, to = start + len(right), at + len(answer)
    page = plain = ""
    for a, b in itertools.pairwise(sorted({0, start, end, at, to, len(text)})):
        reference, answered = start <= a < end, at <= a < to
        look = "text-decoration: underline 2px #13795B;" * reference + "outline: 1.5px solid #C4620A;" * answered
        page += f'<span style="{look}">{html.escape(text[a:b])}</span>' if look else html.escape(text[a:b])
        plain += "[" * answered + "_" * reference + text[a:b] + "_" * reference + "]" * answered
    mark = ("✓" if _right(row, answer) else "✗") if known else "→"
    said = answer or "(nothing)"
    page = f"<p><i>{html.escape(row['question'])}</i> <b>{mark}</b> {html.escape(said)}<br>{page}</p>"
    return page, f"{row['question']} {mark} {said}\n  {plain}"


def _right(row: Mapping, answer: str) -> bool:
    return normalize_answer(answer) in map(normalize_answer, row["answers"]["text"])


def right_and_wrong(questions, answers: Mapping[str, str], count: int = 4) -> Page:
    """The first right answers in the left column, the first wrong ones in the right one."""
    columns: dict[str, list[tuple[str, str]]] = {"right": [], "wrong": []}
    for row in questions:
        columns["right" if _right(row, answers[row["id"]]) else "wrong"].append(marked(row, answers[row["id"]]))
    heads = "".join(f"<th>{len(found)} {name}</th>" for name, found in columns.items())
    cells = "".join(CELL.format("".join(page for page, _ in found[:count])) for found in columns.values())
    text = "\n\n".join("\n".join([f"{name}:", *(plain for _, plain in found[:2])]) for name, found in columns.items())
    return Page(TABLE.format(f"{heads}</tr><tr>{cells}"), text)


def asker(models: Mapping[str, Callable[[str, str], list[tuple[float, int, int]]]]) -> Callable[[str, str], Page | str]:
    """What each model answers to a question of one's own; underlined for all is the first model's answer.

    Args:
        models: name -> a function from question and paragraph to (score, first, last character), the best first.
    """

    def ask(question: str, paragraph: str) -> Page | str:
        if not paragraph.strip():
            return "Write a paragraph first: there is nothing to point at."
        cells, lines, reference = "", [], None
        for name, answer in models.items():
            texts = [paragraph[a:b] for _, a, b in answer(question, paragraph)] or [""]
            reference = reference if reference is not None else texts[0]
            row = {"question": question, "context": paragraph}
            row["answers"] = {"text": [reference], "answer_start": [max(paragraph.find(reference), 0)]}
            page, plain = marked(row, texts[0], known=bool(cells))
            others = ", ".join(f'"{text}"' for text in texts[1:4])
            cells += CELL.format(f"<b>{name}</b>{page}<p>next: {html.escape(others)}</p>")
            lines += [f"{name}: {plain}", f"  next: {others}"]
        return Page(TABLE.format(cells), "\n".join(lines))

    return ask


def rows_beside(run, stored, published) -> str:
    """Three kinds of rows as text: what a notebook just ran, what was stored, what a paper prints.

    Args:
        run, stored: tables as of `bitlab.results.load`; of a run with several stages each is a line.
        published: a table as of `bitlab.results.published`.
    """
    lines = [f"{'':>9}  {'model, method':22} {'bits':14} {'EM':>5} {'F1':>5}   trained on"]
    for kind, table in (("run", run), ("stored", stored)):
        for row in table.drop_duplicates(["model", "path", "steps", "f1"]).itertuples():
            name = row.model if row.precision == "W32A32" else f"{row.model}, {row.method}"
            path = row.path.removeprefix("W32A32 -> ")
            scored = f"{100 * row.exact_match:5.1f} {100 * row.f1:5.1f}"
            lines.append(f"{kind:>9}  {name:22} {path:14} {scored}   {row.seen:,.0f} windows, seed {row.seed}")
    for row in published.itertuples():
        name = f"{row.model}, {row.method}" if row.precision != "W32A32" else row.model
        scored = f"{row.EM:5.1f} {row.F1:5.1f}"
        lines.append(f"{'published':>9}  {name:22} {row.schedule:14} {scored}   {SQUAD.epochs} times 87,599 questions")
    return "\n".join(lines)
