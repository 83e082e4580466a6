"""Data augmentation: words and their candidates, the table, its cache, kills, processes, and bad input."""

import json
import multiprocessing
import os
import random
import signal
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import SIZES, refused, silent, write_glue
from transformers import BertConfig, BertForMaskedLM, BertModel, BertTokenizer, GPT2Config, GPT2LMHeadModel

from bitlab import cli
from bitlab.data import augment as augment_module
from bitlab.data import rewriting
from bitlab.data.augment import augment, load_augmented
from bitlab.data.candidates import MaskedLM, read_vectors, replaceable
from bitlab.data.glue import load_glue
from bitlab.data.rewriting import Job, Settings, new_sentences
from bitlab.data.sample import vocabulary
from bitlab.data.tasks import TASKS, get_task
from bitlab.errors import BitlabError
from bitlab.experiments import Experiment, run, stage
from bitlab.models import load_masked_lm

# Angles on a circle: what is near what is plain to see. "the" is a stop word, "," no word, "Cat" comes a second time.
ANGLES = {"the": 1, ",": 2, "cat": 0, "dog": 10, "lion": 25, "cats": 45, "car": 90, "truck": 101, "bus": 115}
ANGLES["Cat"] = 200
RTE = "index\tsentence1\tsentence2\tlabel\n"
PAIRS = [
    ("The cat saw a dog.", "A Lion saw it.", "entailment"),
    ("A car, a truck and the bus", "My cats like the car", "not_entailment"),
    ("The lion's car is a BUS.", "It is.", "entailment"),
]


pytestmark = pytest.mark.usefixtures("here")


def write_vectors(path, vectors):
    path.write_text("".join(f"{word} {' '.join(map(str, vector))}\n" for word, vector in vectors.items()))
    return path


def circle(path):
    return write_vectors(path, {w: (np.cos(np.radians(a)), np.sin(np.radians(a))) for w, a in ANGLES.items()})


def random_vectors(path, words, seed=0):
    rng = np.random.default_rng(seed)
    return write_vectors(path, {word: rng.normal(size=5).round(4) for word in words})


def pairs(root, rows=PAIRS, name="train.tsv"):
    (root / "RTE").mkdir(parents=True, exist_ok=True)
    lines = (f"{n}\t{a}\t{b}\t{label}\n" for n, (a, b, label) in enumerate(rows))
    (root / "RTE" / name).write_text(RTE + "".join(lines))
    return root


@pytest.fixture
def inputs(tmp_path):
    """(data folder, vectors file)"""
    return pairs(tmp_path / "glue"), circle(tmp_path / "vectors.txt")


def table(folder):
    return (folder / "RTE" / "train.tsv").read_bytes()


ENGLISH = "[PAD] [UNK] [CLS] [SEP] [MASK] the a and it is my cat dog lion car truck bus saw like ##s . , ' s small"


def tiny_lm(folder, seed=0, positions=32, words=ENGLISH):
    """A random masked language model whose vocabulary has most words of PAIRS in one piece, "cats" in two."""
    torch.manual_seed(seed)
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text(words.replace(" ", "\n"))
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=positions).save_pretrained(folder)
    sizes = SIZES | {"vocab_size": len(words.split()), "max_position_embeddings": positions}
    BertForMaskedLM(BertConfig(**sizes, initializer_range=0.5)).save_pretrained(folder)
    return folder


# ------------------------------------------------------------------------------------- words and candidates


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("The cat sat on the mat.", ["cat", "sat", "mat"]),
        ("John's well-known U.S. friends don't pay $1,200 in 1990s money!", "John well-known friends don't pay money"),
        ("'Quoted' \"words\", (brackets)", ["Quoted", "words", "brackets"]),
        ("It is what it is .", []),
        ("Ça été naïve", ["Ça", "été", "naïve"]),
        ("Dominick 's h1n1 do n't x", ["Dominick", "h1n1"]),
    ],
)
def test_which_words_may_be_replaced(sentence, words):
    found = replaceable(sentence)
    assert [word[0] for word in found] == (words.split() if isinstance(words, str) else words)
    assert all(sentence[word.start() : word.end()] == word[0] for word in found)


def test_neighbours_in_batches_equal_a_slow_count(tmp_path, monkeypatch):
    words = [f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(60)]
    path = random_vectors(tmp_path / "vectors.txt", words)
    rows = {line.split()[0]: np.array(line.split()[1:], float) for line in path.read_text().splitlines()}
    monkeypatch.setattr("bitlab.data.candidates.COSINES", 7 * 60)
    found = read_vectors(path).neighbours([*map(str.title, words), "unknown"], 4)
    assert found.keys() == set(words)
    for word in words:
        cosine = {w: v @ rows[word] / np.linalg.norm(v) for w, v in rows.items() if w != word}
        assert found[word] == sorted(cosine, key=lambda w: -cosine[w])[:4]
    assert {len(near) for near in read_vectors(path).neighbours(words, 99).values()} == {59}


def test_each_word_is_replaced_with_the_probability():
    sentence = "cat dog lion car unknown"
    choices = {"cat": ["a1", "a2", "a3"], "dog": ["bb"], "lion": ["cc"], "car": ["dd"]}
    slots = [(word, choices.get(word[0], [])) for word in replaceable(sentence)]
    changed, chosen, runs = Counter(), Counter(), 4000
    for seed in range(runs):
        for new in new_sentences(sentence, slots, Settings(1), random.Random(seed)):
            pairs_of_words = list(zip(sentence.split(), new.split(), strict=True))
            changed.update(old for old, word in pairs_of_words if old != word)
            chosen.update(word for old, word in pairs_of_words if old == "cat" != word)
    assert set(changed) == set(choices) and set(chosen) == set(choices["cat"])
    assert all(abs(count / runs - 0.4) < 0.035 for count in changed.values()), changed
    assert all(abs(count / chosen.total() - 1 / 3) < 0.05 for count in chosen.values()), chosen
    always = new_sentences(sentence, slots, Settings(50, probability=1.0), random.Random(0))
    assert sorted(always) == [f"a{i} bb cc dd unknown" for i in (1, 2, 3)]  # and no sentence twice


# ------------------------------------------------------------------------------------------------ the table


def test_the_table(inputs):
    folder, record = augment("rte", *inputs, report=silent)
    assert folder.parent == Path("runs") and folder.name.startswith("augment-rte-")
    rows = load_glue("rte", folder)["train"]
    texts = list(zip(rows["sentence1"], rows["sentence2"], strict=True))
    names = rows.features["label"].names
    assert [(*t, names[label]) for t, label in zip(texts[:3], rows["label"][:3], strict=True)] == PAIRS
    assert len(set(texts)) == len(texts) == 3 + record["new"] and record["original"] == 3

    near = read_vectors(inputs[1]).neighbours(["cat", "dog", "lion", "cats", "car", "truck", "bus"], 15)
    origins = [int(line.split("\t")[0]) for line in table(folder).decode().splitlines()[1:]]
    assert origins[3:] == sorted(origins[3:]) and set(origins[3:]) == {0, 1, 2}
    for origin, new, label in zip(origins[3:], texts[3:], rows["label"][3:], strict=True):
        *old, word = PAIRS[origin]
        assert names[label] == word
        (column,) = [c for c in (0, 1) if new[c] != old[c]]  # each sentence of a pair in rows of its own
        for before, after in zip(old[column].split(), new[column].split(), strict=True):
            before, after = before.strip(".,").removesuffix("'s"), after.strip(".,").removesuffix("'s")
            assert after == before or after.lower() in near[before.lower()]
            assert after.isupper() == before.isupper() or before in ("A", "a")
    assert any("BUS" not in a and a.endswith(("CAR.", "TRUCK.")) for a, _ in texts)
    found = {p.name for p in folder.rglob("*") if p.is_file()}
    assert found == {".lock", "augment.json", "experiment.json", "train.tsv"}


@pytest.mark.parametrize("task", TASKS)
def test_every_layout_is_written_and_read(task, tmp_path):
    vectors = random_vectors(tmp_path / "vectors.txt", vocabulary()[5:])
    data = write_glue(tmp_path / "data", task, {"train": load_glue(task, "sample")["train"].select(range(60))})
    folder, record = augment(task, data, vectors, Settings(tries=1), report=silent)
    rows, before = load_glue(task, folder)["train"], load_glue(task, data)["train"]
    assert rows.features == before.features and record["original"] == len(before) < len(rows)
    columns = get_task(task).text_columns
    for column in (*columns, "label"):
        assert rows[: len(before)][column] == before[:][column]
    lines = (folder / get_task(task).folder / "train.tsv").read_text().splitlines()
    origins = [int(line.split("\t")[0]) for line in lines[task != "cola" :]]  # CoLA has no header
    labels = before["label"][:]
    assert [labels[origin] for origin in origins] == rows["label"][:]


def test_a_new_row_that_is_there_already_is_dropped(tmp_path):
    rows = [("cat", "dog", "entailment"), ("dog", "dog", "not_entailment"), ("cat", "cat", "entailment")]
    vectors = write_vectors(tmp_path / "vectors.txt", {"cat": (1, 0), "dog": (1, 0.1)})
    settings = Settings(20, probability=0.9)
    folder, record = augment("rte", pairs(tmp_path / "glue", rows), vectors, settings, report=silent)
    assert record["new"] == 1  # of the four pairs of two words three are there
    assert table(folder).decode().splitlines()[4:] == ["1\tdog\tcat\tnot_entailment"]


def test_tabs_and_line_breaks_inside_a_text_become_spaces(inputs, monkeypatch):
    odd = load_glue("rte", inputs[0])["train"].map(lambda row: {"sentence1": row["sentence1"] + "\tx\ny"})
    monkeypatch.setattr(augment_module, "load_glue", lambda *_: {"train": odd})
    folder, _ = augment("rte", "any", inputs[1], report=silent)
    assert load_glue("rte", folder)["train"][0]["sentence1"] == PAIRS[0][0] + " x y"


# ------------------------------------------------------------------- same, again, cached, killed, in processes


def test_a_table_is_found_by_the_content_of_its_inputs(inputs, tmp_path, monkeypatch):
    folder, record = augment("rte", *inputs, report=silent)
    made = (folder / "RTE" / "train.tsv").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(augment_module, "make_parts", None)  # would fail if called
        renamed = inputs[1].rename(tmp_path / "renamed.txt")
        moved = inputs[0].rename(tmp_path / "moved")
        assert augment("rte", moved, renamed, report=silent) == (folder, record)
        assert (folder / "RTE" / "train.tsv").stat().st_mtime_ns == made
    places = {folder}
    places.add(augment("rte", moved, renamed, Settings(30, seed=1), report=silent)[0])
    renamed.write_text(renamed.read_text().replace("car ", "van "))  # same name, other content
    places.add(augment("rte", moved, renamed, report=silent)[0])
    pairs(moved, PAIRS[:2])
    places.add(augment("rte", moved, renamed, report=silent)[0])
    assert len(places) == 4

    with pytest.raises(BitlabError, match="belongs to another experiment: its program"):
        monkeypatch.setattr(augment_module, "PROGRAM", 0)  # another program makes no stale table
        augment("rte", moved, renamed, output=max(places, key=lambda p: p.stat().st_mtime_ns), report=silent)


def test_another_table_in_the_output_folder_is_refused_and_kept(inputs, tmp_path):
    out = tmp_path / "out"
    augment("rte", *inputs, output=out, report=silent)
    before = table(out)
    with pytest.raises(BitlabError, match="its seed is 0, this one's 9"):
        augment("rte", *inputs, Settings(30, seed=9), output=out, report=silent)
    with pytest.raises(BitlabError, match="holds other files"):
        augment("rte", *inputs, output=inputs[0], report=silent)  # the original data are never written over
    assert table(out) == before and sorted(p.name for p in inputs[0].rglob("*")) == ["RTE", "train.tsv"]


def killed_after_five(command):
    """A process that inherits this one's imports and is gone in the middle of its sixth part."""
    write, parts = rewriting.Job.write, []

    def write_five(self, part, rows):
        parts.append(part)
        if len(parts) > 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(self, part, rows)

    rewriting.CHUNK, rewriting.Job.write = 1, write_five
    cli.main(command)


def test_a_killed_run_goes_on(inputs, tmp_path, monkeypatch):
    many, out = pairs(tmp_path / "many", PAIRS * 3), tmp_path / "out"
    command = ["augment", "rte", "--data", str(many), "--vectors", str(inputs[1]), "--output", str(out)]
    process = multiprocessing.get_context("fork").Process(target=killed_after_five, args=(command,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(list((out / "parts").glob("*.json"))) == 5 and not (out / "RTE").exists()

    written, write = [], Job.write
    monkeypatch.setattr(rewriting, "CHUNK", 1)
    monkeypatch.setattr(Job, "write", lambda self, part, rows: written.append(part) or write(self, part, rows))
    assert cli.main(command) == 0
    assert len(written) == 4 and not (out / "parts").exists()
    whole, _ = augment("rte", many, inputs[1], output=tmp_path / "whole", report=silent)
    assert table(out) == table(whole)


def test_the_table_depends_on_the_seed_and_not_on_the_number_of_processes(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(rewriting, "CHUNK", 1)
    options = {"masked_lm": partial(load_masked_lm, tiny_lm(tmp_path / "lm")), "report": silent}
    one, two, other = (
        augment("rte", *inputs, Settings(5, seed=seed), processes=processes, output=tmp_path / str(number), **options)
        for number, (seed, processes) in enumerate(((3, 1), (3, 2), (4, 1)))
    )
    assert table(one[0]) == table(two[0]) != table(other[0])


def die_in_a_worker():
    if multiprocessing.parent_process() is not None:
        os._exit(1)


def test_a_process_that_is_killed_is_one_line(inputs, tmp_path):
    job = Job(Settings(3), {"cat": ["dog"]})
    with pytest.raises(BitlabError, match="the same command goes on"):
        rewriting.make_parts(job, [("cat",)] * 200, die_in_a_worker, 2, tmp_path / "parts", silent)


# ------------------------------------------------------------------------------- the masked language model


def expected(lm, sentence, word, count):
    """The model's best whole words in the word's place, one sentence at a time and without the code under test."""
    masked = sentence.replace(word, "[MASK]", 1)
    ids = lm.tokenizer(masked, sentence, return_tensors="pt")
    at = ids["input_ids"][0].tolist().index(lm.tokenizer.mask_token_id)
    with torch.no_grad():
        order = lm.model(**ids).logits[0, at].argsort(descending=True).tolist()
    names = [lm.tokenizer.convert_ids_to_tokens(piece) for piece in order]
    return [name for name in names[: 4 * count] if name.isalpha() and len(name) > 1 and name != word.lower()][:count]


def test_single_piece_words_by_the_model_and_others_by_vectors(inputs, tmp_path):
    lm = MaskedLM(*load_masked_lm(tiny_lm(tmp_path / "lm")))
    assert lm.is_single_piece("Cat") and not lm.is_single_piece("cats") and not lm.is_single_piece("zebra")
    sentences = ["The cat saw a zebra and a dog.", "My cats like the Lion", "small dog"]
    found = lm.candidates(sentences, 3)
    single = [(0, "cat"), (0, "saw"), (0, "dog"), (1, "like"), (1, "Lion"), (2, "small"), (2, "dog")]
    assert found == {
        (sentences[s], sentences[s].index(word)): expected(lm, sentences[s], word, 3) for s, word in single
    }
    assert all(len(words) == 3 for words in found.values())

    job = Job(Settings(200, probability=1.0, candidates=3), {"cats": ["van"], "cat": ["never"]}, lm)
    new = [texts[0] for _, texts in job.new_rows([(7, ("My cats like the Lion",))])]
    like, lion = (found[sentences[1], sentences[1].index(word)] for word in ("like", "Lion"))
    assert set(new) == {f"My van {a} the {b.capitalize()}" for a in like for b in lion}


def test_padding_on_the_left_changes_no_prediction(tmp_path):
    """A tokenizer may pad on the left: what the model says of a sentence still hangs on that sentence alone."""
    lm = MaskedLM(*load_masked_lm(tiny_lm(tmp_path / "lm")))
    sentences = ["the cat saw it", "my dog and the small cat like the car and the truck"]
    expected_words = lm.candidates(sentences[:1], 9)
    lm.tokenizer.padding_side = "left"
    found = lm.candidates(sentences, 9)
    assert {key: found[key] for key in expected_words} == expected_words


def test_a_sentence_longer_than_the_model(tmp_path):
    lm = MaskedLM(*load_masked_lm(tiny_lm(tmp_path / "lm", positions=20)))
    sentence = "cat " + "saw " * 40 + "dog"
    found = lm.candidates([sentence], 3)
    assert len(found[sentence, 0]) == 3 and found[sentence, sentence.index("dog")] == []


def test_a_models_digest_is_its_content(tmp_path):
    digests = [MaskedLM(*load_masked_lm(tiny_lm(tmp_path / n, s))).digest() for n, s in (("a", 0), ("b", 0), ("c", 1))]
    assert digests[0] == digests[1] != digests[2]
    lm = MaskedLM(*load_masked_lm(tmp_path / "a"))
    lm.candidates(["the cat saw it"], 3)
    assert lm.digest() == digests[0]


# ------------------------------------------------------------------------------------------- in experiments


def test_distillation_trains_on_the_table_and_the_teacher_does_not(tmp_path, monkeypatch):
    data = pairs(pairs(tmp_path / "glue", PAIRS * 8), PAIRS * 8, "dev.tsv")
    folder, record = augment("rte", data, circle(tmp_path / "vectors.txt"), report=silent)
    seen = []
    trainer = stage.DistillationTrainer

    def spy(model, teachers, *args, train_dataset=None, **options):
        if train_dataset is not None:
            seen.append((bool(teachers), len(train_dataset)))
        return trainer(model, teachers, *args, train_dataset=train_dataset, **options)

    monkeypatch.setattr(stage, "DistillationTrainer", spy)
    monkeypatch.setenv("BITLAB_COMPILE", "off")
    options = {"data": str(data), "schedule": "W1A1", "epochs": 1, "batch_size": 8, "teacher_epochs": 1}
    experiment = Experiment("rte", **options, augment=str(folder / "RTE" / "train.tsv"))
    result = run(experiment, tmp_path / "run", report=silent)
    assert seen == [(False, 24), (True, 24 + record["new"])]
    assert "-augmented-" in experiment.folder_name and "augmented" not in Experiment("rte", **options).folder_name
    assert [stage["steps"] for stage in result["stages"]][1] == 3  # an epoch of the original rows: the same budget
    assert result["config"]["examples"] == {"train": 24, "augmented": 24 + record["new"], "validation": 24}
    known = result["config"]["augment"]
    assert known["name"] == "train.tsv" and known["tries"] == 30 and len(known["table"]) == 16
    assert str(tmp_path) not in json.dumps(result)


def test_a_table_that_changed_is_another_experiment(inputs):
    folder, _ = augment("rte", *inputs, report=silent)
    _, before = load_augmented(get_task("rte"), folder)
    with open(folder / "RTE" / "train.tsv", "a") as file:
        file.write("0\tx\ty\tentailment\n")
    rows, after = load_augmented(get_task("rte"), folder)
    assert before["table"] != after["table"] and rows[-1]["sentence2"] == "y"


# ----------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("cat 1 2\n", "holds 1 words"),
        ("cat 1 2\ndog 1 2 3\n", "line 2: 3 numbers"),
        ("cat 1 2\ndog 1 x\n", "line 2: 'x' is no number"),
        ("cat 1 2\ndog 1 nan\n", "line 2: 'nan' is no number"),
        ("cat 1 2\nd\udcffg 1 2\n", "line 2: not UTF-8 text"),
        ("chien 1 2\nchat 2 1\n", "none of the 11 words of RTE"),
        (None, "no word vectors at"),
    ],
)
def test_bad_vectors(inputs, tmp_path, content, says):
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(BitlabError, match=says):
        augment("rte", inputs[0], path, report=silent)


def test_vectors_with_a_header_words_with_spaces_no_words_and_words_that_come_again(tmp_path):
    assert read_vectors(circle(tmp_path / "circle.txt")).words == [w for w in ANGLES if w not in (",", "Cat")][:8]
    path = tmp_path / "vectors.txt"
    path.write_text("3 2\ncat 1 2\n. . . 1 1\nat me@here.com 1 1\ndog 2 1\nnought 0 0\n")
    assert read_vectors(path).words == ["cat", "dog"]


@pytest.mark.parametrize(
    ("task", "options", "says"),
    [
        ("mnli", {}, "not augmented by default"),
        ("cola", {}, "no CoLA files in"),
        ("rte", {"processes": 0}, "processes is 0"),
        ("rte", {"masked_lm": partial(load_masked_lm, "sample")}, "predicts no words"),
    ],
)
def test_bad_arguments(inputs, task, options, says):
    with pytest.raises(BitlabError, match=says):
        augment(task, *inputs, report=silent, **options)


def test_no_train_split(inputs):
    (inputs[0] / "RTE" / "train.tsv").rename(inputs[0] / "RTE" / "dev.tsv")
    with pytest.raises(BitlabError, match="RTE has no train split"):
        augment("rte", *inputs, report=silent)


def test_bad_masked_language_models(inputs, tmp_path):
    def says(what):
        with pytest.raises(BitlabError, match=what):
            augment("rte", *inputs, masked_lm=partial(load_masked_lm, other), report=silent)

    other = tiny_lm(tmp_path / "other")  # its tokenizer has 25 words
    BertForMaskedLM(BertConfig(**SIZES | {"vocab_size": 900})).save_pretrained(other)
    says("has 25 words, its model 900: save the tokenizer")
    BertModel(BertConfig(**SIZES | {"vocab_size": 25})).save_pretrained(other)
    says("is no masked language model")
    GPT2LMHeadModel(GPT2Config(vocab_size=25, n_embd=16, n_layer=1, n_head=2)).save_pretrained(other)
    says("can't be loaded")
    tiny_lm(other, words="[PAD] [UNK] [CLS] [SEP] [MASK] le la chat chien")
    says("none of the 11 words of RTE is one piece")


def test_bad_tables_for_an_experiment(capsys, inputs, tmp_path):
    data = pairs(pairs(tmp_path / "glue", PAIRS * 8), PAIRS * 8, "dev.tsv")
    command = ("glue", "rte", "--data", data, "--augment")
    for nothing in (tmp_path / "nowhere", inputs[1]):  # the second is a file, but no table
        assert "no augmented RTE at" in refused(capsys, *command, nothing)
    assert "exclude each other" in refused(capsys, *command, data, "--train-examples", "3")
    (tmp_path / "wrong" / "RTE").mkdir(parents=True)
    (tmp_path / "wrong" / "RTE" / "train.tsv").write_text(RTE + "0\ta\tb\tmaybe\n")
    assert "line 2: label 'maybe'" in refused(capsys, *command, tmp_path / "wrong")
