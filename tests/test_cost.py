"""The sizes and FLOPs of BERT-base, which the papers print, and the counts of every architecture.

BERT-base lives on the meta device: no weights are allocated."""

import pytest
import torch
from tiny_models import CONFIGS, HEADS, tiny
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, GPT2Config, GPT2Model

from bitlab import BitConfig, BitlabError, binarize
from bitlab.cost import summary

GRID = [(architecture, head) for architecture in CONFIGS for head in HEADS]


@pytest.fixture(scope="module")
def base():
    """BERT-base with two classes, float."""
    with torch.device("meta"):
        return summary(BertForSequenceClassification(BertConfig()))


def bert_base(precision, **options):
    with torch.device("meta"):
        return summary(
            binarize(BertForSequenceClassification(BertConfig()), BitConfig.from_precision(precision, **options))
        )


def test_float_bert_base(base):
    assert base.parameters == 109_483_778 and base.one_bit_parameters == 0
    assert base.mib == pytest.approx(417.6, abs=0.05)
    assert base.matmul_flops == pytest.approx(22.35e9, abs=0.005e9)
    assert base.flops == pytest.approx(22.42e9, abs=0.005e9)
    length, width, ffn = 128, 768, 3072
    layer = length * (4 * width**2 + 2 * width * ffn) + 2 * length**2 * width
    assert base.matmul_flops == 2 * (12 * layer + width**2 + 2 * width)


@pytest.mark.parametrize(
    ("precision", "flops", "strict"), [("W1A1", 0.43, 0.43), ("W1A2", 0.78, 0.80), ("W1A4", 1.48, 1.59)]
)
def test_binary_bert_base(base, precision, flops, strict):
    binary = bert_base(precision)
    assert binary.one_bit_parameters == 108_965_376
    assert binary.one_bit_parameters / 8 / 2**20 == pytest.approx(12.99, abs=0.005)
    assert binary.elementwise_flops == pytest.approx(0.08e9, abs=0.005e9)
    assert binary.flops == pytest.approx(flops * 1e9, abs=0.005e9)
    assert binary.strict_flops == pytest.approx(strict * 1e9, abs=0.005e9)
    ratio = binary.compare(base)
    assert ratio == {"size": base.mib / binary.mib, "flops": base.flops / binary.flops}
    assert 26.9 < ratio["size"] < 27


def test_breakdown_of_bert_base():
    """Thresholds weigh 0.319 MiB in the released program, where q, k, v learn none; here they do: 0.425."""
    kinds = bert_base("W1A1").kinds
    released = 12 * (5 * 768 + 3072) + 768  # inputs of a layer's six linear layers, and the pooler's
    assert released * 4 / 2**20 == pytest.approx(0.319, abs=0.001)
    assert kinds["thresholds"].parameters == released + 3 * 768 * 12
    sizes = {
        "word embedding": 30522 * 768 / 8 / 2**20,
        "linear weights": 85_524_480 / 8 / 2**20,
        "biases": 0.3193,
        "thresholds": 0.4248,
        "LayerNorm": 0.1465,
        "row scales": 0.1164,
        "other embeddings": 1.5 + 2 * 768 * 4 / 2**20,
        "head": (768 * 2 + 2) * 4 / 2**20,
        "scales": (121 + 73) * 4 / 2**20,
    }
    assert {kind for kind, cost in kinds.items() if cost.parameters} == set(sizes)
    for kind, mib in sizes.items():
        assert kinds[kind].mib == pytest.approx(mib, abs=3e-4), kind
    assert bert_base("W1A1").mib == pytest.approx(15.40 + 27_648 * 4 / 2**20, abs=0.01)


@pytest.mark.parametrize(("precision", "share"), [("W32A32", 1), ("W1A32", 1 / 2), ("W32A1", 1 / 2), ("W1A8", 1 / 8)])
def test_share_of_a_product(precision, share):
    binary = bert_base(precision)
    weights = binary.kinds["linear weights"]
    assert weights.matmul_flops == pytest.approx(share * 21.7445e9, rel=1e-4)
    assert (weights.one_bit_parameters > 0) == precision.startswith("W1")
    assert binary.strict_flops >= binary.flops


def test_binarizers_of_w32a32_cost_nothing(base):
    binary = bert_base("W32A32")
    assert binary.total_bits == base.total_bits
    assert "thresholds" not in binary.kinds and "scales" not in binary.kinds


def test_float_embedding():
    binary = bert_base("W1A1", embedding_bits=32)
    assert binary.one_bit_parameters == 108_965_376 - 30522 * 768
    assert "row scales" not in binary.kinds


# --------------------------------------------------------------------------------------- every architecture


@pytest.mark.parametrize(("architecture", "head"), GRID)
def test_every_parameter_is_counted_once(architecture, head):
    model = tiny(architecture, head)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    assert summary(model).parameters == numbers
    binary = summary(binarize(model))
    learned = sum(parameter.numel() for parameter in model.parameters())
    linear = sum(type(module).__name__ == "BinaryLinear" for module in model.modules())
    assert binary.parameters == learned + linear + model.get_input_embeddings().num_embeddings
    inside = [m.weight.numel() for m in model.modules() if type(m).__name__ in ("BinaryLinear", "BinaryEmbedding")]
    assert binary.one_bit_parameters == sum(inside) > 0
    assert binary.total_bits == binary.one_bit_parameters + 32 * binary.float_parameters == 8 * 2**20 * binary.mib
    assert list(binary.parts)[:3] == ["embeddings", "layer 0", "layer 1"]


def test_tied_weights_are_stored_once():
    model = BertForMaskedLM(tiny().config)
    assert summary(model).parameters == sum(parameter.numel() for parameter in model.parameters())


def test_a_table_that_the_decoder_multiplies_with_is_float():
    """A masked LM's output layer is its word embedding; untied, each is stored at its own width."""
    table, pooler = 30522 * 768, 768 * 768
    costs = {}
    for tied in (True, False):
        with torch.device("meta"):
            costs[tied] = summary(binarize(BertForMaskedLM(BertConfig(tie_word_embeddings=tied))))
    assert costs[True].one_bit_parameters == 108_965_376 - table - pooler
    assert costs[False].one_bit_parameters == 108_965_376 - pooler
    assert costs[True].kinds["word embedding"].mib == table * 4 / 2**20 == pytest.approx(89.4, abs=0.05)
    assert costs[True].mib == pytest.approx(104.4, abs=0.05)
    assert costs[False].kinds["word embedding"].mib == table / 8 / 2**20
    assert costs[True].flops == costs[False].flops


def test_a_sentence_head_reads_one_token_a_span_head_all():
    heads = {
        head: summary(tiny("bert", head), length=10).parts["head"].matmul_flops
        for head in ("sequence", "span", "token")
    }
    assert heads == {"sequence": 2 * 16 * 2, "span": 2 * 16 * 2 * 10, "token": 2 * 16 * 2 * 10}


def test_length_and_batch():
    model = binarize(tiny())
    one, two = summary(model, length=16), summary(model, length=32)
    assert 2 * one.flops < two.flops < 4 * one.flops and one.total_bits == two.total_bits
    assert summary(model, length=16, batch=3).flops == pytest.approx(3 * one.flops)
    attention = [s.kinds["attention"].matmul_flops for s in (one, two)]
    assert attention[1] == 4 * attention[0] == 2 * 2 * 2 * 32 * 32 * 16 / 64


# ----------------------------------------------------------------------------------------- table and errors


def test_parts_and_kinds_sum_to_the_total():
    costs = bert_base("W1A2")
    for name in ("parameters", "bits", "flops", "strict_flops"):
        total = getattr(costs.total, name)
        for groups in (costs.parts, costs.kinds):
            assert sum(getattr(cost, name) for cost in groups.values()) == pytest.approx(total)


def test_errors():
    with pytest.raises(BitlabError, match="length is 0"):
        summary(tiny(), length=0)
    with pytest.raises(BitlabError, match="GPT2Model is not built as bitlab expects"):
        summary(GPT2Model(GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2)))
    with pytest.raises(AttributeError, match="nonsense"):
        summary(tiny()).nonsense  # noqa: B018
