"""The pictures of notebook 11, SQuAD: windows, logits over words, and answers in their paragraphs."""

import html
import itertools
from collections.abc import Callable, Mapping, Sequence
from textwrap import fill

import numpy as np
from IPython.display import HTML
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from bitlab.course.plots import COLORS, INK, bars
from bitlab.data.metrics import normalize_answer, squad_metrics

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
    told = ", ".join(f"{begin} to {end}" for begin, end in places)
    ax.figure.set_label(f"A paragraph of {tokens} tokens is read through windows that overlap: tokens {told}.")
    return ax


def sureness(question: str, words: Sequence[str], models: Mapping[str, tuple[str, np.ndarray, np.ndarray]]) -> list:
    """How sure each model is that a word starts (full bar) and that it ends (hatched bar) the answer.

    Args:
        models: name -> (role in the colours, probabilities of start, of end), one number a word.
    """
    _, axes = plt.subplots(len(models), 1, figsize=(7.2, 4.0), sharex=True)
    x = np.arange(len(words))
    for ax, (name, (role, start, end)) in zip(axes, models.items()):
        ax.bar(x - 0.2, start, 0.4, color=COLORS[role], edgecolor=INK, linewidth=0.6, label="start")
        ax.bar(x + 0.2, end, 0.4, fc="white", ec=COLORS[role], hatch="////", linewidth=1, label="end")
        ax.set(ylim=(0, 1.08), ylabel="probability")
        ax.set_title(name, loc="left", fontsize=9)
        ax.legend(loc="lower right", ncols=2, fontsize=8, bbox_to_anchor=(1, 1.0))
    axes[-1].set_xticks(x, words, rotation=60, ha="right", fontsize=7)
    axes[0].figure.suptitle(question, x=0.1, ha="left", fontsize=9, style="italic")
    peaks = {name: [words[sure.argmax()] for sure in both] for name, (_, *both) in models.items()}
    told = "; ".join(f"{name}: starts at {start!r}, ends at {end!r}" for name, (start, end) in peaks.items())
    axes[0].figure.set_label(f"Probability of start and end for each word. Surest, {told}.")
    return list(axes)


def scores(found: Mapping[str, Mapping[str, float]], baseline: str, control: str) -> list[Axes]:
    """Exact match and F1 of several ways to answer, in percent."""
    titles = {"exact_match": "exact match, %", "f1": "F1, %"}
    _, axes = plt.subplots(1, 2, figsize=(7.2, 2.7), sharey=True)
    for ax, (metric, title) in zip(axes, titles.items()):
        shown = {name: 100 * metrics[metric] for name, metrics in found.items()}
        bars(shown, baseline=baseline, control=control, ylabel="", ax=ax)
        ax.set_title(title)
        ax.set_xticks(range(len(shown)), [fill(name, 11) for name in shown], fontsize=7)
    told = ", ".join(f"{name} {100 * metrics['f1']:.0f}" for name, metrics in found.items())
    axes[0].figure.set_label(f"Exact match and F1 in percent. F1: {told}.")
    return list(axes)


def by_first_word(questions, answers: Mapping[str, Mapping[str, str]], most: int = 5) -> Axes:
    """F1 by the first word of the question, the commonest words first.

    Args:
        answers: precision -> question id -> text; "W32A32" is drawn grey, the others orange.
    """
    first = [row["question"].lower().split()[0] if row["question"].split() else "" for row in questions]
    common = sorted(set(first), key=first.count)[::-1][:most]
    groups = {word: [row for row, begin in zip(questions, first) if begin == word] for word in common}
    _, ax = plt.subplots(figsize=(6, 2.4))
    for place, (precision, texts) in enumerate(answers.items()):
        f1 = [100 * squad_metrics(texts, rows)["f1"] for rows in groups.values()]
        look = {"color": COLORS["float" if precision == "W32A32" else "binary"], "edgecolor": INK, "linewidth": 0.5}
        ax.bar(np.arange(len(f1)) + 0.4 * place - 0.2, f1, 0.4, label=precision, **look)
    ax.set_xticks(range(len(groups)), [f"{word} ({len(rows)})" for word, rows in groups.items()])
    ax.set(ylabel="F1, %", ylim=(0, 105))
    ax.legend(loc="lower center", ncols=2, bbox_to_anchor=(0.5, 1.0))
    ax.figure.set_label(f"F1 of {' and '.join(answers)} for questions that begin with {', '.join(common)}.")
    return ax


def marked(row: Mapping, answer: str, known: bool = True) -> str:
    """A question and its paragraph as HTML: the reference is underlined, the model's answer stands in a frame.

    Args:
        known: whether the reference is known to be right; if not, no mark says that the answer is.
    """
    text, right = row["context"], row["answers"]["text"][0]
    start = row["answers"]["answer_start"][0]
    at = start if answer == right else max(text.find(answer), 0)
    styles = np.zeros((2, len(text) + 1), dtype=int)
    styles[0, start : start + len(right)] = styles[1, at : at + len(answer)] = 1
    cuts = [0, *(np.flatnonzero(np.diff(styles[:, :-1]).any(axis=0)) + 1), len(text)]
    parts = []
    for a, b in itertools.pairwise(cuts):
        look = "text-decoration: underline 2px #13795B;" * styles[0, a] + "outline: 1.5px solid #C4620A;" * styles[1, a]
        piece = html.escape(text[a:b])
        parts.append(f'<span style="{look}">{piece}</span>' if look else piece)
    mark = ("✓" if _right(row, answer) else "✗") if known else "→"
    told = f"<b>{mark}</b> {html.escape(answer) or '(nothing)'}"
    return f"<p><i>{html.escape(row['question'])}</i> {told}<br>{''.join(parts)}</p>"


def _right(row: Mapping, answer: str) -> bool:
    return normalize_answer(answer) in map(normalize_answer, row["answers"]["text"])


def right_and_wrong(questions, answers: Mapping[str, str], count: int = 4) -> HTML:
    """The first right answers in the left column, the first wrong ones in the right one."""
    columns: dict[str, list[str]] = {"right": [], "wrong": []}
    for row in questions:
        columns["right" if _right(row, answers[row["id"]]) else "wrong"].append(marked(row, answers[row["id"]]))
    heads = "".join(f"<th>{len(pages)} {name}</th>" for name, pages in columns.items())
    cells = "".join(CELL.format("".join(pages[:count])) for pages in columns.values())
    return HTML(TABLE.format(f"{heads}</tr><tr>{cells}"))


def asker(models: Mapping[str, Callable[[str, str], list[tuple[float, int, int]]]]) -> Callable[[str, str], HTML | str]:
    """What each model answers to a question of one's own; underlined for all is the first model's answer.

    Args:
        models: name -> a function from question and paragraph to (score, first, last character), the best first.
    """

    def ask(question: str, paragraph: str) -> HTML | str:
        if not paragraph.strip():
            return "Write a paragraph first: there is nothing to point at."
        cells, reference = "", None
        for name, answer in models.items():
            texts = [paragraph[a:b] for _, a, b in answer(question, paragraph)] or [""]
            reference = reference if reference is not None else texts[0]
            row = {"question": question, "context": paragraph}
            row["answers"] = {"text": [reference], "answer_start": [max(paragraph.find(reference), 0)]}
            page = marked(row, texts[0], known=bool(cells))
            others = html.escape(", ".join(texts[1:4]))
            cells += CELL.format(f"<b>{name}</b>{page}<p>next: {others}</p>")
        return HTML(TABLE.format(cells))

    return ask


def rows_beside(run, stored, published) -> str:
    """Three kinds of rows as text: what a notebook just ran, what was stored, what a paper prints.

    Args:
        run, stored: tables as of `bitlab.results.load`; of a run with several stages each is a line.
        published: a table as of `bitlab.results.published`.
    """
    lines = [f"{'':>9}  {'model, method':22} {'bits':14} {'EM':>5} {'F1':>5}   trained"]
    for kind, table in (("run", run), ("stored", stored)):
        for row in table.drop_duplicates(["model", "path", "steps", "f1"]).itertuples():
            name = row.model if row.precision == "W32A32" else f"{row.model}, {row.method}"
            path = row.path.removeprefix("W32A32 -> ")
            scored = f"{100 * row.exact_match:5.1f} {100 * row.f1:5.1f}"
            lines.append(f"{kind:>9}  {name:22} {path:14} {scored}   {row.total_steps:,.0f} steps, seed {row.seed}")
    for row in published.itertuples():
        name = f"{row.model}, {row.method}" if row.precision != "W32A32" else row.model
        lines.append(f"{'published':>9}  {name:22} {row.schedule:14} {row.EM:5.1f} {row.F1:5.1f}   87,599 questions")
    return "\n".join(lines)
