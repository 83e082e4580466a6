"""Which encoders of transformers become binary, and which are refused: the table in encoders.md is what comes out here.

python tests/test_encoders.py       writes the table anew
"""

import tempfile
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tiny_models import DISTILBERT_SIZES, OTHERS, SIZES, batch, binarizers, outputs, tiny, warm_up
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    BertConfig,
    BertModel,
    DPRConfig,
    DPRReader,
    PreTrainedModel,
    TrainingArguments,
)

from bitlab import (
    BinaryLinear,
    BitConfig,
    BitlabError,
    DistillationConfig,
    DistillationTrainer,
    binarize,
    set_precision,
)
from bitlab.cost import summary
from bitlab.encoders import collect_attention, layers
from bitlab.packed import is_fused, pack

TABLE = Path(__file__).parent / "encoders.md"
KINDS = """
albert bert bert-generation big_bird bros camembert canine convbert data2vec-text deberta deberta-v2 distilbert electra
ernie esm flaubert fnet ibert jina_embeddings_v3 layoutlm lilt longformer luke markuplm megatron-bert mobilebert
modernbert mpnet mra nomic_bert nystromformer rembert roberta roberta-prelayernorm roc_bert roformer splinter tapas xlm
xlm-roberta xlm-roberta-xl xmod yoso
"""
HEAD = """# Encoders

Which encoders of transformers `bitlab.binarize` takes: made by tests/test_encoders.py, which holds every line. Those
that it takes reload with equal logits, see no padding, and give the same when packed.

| model_type | becomes binary | |
|---|---|---|
"""
WAY = """
What stands in the way of the others:

- *not built as expected*: no row in the table of `bitlab/encoders.py` says it. Scores of DeBERTa have terms of position
  with weights of their own; ModernBERT has one layer for query, key and value; it and Nomic BERT have gated
  feed-forwards; Jina's names fit a row, but its positions are rotations, which the packed kernel doesn't know; ESM's
  GELU is no module; FlauBERT and XLM keep lists of parts in the place of layers; CANINE hashes characters.
- *attention by itself*: it needs a class of about ten lines, as MPNet's in `bitlab/attention.py`, where it is plain
  attention (Megatron-BERT, RemBERT, TAPAS); where it is an approximation (BigBird, MRA, Nystroemformer, YOSO), a way of
  binarizing that first.
- *more linear layers*: adapters, bottlenecks or second streams, of which nobody has said which set their inputs take.
"""
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}


def encoder(kind):
    sizes = DISTILBERT_SIZES if kind == "distilbert" else SIZES
    torch.manual_seed(0)
    model = AutoModel.from_config(CONFIG_MAPPING[kind](**sizes, **(TOKENS if kind == "modernbert" else {})))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def row(kind):
    """A line of the table: what became of a small encoder of this kind, all that is promised of it held."""
    model = encoder(kind)
    before = {name: type(module) for name, module in model.named_modules()}
    try:
        binarize(model)
    except BitlabError as error:
        assert {name: type(module) for name, module in model.named_modules()} == before  # as it was
        return f"| {kind} | no | {str(error).partition(': binarize')[0]} |"
    warm_up(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = AutoModel.from_pretrained(folder)
    assert torch.equal(outputs(loaded, **batch())[0], outputs(model, **batch())[0])
    short, padded = batch(length=7), batch(length=11, pad=4)
    padded["input_ids"][:, :7] = short["input_ids"]
    hidden, longer = (outputs(loaded.double(), **inputs)[0][:, :7] for inputs in (short, padded))
    torch.testing.assert_close(longer, hidden, rtol=0, atol=1e-6)
    packed = pack(model)
    torch.testing.assert_close(outputs(packed, **padded)[0], outputs(model, **padded)[0], rtol=0, atol=1e-4)
    return f"| {kind} | yes | packed layers run {'fused' if is_fused(packed) else 'by themselves'} |"


def table():
    return HEAD + "\n".join(map(row, KINDS.split())) + "\n" + WAY


def test_the_table():
    assert table() == TABLE.read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------- models of one's own, heads


class Own(PreTrainedModel):
    """As users write them: no base_model_prefix, no get_input_embeddings, a head of another name."""

    config_class = BertConfig

    def __init__(self, config, where=None):
        super().__init__(config)
        self.inner = BertModel(config)
        self.decide = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def forward(self, **inputs):
        return {"logits": self.decide(self.inner(**inputs).pooler_output)}


class Flat(PreTrainedModel):
    """An encoder's parts, and the head among them, without a module around the encoder."""

    config_class = BertConfig

    def __init__(self, config):
        super().__init__(config)
        inner = BertModel(config)
        self.embeddings, self.encoder, self.pooler = inner.embeddings, inner.encoder, inner.pooler
        self.classifier = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.word_embeddings


def floats(model):
    return {n for n, module in model.named_modules() if type(module) is nn.Linear}


@pytest.mark.parametrize(
    ("make", "head"),
    [
        (lambda: Own(BertConfig(**SIZES)), {"decide"}),
        (lambda: Flat(BertConfig(**SIZES)), {"classifier"}),
        (lambda: DPRReader(DPRConfig(**SIZES)), {"span_predictor.qa_outputs", "span_predictor.qa_classifier"}),
    ],
)
def test_heads_stay_float_wherever_they_stand(make, head):
    model = binarize(make())
    assert floats(model) == head
    assert sum(isinstance(module, BinaryLinear) for module in model.modules()) in (12, 13)  # 13 with a pooler


def test_an_own_model_computes_with_bits():
    model = warm_up(binarize(Own(BertConfig(**SIZES))))
    assert all(binarizer.initialized for binarizer in binarizers(model).values())
    seen = []
    for binarizer in binarizers(model).values():
        binarizer.register_forward_hook(lambda module, *_: seen.append(module))
    outputs(model, **batch())
    assert len(seen) == len(set(seen)) == len(binarizers(model)) == 21  # bitlab's attention runs, not transformers' own


class Nowhere(PreTrainedModel):
    config_class = BertConfig

    def __init__(self, config):
        super().__init__(config)
        self.encoder = BertModel(config).encoder


class Twice(PreTrainedModel):
    config_class = BertConfig

    def __init__(self, config):
        super().__init__(config)
        self.left, self.right = BertModel(config), BertModel(config)


@pytest.mark.parametrize(
    ("make", "options", "says"),
    [
        (Nowhere, {}, "not built as bitlab expects"),
        (Twice, {}, "not built as bitlab expects"),
        (BertModel, {"is_decoder": True, "add_cross_attention": True}, "BertLayer has more linear layers"),
    ],
)
def test_what_is_refused_is_left_as_it_was(make, options, says):
    model = make(BertConfig(**SIZES, **options))
    with pytest.raises(BitlabError, match=says):
        binarize(model)
    assert not binarizers(model) and not any(isinstance(m, nn.ReLU) for m in model.modules())


# ------------------------------------------------------------------------------------------------ two more families


@pytest.mark.parametrize("architecture", OTHERS)
def test_other_families_learn_and_change_precision(architecture):
    model = binarize(tiny(architecture, num_labels=2), "W1A4").train()
    model(**batch(pad=2), labels=torch.tensor([0, 1, 1])).loss.backward()
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all(model.get_parameter(name).grad is not None for name in names)
    for name in ("W1A1", "W32A32", "W1A2"):
        set_precision(model, name)
        assert outputs(model, **batch())[0].isfinite().all()
    assert {parts.second.input_binarizer.signed for parts in layers(model)} == {False}


@pytest.mark.parametrize("architecture", OTHERS)
def test_half_of_another_family(architecture):
    model = warm_up(binarize(tiny(architecture), BitConfig(2, 4, method="binarybert")))
    assert all(parts.first.out_features == 16 and parts.query.out_features == 8 for parts in layers(model))
    ternary = outputs(model, **batch(pad=2))[0]
    torch.testing.assert_close(outputs(set_precision(model, "W1A4"), **batch(pad=2))[0], ternary, rtol=0, atol=1e-4)


def test_distilling_attention_of_mpnet_is_refused_and_of_an_own_model_is_done(tmp_path):
    settings = TrainingArguments(tmp_path, max_steps=1, use_cpu=True, report_to=[], save_strategy="no")
    rows = Dataset.from_dict({name: tensor.tolist() for name, tensor in batch().items()})
    loss = DistillationConfig(logits=0.0, hidden=0.0, attention=1.0)
    with pytest.raises(BitlabError, match="doesn't hand out what happens in its attention"):
        DistillationTrainer(binarize(tiny("mpnet")), tiny("mpnet"), settings, loss, train_dataset=rows)
    teacher = Own(BertConfig(**SIZES))
    collect_attention(teacher)
    scores = []
    teacher(**batch(), attention_scores=scores)
    assert len(scores) == 2


def test_layers_that_are_run_twice_are_kept_once_and_counted_twice():
    albert, bert = summary(tiny("albert")), summary(tiny("bert"))
    assert albert.parts["layer 0"].flops == pytest.approx(2 * bert.parts["layer 0"].flops, rel=0.01)
    assert albert.parts["layer 0"].parameters == bert.parts["layer 0"].parameters


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
