"""Sample tasks: every GLUE task's and SQuAD's shape, in sentences from a small grammar.

They exist so that every notebook runs anywhere in seconds and still shows its effect. A BERT of two layers learns
each of them from scratch in a few hundred steps, and loses what binarization takes away, because the answer hangs
on how words combine and not on which words are there. Everything is drawn from one `random.Random`, so the same
arguments give the same sentences on every machine.
"""

import functools
import random
from collections.abc import Callable, Iterator

from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, PreTrainedTokenizerFast

from bitlab.data.sources import features
from bitlab.data.tasks import SQUAD, Task, get_glue_task
from bitlab.errors import BitlabError

SUBJECTS = ("film", "script", "cast", "plot", "story", "music", "ending", "hero", "camera", "dialogue")
GOOD = ("clever", "lovely", "funny", "warm", "bright", "fresh")
BAD = ("dull", "slow", "clumsy", "cold", "weak", "stale")
DEGREES = ("very", "quite", "really", "rather")
PEOPLE = ("cook", "girl", "king", "boy", "nurse")
THINGS = ("bowl", "cup", "lamp", "chair", "vase", "basket")
ACTIONS = {"wash": "washed", "fix": "fixed", "sell": "sold", "find": "found"}
MEETINGS = ("helped", "thanked", "called")
MOODS = ("old", "young", "tall", "tired", "happy")
LOOKS = ("new", "big", "wooden")
HOURS = ("noon", "dusk", "night")
WEATHERS = ("rain", "sun", "dark")
# Three colours and three places, not more: what a model must learn here is to compare two words, from scratch.
COLOURS = ("red", "blue", "green")
PLACES = ("kitchen", "garden", "tower")
OTHER_WORDS = "and at best but by can colour did how in is leave left near not the to was way what when where who . ?"

Texts = tuple[str, ...]


def _other(rng: random.Random, words: tuple[str, ...], word: str) -> str:
    return rng.choice([w for w in words if w != word])


def _words(*parts: str) -> str:
    return " ".join(" ".join(parts).split())


def _opinion(rng: random.Random, good: bool) -> str:
    """One clause with that polarity: "the plot is not really dull"."""
    negated = rng.random() < 0.35
    degree = rng.choice(DEGREES) if rng.random() < 0.5 else ""
    adjective = rng.choice(GOOD if good != negated else BAD)
    return _words("the", rng.choice(SUBJECTS), "is", "not" if negated else "", degree, adjective)


def sst2(rng: random.Random) -> tuple[Texts, int]:
    """Sentiment of one to three clauses: "not" flips a clause, after "but" the rest decides, "and" joins equals."""
    label = rng.randrange(2)
    yes, no = bool(label), not label
    plans = ([yes], [yes, "and", yes], [no, "but", yes], [no, "and", no, "but", yes], [no, "but", yes, "and", yes])
    return (_words(*(part if isinstance(part, str) else _opinion(rng, part) for part in rng.choice(plans))),), label


def cola(rng: random.Random) -> tuple[Texts, int]:
    """Does the verb agree with its subject? The nearer noun may be of the other number."""
    label, plural, near_plural = rng.randrange(2), rng.random() < 0.5, rng.random() < 0.5
    subject = rng.choice(PEOPLE) + "s" * plural
    nearer = f"near the {rng.choice(THINGS)}{'s' * near_plural}" if rng.random() < 0.7 else ""
    verb = rng.choice(("wash", "sell", "find"))
    verb += "" if plural == bool(label) else "es" if verb == "wash" else "s"
    return (_words("the", subject, nearer, verb, "the", rng.choice(COLOURS), rng.choice(THINGS)),), label


def _fact(rng: random.Random, thing: str, kind: str, value: str, true: bool, negations: float) -> str:
    """A sentence on a thing's colour or place that is true or false where the value is `value`."""
    negated = rng.random() < negations
    values = COLOURS if kind == "colour" else PLACES
    shown = value if true != negated else _other(rng, values, value)
    return _words("the", thing, "is", "not" if negated else "", "in the" if kind == "place" else "", shown)


def _scene(rng: random.Random, thing: str, untold: set[str]) -> tuple[dict[str, str], str]:
    """A thing's colour and place, and a sentence that tells them, except for what stays `untold`."""
    scene = {"colour": rng.choice(COLOURS), "place": rng.choice(PLACES)}
    look = rng.choice(LOOKS) if "colour" in untold else scene["colour"]
    where = rng.choice(WEATHERS) if "place" in untold else scene["place"]
    return scene, f"the {rng.choice(PEOPLE)} {rng.choice([*ACTIONS.values()])} the {look} {thing} in the {where}"


def _entails(rng: random.Random, label: int) -> tuple[Texts, int]:
    thing, kind = rng.choice(THINGS), rng.choice(("colour", "place"))
    neutral = label == 1
    untold = {kind} if neutral else {"colour", "place"} - {kind} if rng.random() < 0.3 else set()
    scene, premise = _scene(rng, thing, untold)
    true = label == 0 or (neutral and rng.random() < 0.5)
    return (premise, _fact(rng, thing, kind, scene[kind], true, 0.15)), label


def mnli(rng: random.Random) -> tuple[Texts, int]:
    """A scene tells a thing's colour, its place or both; what it does not tell is neutral, "not" flips the rest."""
    return _entails(rng, rng.randrange(3))


def rte(rng: random.Random) -> tuple[Texts, int]:
    """As mnli, of scenes that tell what the second sentence claims: does it follow, or is it false?"""
    texts, label = _entails(rng, rng.choice((0, 2)))
    return texts, label // 2


def qnli(rng: random.Random) -> tuple[Texts, int]:
    """Does the sentence hold the answer to the question: who, which colour, where or when?"""
    label, thing, verb = rng.randrange(2), rng.choice(THINGS), rng.choice([*ACTIONS])
    kinds = ("who", "colour", "place", "hour")
    asked = rng.choice(kinds)
    told = set(rng.sample([k for k in kinds if k != asked], rng.choice((1, 2)) + label)) | (
        {asked} if not label else set()
    )
    question = {
        "who": f"who did {verb} the {thing} ?",
        "colour": f"what colour is the {thing} ?",
        "place": f"where was the {thing} ?",
        "hour": f"when was the {thing} {ACTIONS[verb]} ?",
    }[asked]
    noun = _words("the", rng.choice(COLOURS) if "colour" in told else "", thing)
    act = f"the {rng.choice(PEOPLE)} {ACTIONS[verb]} {noun}" if "who" in told else f"{noun} was {ACTIONS[verb]}"
    place = f"in the {rng.choice(PLACES)}" if "place" in told else ""
    hour = f"at {rng.choice(HOURS)}" if "hour" in told else ""
    return (question, _words(act, place, hour)), label


def mrpc(rng: random.Random) -> tuple[Texts, int]:
    """Who did it to whom? The second sentence, mostly passive, keeps the roles or swaps them."""
    label = rng.randrange(2)
    a, b = rng.sample(PEOPLE[:3], 2)
    mood = rng.choice(MOODS)
    named = {a: f"the {mood} {a}", b: f"the {_other(rng, MOODS, mood)} {b}"}
    meeting, place = rng.choice(MEETINGS), f"in the {rng.choice(PLACES)}"
    doer, other = (a, b) if label else (b, a)
    if rng.random() < 0.2:
        second = f"{named[doer]} {meeting} {named[other]} {place}"
    else:
        second = f"{named[other]} was {meeting} by {named[doer]} {place}"
    return (f"{named[a]} {meeting} {named[b]} {place}", second), label


def qqp(rng: random.Random) -> tuple[Texts, int]:
    """Two ways to ask for advice: duplicates, or the second is about another deed with another thing."""
    label = rng.randrange(2)
    verbs, things = ("wash", "fix", "sell"), THINGS[:3]
    verb, thing = rng.choice(verbs), rng.choice(things)
    verb2, thing2 = (verb, thing) if label else (_other(rng, verbs, verb), _other(rng, things, thing))
    who, look, place, hour = rng.choice(PEOPLE), rng.choice(LOOKS + COLOURS), rng.choice(PLACES), rng.choice(HOURS)
    question = f"how can the {who} {verb} the {look} {thing} in the {place} ?"
    return (question, f"what is the best way to {verb2} the {look} {thing2} in the {place} at {hour} ?"), label


def stsb(rng: random.Random) -> tuple[Texts, float]:
    """Two scenes; of 5 points, 2 are for the same actor, 2 for the same object, 1 for leaving nothing out."""
    parts = {"actor": (MOODS[:3], PEOPLE[:3]), "object": (COLOURS, THINGS[:3])}
    first, second, score = {}, {}, 0
    for part, groups in parts.items():
        first[part] = [rng.choice(words) for words in groups]
        same = rng.random() < 0.5
        second[part] = first[part] if same else [_other(rng, *pair) for pair in zip(groups, first[part], strict=True)]
        score += 2 * same
    complete = rng.random() < 0.5
    action, setting = rng.choice([*ACTIONS.values()]), f"in the {rng.choice(PLACES)} at {rng.choice(HOURS)}"
    texts = [f"the {' '.join(s['actor'])} {action} the {' '.join(s['object'])}" for s in (first, second)]
    return (_words(texts[0], setting), _words(texts[1], setting if complete else "")), float(score + complete)


GENERATORS: dict[str, Callable[[random.Random], tuple[Texts, int | float]]] = {
    generator.__name__: generator for generator in (cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte)
}


def _unique(make: Callable, seed: str, sizes: dict[str, int]) -> Iterator[tuple[str, int, tuple]]:
    """(split, index in it, example) with no text twice, so that dev is unseen; classes stay as balanced as drawn."""
    rng = random.Random(seed)
    seen = set()
    for split, size in sizes.items():
        for index in range(size):
            example = next((e for e in (make(rng) for _ in range(1000)) if e[0] not in seen), None)
            if example is None:
                raise BitlabError(f"the sample grammar has no {sum(sizes.values())} different examples: ask for fewer.")
            seen.add(example[0])
            yield split, index, example


def sample_glue(task: str | Task, train: int = 2000, dev: int = 500, seed: int = 0) -> DatasetDict:
    """A sample task in the shape of a GLUE task: its columns, label set and splits.

    Args:
        task: "cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli" or "rte"; what each asks is told by the function of
            that name in this module.
        train, dev: examples in `train` and in each evaluation split; no text is in two of them.
        seed: the same seed gives the same examples everywhere.
    Raises:
        BitlabError: for an unknown task, or for more examples than the grammar has.
    """
    task = get_glue_task(task)
    sizes = {"train": train} | dict.fromkeys(task.eval_splits, dev)
    names = (*task.text_columns, "label", "idx")
    rows: dict[str, list[dict]] = {split: [] for split in sizes}
    for split, index, (texts, label) in _unique(GENERATORS[task.name], f"{task.name} {seed}", sizes):
        rows[split].append(dict(zip(names, (*texts, label, index), strict=True)))
    return DatasetDict({s: Dataset.from_list(part, features=features(task)) for s, part in rows.items()})


def _told(rng: random.Random, who: str, kind: str) -> tuple[str, str, str]:
    """(question, beginning of the sentence that answers it, answer)."""
    verb = rng.choice([*ACTIONS])
    return {
        "where": (f"where is the {who} ?", f"the {who} is in ", f"the {rng.choice(PLACES)}"),
        "when": (f"when did the {who} leave ?", f"the {who} left at ", rng.choice(HOURS)),
        "how": (f"how is the {who} ?", f"the {who} is ", rng.choice(MOODS)),
        "what": (
            f"what did the {who} {verb} ?",
            f"the {who} {ACTIONS[verb]} ",
            f"the {rng.choice(COLOURS)} {rng.choice(THINGS)}",
        ),
    }[kind]


def squad(rng: random.Random) -> tuple[Texts, tuple[str, int]]:
    """Three to five facts on different people, a question on one; the answer is (text, first character)."""
    kinds = ["where", "when", "how", "what"]
    count = rng.randint(3, 5)
    told = rng.sample([*kinds, rng.choice(kinds)] if count == 5 else kinds, count)
    facts = [_told(rng, who, kind) for who, kind in zip(rng.sample(PEOPLE, count), told, strict=True)]
    asked = rng.randrange(count)
    question, beginning, answer = facts[asked]
    sentences = [f"{beginning}{answer} ." for _, beginning, answer in facts]
    start = sum(len(sentence) + 1 for sentence in sentences[:asked]) + len(beginning)
    return (question, " ".join(sentences)), (answer, start)


def sample_squad(train: int = 2000, dev: int = 500, seed: int = 0) -> DatasetDict:
    """Paragraphs and questions in SQuAD's shape; arguments and errors as for `sample_glue`."""
    rows: dict[str, list[dict]] = {"train": [], "validation": []}
    sizes = {"train": train, "validation": dev}
    for split, index, ((question, context), (text, start)) in _unique(squad, f"squad {seed}", sizes):
        answers = {"text": [text], "answer_start": [start]}
        ids = {"id": f"sample-{split}-{index}", "title": "Sample"}
        rows[split].append(ids | {"context": context, "question": question, "answers": answers})
    return DatasetDict({s: Dataset.from_list(part, features=features(SQUAD)) for s, part in rows.items()})


SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """Special tokens, then every word of the grammar in alphabetical order."""
    groups = (SUBJECTS, GOOD, BAD, DEGREES, PEOPLE, THINGS, MEETINGS, MOODS, LOOKS, HOURS, WEATHERS, COLOURS, PLACES)
    words = {word for group in (*groups, OTHER_WORDS.split(), ACTIONS, ACTIONS.values()) for word in group}
    words |= {f"{noun}s" for noun in PEOPLE + THINGS} | {"washes", "sells", "finds"}
    return (*SPECIAL, *sorted(words))


def sample_tokenizer() -> PreTrainedTokenizerFast:
    """A BERT-style tokenizer with one token a word: [CLS] A [SEP] B [SEP], lower case, token types 0 and 1."""
    ids = {word: i for i, word in enumerate(vocabulary())}
    backend = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    named = {f"{token[1:-1].lower()}_token": token for token in SPECIAL}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=128, model_input_names=inputs, **named)


def sample_config(**settings) -> BertConfig:
    """The sample model: BERT with 2 layers, width 128, 2 heads, FFN 256, at most 128 positions.

    Without dropout and with larger initial weights than BERT's 0.02, so that it learns to compare words across two
    sentences in a few hundred steps from scratch. `settings` are entries of `BertConfig`.
    """
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
    habits = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.08}
    limits = {"vocab_size": len(vocabulary()), "max_position_embeddings": 128}
    return BertConfig(**(sizes | habits | limits | settings))
