"""Sample tasks: every GLUE task's and SQuAD's shape, in sentences from a small grammar.

They exist so that every notebook runs anywhere in seconds and still shows its effect: a BERT of two layers learns
each of them from scratch in a few hundred steps, and loses what binarization takes away, because the answer hangs
on how words combine and not on which words there are.
"""

import functools
import random
from collections.abc import Callable

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, PreTrainedTokenizerFast

from bitlab.errors import BitlabError
from bitlab.tasks import Task, get_glue_task

# --- words -----------------------------------------------------------------------------------------------------

SUBJECTS = ("film", "script", "cast", "plot", "story", "music", "ending", "hero", "camera", "dialogue")
GOOD = ("clever", "lovely", "funny", "warm", "bright", "fresh")
BAD = ("dull", "slow", "clumsy", "cold", "weak", "stale")
ADVERBS = ("very", "quite", "really", "rather")

PEOPLE = ("cook", "girl", "king", "boy", "nurse")
COLOURS = ("red", "blue", "green", "white")
THINGS = ("bowl", "cup", "lamp", "box", "chair")
PLACES = ("kitchen", "garden", "tower", "attic")
TIMES = ("morning", "noon", "evening", "night")
ACTIONS = ("washed", "broke", "sold", "found")
SAME = {"washed": "cleaned", "broke": "smashed", "sold": "traded", "found": "discovered"}


def _sentiment_clause(rng: random.Random, positive: bool) -> str:
    negated = rng.random() < 0.35
    adverb = rng.choice(ADVERBS) if rng.random() < 0.5 else ""
    adjective = rng.choice(GOOD if positive != negated else BAD)
    return " ".join(f"the {rng.choice(SUBJECTS)} is {'not' if negated else ''} {adverb} {adjective}".split())


def _sst2(rng: random.Random):
    label = rng.randrange(2)
    yes, no = bool(label), not label
    plan = rng.choice(
        [
            [yes],
            [yes, "and", yes],
            [no, "but", yes],
            [no, "and", no, "but", yes],
            [no, "but", yes, "and", yes],
        ]
    )
    return (" ".join(p if isinstance(p, str) else _sentiment_clause(rng, p) for p in plan),), label


def _scene(rng):
    return {
        "who": rng.choice(PEOPLE),
        "action": rng.choice(ACTIONS),
        "colour": rng.choice(COLOURS),
        "thing": rng.choice(THINGS),
        "place": rng.choice(PLACES),
        "time": rng.choice(TIMES),
    }


def _other(rng, values, value):
    return rng.choice([v for v in values if v != value])


SLOTS = {"who": PEOPLE, "action": ACTIONS, "colour": COLOURS, "thing": THINGS, "place": PLACES, "time": TIMES}


def _say(s):
    return f"the {s['who']} {s['action']} the {s['colour']} {s['thing']} in the {s['place']}"


def _rte(rng):
    label = rng.randrange(2)
    s = _scene(rng)
    negated = rng.random() < 0.4
    fact = (label == 0) != negated
    neg = "not" if negated else ""
    kind = rng.randrange(2)
    if kind == 0:
        h = f"the {s['thing']} is {neg} {s['colour'] if fact else _other(rng, COLOURS, s['colour'])}"
    else:
        h = f"the {s['thing']} is {neg} in the {s['place'] if fact else _other(rng, PLACES, s['place'])}"
    return (_say(s), " ".join(h.split())), label


def _mnli(rng):
    label = rng.randrange(3)
    s = _scene(rng)
    kind = rng.choice(("colour", "place"))
    p = f"the {s['who']} {s['action']} the " + (
        f"{s['colour']} {s['thing']}" if kind == "colour" or (rng.random() < 0.5 and label != 1) else s["thing"]
    )
    has_colour = s["colour"] in p
    if kind == "place" or (has_colour and kind == "colour" and rng.random() < 0.3):
        p += f" in the {s['place']}"
    ask = kind if label != 1 else ("place" if kind == "colour" else "colour")
    if label == 1:
        p = f"the {s['who']} {s['action']} the " + (
            f"{s['colour']} {s['thing']}" if kind == "colour" else f"{s['thing']} in the {s['place']}"
        )
    values = SLOTS[ask]
    negated = rng.random() < 0.4
    fact = (label == 0) != negated if label != 1 else rng.random() < 0.5
    v = s[ask] if fact else _other(rng, values, s[ask])
    h = f"the {s['thing']} is {'not' if negated else ''} {'in the' if ask == 'place' else ''} {v}"
    return (p, " ".join(h.split())), label


def _qnli(rng):
    label = rng.randrange(2)
    s = _scene(rng)
    ask = rng.choice(("who", "colour", "place", "time"))
    q = {
        "who": f"who {s['action']} the {s['thing']} ?",
        "colour": f"what colour is the {s['thing']} ?",
        "place": f"where is the {s['thing']} ?",
        "time": f"when was the {s['thing']} {s['action']} ?",
    }[ask]
    rest = [k for k in ("who", "colour", "place", "time") if k != ask]
    shown = set(rng.sample(rest, rng.choice((1, 2))))
    if label == 0:
        shown.add(ask)
    else:
        shown.add(rng.choice([k for k in rest if k not in shown]))
    noun = f"{s['colour']} {s['thing']}" if "colour" in shown else s["thing"]
    t = f"the {s['who']} {s['action']} the {noun}" if "who" in shown else f"the {noun} was {s['action']}"
    if "place" in shown:
        t += f" in the {s['place']}"
    if "time" in shown:
        t += f" at {s['time']}"
    return (q, t), label


def _mrpc(rng):
    label = rng.randrange(2)
    s = _scene(rng)
    o = dict(s)
    if not label:
        k = rng.choice(("who", "action"))
        o[k] = _other(rng, SLOTS[k], s[k])
    a = f"the {s['who']} {s['action']} the {s['colour']} {s['thing']}"
    act = SAME[o["action"]] if rng.random() < 0.5 else o["action"]
    b = f"the {o['colour']} {o['thing']} was {act} by the {o['who']}"
    return (a, b), label


def _qqp(rng):
    label = rng.randrange(2)
    s = _scene(rng)
    o = dict(s)
    if not label:
        k = rng.choice(("thing", "place", "action"))
        o[k] = _other(rng, SLOTS[k], s[k])
    a = f"who {s['action']} the {s['colour']} {s['thing']} in the {s['place']} ?"
    b = f"by whom was the {o['colour']} {o['thing']} in the {o['place']} {SAME[o['action']]} ?"
    return (a, b), label


def _stsb(rng):
    s = _scene(rng)
    o = dict(s)
    shared = rng.randrange(6)
    keys = ["who", "action", "colour", "thing", "place"]
    for k in rng.sample(keys, 5 - shared):
        o[k] = _other(rng, SLOTS[k], s[k])
    return (_say(s), _say(o)), float(shared)


def _cola(rng):
    label = rng.randrange(2)
    n1, n2 = rng.random() < 0.5, rng.random() < 0.5
    who, other = rng.choice(PEOPLE), rng.choice(THINGS)
    verbs = ("wash", "break", "sell", "find")
    v = rng.choice(verbs)
    right = v if n1 else v + "s"
    wrong = v + "s" if n1 else v
    verb = right if label else wrong
    mid = f"near the {other}{'s' if n2 else ''}" if rng.random() < 0.7 else ""
    obj = f"the {rng.choice(COLOURS)} {rng.choice(THINGS)}"
    return (" ".join(f"the {who}{'s' if n1 else ''} {mid} {verb} {obj}".split()),), label


GENERATORS: dict[str, Callable] = {
    "sst2": _sst2,
    "rte": _rte,
    "mnli": _mnli,
    "qnli": _qnli,
    "mrpc": _mrpc,
    "qqp": _qqp,
    "stsb": _stsb,
    "cola": _cola,
}


def features_of(task: Task) -> Features:
    """The hub's feature types of a task."""
    label = Value("float32") if task.is_regression else ClassLabel(names=list(task.label_names))
    return Features({column: Value("string") for column in task.text_columns} | {"label": label, "idx": Value("int32")})


def sample_glue(task: str | Task, train: int = 2000, dev: int = 500, seed: int = 0) -> DatasetDict:
    """A sample task in the shape of a GLUE task."""
    task = get_glue_task(task)
    sizes = {"train": train} | dict.fromkeys(task.eval_splits, dev)
    rng = random.Random(f"{task.name} {seed}")
    seen: set[tuple] = set()
    splits = {}
    for split, size in sizes.items():
        columns = {column: [] for column in (*task.text_columns, "label", "idx")}
        for idx in range(size):
            for _ in range(1000):
                texts, label = GENERATORS[task.name](rng)
                if texts not in seen:
                    break
            else:
                raise BitlabError(f"the sample grammar of {task.name} has fewer than {sum(sizes.values())} examples.")
            seen.add(texts)
            for column, value in zip(columns, (*texts, label, idx), strict=True):
                columns[column].append(value)
        splits[split] = Dataset.from_dict(columns, features=features_of(task))
    return DatasetDict(splits)


def sample_squad(train: int = 2000, dev: int = 500, seed: int = 0) -> DatasetDict:
    raise NotImplementedError


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """Every word"""
    words = set()
    for task in GENERATORS:
        for rows in sample_glue(task, 1500, 100).values():
            for c in rows.column_names:
                if c not in ("label", "idx"):
                    words.update(w for t in rows[c] for w in t.split())
    return tuple(sorted(words))


def sample_tokenizer() -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = {word: i for i, word in enumerate([*special, *vocabulary()])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=128,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def sample_config(**overrides) -> BertConfig:
    return BertConfig(
        vocab_size=len(vocabulary()) + 5,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=256,
        max_position_embeddings=128,
        **({"initializer_range": 0.05} | overrides),
    )
