"""The sample tasks: shape, determinism, and that a small model learns them for the right reason."""

from collections import Counter

import pytest
import torch
from tiny_models import python
from transformers import AutoTokenizer, DataCollatorWithPadding

from bitlab.data.glue import encode
from bitlab.data.metrics import glue_metrics
from bitlab.data.sample import BAD, GOOD, sample_glue, sample_squad, sample_tokenizer, vocabulary
from bitlab.data.sources import features
from bitlab.data.tasks import SQUAD, TASKS
from bitlab.errors import BitlabError
from bitlab.models import load_model


def texts(task, rows):
    return [tuple(row[column] for column in TASKS[task].text_columns) for row in rows]


@pytest.mark.parametrize("task", TASKS)
def test_shape_of_every_task(task):
    splits = sample_glue(task)
    assert list(splits) == ["train", *TASKS[task].eval_splits]
    assert [rows.num_rows for rows in splits.values()] == [2000] + [500] * len(TASKS[task].eval_splits)
    assert all(rows.features == features(TASKS[task]) for rows in splits.values())
    everything = [text for rows in splits.values() for text in texts(task, rows)]
    assert len(set(everything)) == len(everything)
    assert {word for text in everything for part in text for word in part.split()} <= set(vocabulary())


@pytest.mark.parametrize("task", TASKS)
def test_labels_are_balanced(task):
    labels = sample_glue(task)["train"]["label"][:]
    if task == "stsb":
        assert set(labels) == {0.0, 1.0, 2.0, 3.0, 4.0, 5.0}
    else:
        share = 1 / TASKS[task].num_labels
        assert all(abs(count / 2000 - share) < 0.06 for count in Counter(labels).values())


FINGERPRINT = """
import hashlib, json
from bitlab.data.sample import sample_glue, sample_squad, vocabulary
from bitlab.data.tasks import TASKS
rows = {task: sample_glue(task, 20, 5)["train"].to_list() for task in TASKS}
rows["squad"] = sample_squad(20, 5)["train"].to_list()
print(hashlib.sha256(json.dumps([rows, vocabulary()]).encode()).hexdigest())
"""


def test_same_seed_same_sentences_in_another_process(capsys):
    exec(FINGERPRINT, {})
    assert capsys.readouterr().out == python("-c", FINGERPRINT, PYTHONHASHSEED="1")
    assert sample_glue("rte", 20, 5)["train"].to_list() != sample_glue("rte", 20, 5, seed=1)["train"].to_list()


def test_more_examples_than_the_grammar_has():
    with pytest.raises(BitlabError, match="ask for fewer"):
        sample_glue("rte", train=100_000)


def test_no_word_gives_the_sentiment_away():
    rows = sample_glue("sst2")["train"]
    for word in (*GOOD, *BAD, "not", "but", "and"):
        labels = [row["label"] for row in rows if word in row["sentence"].split()]
        assert 0.25 < sum(labels) / len(labels) < 0.75, word


def test_squad_answers_lie_in_their_paragraphs():
    splits = sample_squad()
    assert {split: rows.num_rows for split, rows in splits.items()} == {"train": 2000, "validation": 500}
    assert splits["train"].features == features(SQUAD)
    ids = [row["id"] for rows in splits.values() for row in rows]
    assert len(set(ids)) == 2500
    for row in splits["train"]:
        (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        assert row["context"][start : start + len(text)] == text
        assert 3 <= row["context"].count(".") <= 5
        assert {word for part in (row["context"], row["question"]) for word in part.split()} <= set(vocabulary())


def test_tokenizer_is_like_berts(tmp_path):
    tokenizer = sample_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        batch = each(["The COOK"], ["the xylophone ?"])
        tokens = each.convert_ids_to_tokens(batch["input_ids"][0])
        assert tokens == ["[CLS]", "the", "cook", "[SEP]", "the", "[UNK]", "?", "[SEP]"]
        assert batch["token_type_ids"] == [[0, 0, 0, 0, 1, 1, 1, 1]]
        assert each.pad(batch, padding="max_length", max_length=10)["attention_mask"] == [[1] * 8 + [0, 0]]
        assert (each.pad_token_id, each.model_max_length, len(each)) == (0, 128, len(vocabulary()))


def test_a_small_model_learns_sentiment_from_scratch():
    tokenizer, torch_threads = sample_tokenizer(), torch.get_num_threads()
    data = {split: encode(rows, "sst2", tokenizer).to_list() for split, rows in sample_glue("sst2").items()}
    collate, rows = DataCollatorWithPadding(tokenizer), data["train"]
    model = load_model("sample", "sst2", seed=0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    for _ in range(200):
        picked = torch.randint(len(rows), (32,)).tolist()
        model(**collate([rows[i] for i in picked])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    dev = collate(data["validation"])
    with torch.no_grad():
        logits = model.eval()(**dev).logits
    assert glue_metrics("sst2", logits.numpy(), dev["labels"].numpy())["accuracy"] > 0.9
    assert torch.get_num_threads() == torch_threads
