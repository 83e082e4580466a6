"""binarize, set_precision and the from_pretrained plug-in on every architecture and head."""

import copy
import json

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import (
    CONFIGS,
    HEADS,
    METHODS,
    OTHERS,
    RIVALS,
    SIZES,
    batch,
    binarizers,
    binary,
    config_of,
    outputs,
    python,
    tiny,
    warm_up,
)
from torch import nn
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    ElectraForPreTraining,
    GPT2Config,
    GPT2LMHeadModel,
    MegatronBertConfig,
    MegatronBertModel,
)

from bitlab import (
    BinaryEmbedding,
    BinaryLinear,
    BitConfig,
    BitlabError,
    ElasticBinarizer,
    binarize,
    set_precision,
)
from bitlab.encoders import layers
from bitlab.packed import save_packed

GRID = [(architecture, head) for architecture in CONFIGS for head in HEADS]
RIVAL_GRID = [(architecture, "sequence", kind) for architecture in CONFIGS for kind in RIVALS]


def same(ours, theirs):
    assert len(ours) > 0
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


# ------------------------------------------------------------------------------------------------ structure


@pytest.mark.parametrize(("architecture", "head"), GRID)
def test_what_becomes_binary(architecture, head):
    model = binarize(tiny(architecture, head))
    inside = {id(module) for module in model.base_model.modules()}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert isinstance(module, BinaryLinear) == (id(module) in inside), name  # the head stays float
        if isinstance(module, nn.Embedding):
            assert isinstance(module, BinaryEmbedding) == ("word_embeddings" in name), name
    extra = ("pooler" in str(model)) + (architecture == "electra")  # ELECTRA's embeddings_project
    assert len(binarizers(model)) == 10 * 2 + extra


@pytest.mark.parametrize("architecture", CONFIGS)
def test_sets_and_activations_are_those_of_the_method(architecture):
    """Both ends of a layer's non-negative tensors are unsigned; GELU becomes ReLU, but not that of heads."""
    model = binarize(tiny(architecture))
    unsigned = {name for name, module in binarizers(model).items() if not module.signed}
    second = "ffn.lin2" if architecture == "distilbert" else "output.dense"
    ends = ("probs_binarizer", f"{second}.input_binarizer")
    assert len(unsigned) == 4 and all(name.endswith(ends) for name in unsigned)
    assert not any("attention.output" in name for name in unsigned)
    assert all(isinstance(parts.activation, nn.ReLU) for parts in layers(model))
    assert isinstance(model.bert.pooler.activation, nn.Tanh) if architecture == "bert" else True
    assert (getattr(model.config, "hidden_act", None) or model.config.activation) == "gelu"


def test_latent_weights_are_the_models_own():
    model = tiny()
    before = dict(model.named_parameters())
    after = dict(binarize(model).named_parameters())
    for name, value in tiny().named_parameters():
        assert after[name] is before[name] and torch.equal(after[name], value)


def test_what_is_left_out_is_named_in_whole_parts():
    deep, left_out = tiny(head="bare", num_hidden_layers=12), BitConfig(modules_to_not_convert=["layer.1", "attention"])
    names = {name for name, module in binarize(deep, left_out).named_modules() if isinstance(module, BinaryLinear)}
    layers = {int(name.split(".")[2]) for name in names - {"pooler.dense"}}
    assert layers == set(range(12)) - {1} and not any("attention" in name for name in names)


def test_float_embedding_by_option():
    model = binarize(tiny(), BitConfig(embedding_bits=32))
    assert model.get_input_embeddings().weight_bits == 32
    assert set_precision(model, "W1A2").get_input_embeddings().weight_bits == 32


def test_tied_weights_stay_tied():
    model = binarize(BertForMaskedLM(BertConfig(**SIZES)))
    assert model.cls.predictions.decoder.weight is model.get_input_embeddings().weight
    assert type(model.cls.predictions.decoder) is nn.Linear


def test_one_config_for_two_models(tmp_path):
    """Changing one model's precision leaves the other's, and the caller's config, alone."""
    tiny().save_pretrained(tmp_path)
    config = BitConfig(1, 2)
    for make in (
        lambda: binarize(tiny(), config),
        lambda: HEADS["sequence"].from_pretrained(tmp_path, quantization_config=config),
    ):
        first, second = make(), make()
        set_precision(first, "W1A1")
        assert first.config.quantization_config.precision == "W1A1"
        assert second.config.quantization_config.precision == config.precision == "W1A2"


# --------------------------------------------------------------------------------------------------- errors


def test_binarizing_twice():
    with pytest.raises(BitlabError, match=r"binary already.*set_precision"):
        binarize(binarize(tiny()))


def test_a_model_that_is_no_bert():
    """GPT-2 has other layers; MegatronBERT has BERT's, and attention that would never ask a binarizer."""
    with pytest.raises(BitlabError, match="MegatronBertSelfAttention computes attention by itself"):
        binarize(MegatronBertModel(MegatronBertConfig(**SIZES)))
    with pytest.raises(BitlabError, match="GPT2LMHeadModel is not built as bitlab expects"):
        binarize(GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2)))


def test_set_precision_errors():
    with pytest.raises(BitlabError, match="not binary: call binarize"):
        set_precision(tiny(), "W1A1")
    model = binary()
    before = outputs(model, **batch())
    for precision, alpha, wrong in (("W3A1", "carry", "W3A1"), ("fine", "carry", "fine"), ("W1A2", "keep", "keep")):
        with pytest.raises(BitlabError, match=wrong):
            set_precision(model, precision, alpha=alpha)
    same(outputs(model, **batch()), before)  # nothing half-done
    with pytest.raises(BitlabError, match="W1A2 does not exist for bibert"):
        set_precision(binary(kind="bibert W1A1"), "W1A2")


# -------------------------------------------------------------------------------------------- set_precision


@pytest.mark.parametrize("architecture", CONFIGS | OTHERS)
def test_w32a32_is_the_float_model_with_relu(architecture):
    """MPNet's distances enter with the mask."""
    relu = {"activation" if architecture == "distilbert" else "hidden_act": "relu"}
    model = set_precision(binary(architecture), "W32A32")
    torch.testing.assert_close(outputs(model, **batch(pad=2)), outputs(tiny(architecture, **relu), **batch(pad=2)))


def test_w32a32_of_bibert_is_the_float_model():
    """GELU and softmax are back."""
    model = set_precision(binary(kind="bibert W1A1"), "W32A32")
    torch.testing.assert_close(outputs(model, **batch(pad=2)), outputs(tiny(), **batch(pad=2)))


@pytest.mark.parametrize("alpha", ["carry", "reinit", "rescale"])
def test_precision_changes_and_weights_stay(alpha):
    model = binary(kind="bit W1A2")
    before = copy.deepcopy(model.state_dict())
    assert set_precision(model, "W1A1", alpha=alpha) is model
    assert model.config.quantization_config.precision == "W1A1"
    assert {module.bits for module in binarizers(model).values()} == {1}
    alphas = [name for name in before if name.endswith("_binarizer.alpha")]
    assert len(alphas) == 21
    for name, value in model.state_dict().items():
        if not name.endswith(("alpha", "initialized")):
            assert torch.equal(value, before[name]), name
    factor = dict.fromkeys(alphas, 1.0)
    if alpha == "rescale":  # Qp: 1 -> 1 signed, 3 -> 1 unsigned
        factor |= {name: 3**0.5 for name in alphas if not model.get_submodule(name.removesuffix(".alpha")).signed}
    for name, ratio in factor.items():
        assert model.state_dict()[name].item() == pytest.approx(before[name].item() * ratio)
        assert model.state_dict()[name.replace("alpha", "initialized")] == (alpha != "reinit")

    model.train()(**batch(seed=3))
    for name in alphas:  # only re-initialised ones move in a forward
        kept = model.state_dict()[name].item() == pytest.approx(before[name].item() * factor[name])
        assert kept == (alpha != "reinit"), name


def test_from_full_precision_alpha_is_always_initialised():
    model = binarize(tiny(), BitConfig(32, 32))
    set_precision(model, "W1A1", alpha="carry").train()(**batch())
    assert all(module.initialized and module.alpha != 1 for module in binarizers(model).values())
    frozen = set_precision(model, "W32A32").named_parameters()
    assert all(parameter.requires_grad != name.endswith(("alpha", "beta")) for name, parameter in frozen)
    assert all(parameter.requires_grad for parameter in set_precision(model, "W1A1").parameters())


def test_same_precision_changes_nothing():
    model, twin = binary(kind="bit W1A2"), binary(kind="bit W1A2")
    same(outputs(set_precision(model, "W1A2"), **batch()), outputs(twin, **batch()))


# ----------------------------------------------------------------------------- saving, loading, and copying


@pytest.mark.parametrize(("architecture", "head", "kind"), [(*each, "bit W1A1") for each in GRID] + RIVAL_GRID)
def test_saved_and_loaded_bit_equal(architecture, head, kind, tmp_path):
    model = binary(architecture, head, kind)
    before = outputs(model, **batch(pad=2))
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    told = "{quant_method} {method} W{weight_bits}A{activation_bits}".format(**stored)
    assert told == f"bitlab {kind}"

    loaded, info = HEADS[head].from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    same(outputs(loaded, **batch(pad=2)), before)
    loaded.train()(**batch(seed=4))  # a loaded alpha is not initialised again
    same(loaded.state_dict(), model.state_dict())


@pytest.mark.parametrize(("architecture", "head", "kind"), [(*each, "bit W1A2") for each in GRID] + RIVAL_GRID)
def test_a_float_checkpoint_loads_as_a_binary_model(architecture, head, kind, tmp_path):
    original = tiny(architecture, head)
    original.save_pretrained(tmp_path)
    model = HEADS[head].from_pretrained(tmp_path, quantization_config=config_of(kind))
    if kind == "bit W1A2":
        model.save_pretrained(tmp_path / "untrained")
        model = HEADS[head].from_pretrained(tmp_path / "untrained")
        for name, module in binarizers(model).items():
            assert module.alpha.item() == 1 and not module.initialized and module.bits == 2, name
            assert module.beta is None or not module.beta.any(), name
        for name, parameter in original.named_parameters():
            assert torch.equal(model.get_parameter(name), parameter), name
    assert all(tensor.isfinite().all() for tensor in outputs(model, **batch()))
    expected = warm_up(binarize(original, config_of(kind)))
    same(outputs(warm_up(model), **batch(pad=2)), outputs(expected, **batch(pad=2)))


def test_loading_with_another_head_keeps_the_encoder(tmp_path):
    model = binary()
    model.save_pretrained(tmp_path)
    loaded = HEADS["span"].from_pretrained(tmp_path)
    same(
        [m.alpha for n, m in binarizers(loaded).items()],
        [m.alpha for n, m in binarizers(model).items() if "pooler" not in n],
    )


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_a_pooler_that_the_checkpoint_lacks_starts_anew(architecture, tmp_path):
    """Its parameters are in no file: left alone they would be memory as it was found, marked as initialised."""
    binary(architecture, "span").save_pretrained(tmp_path)
    head = {"bert": "sequence", "roberta": "bare"}[architecture]
    loaded, info = HEADS[head].from_pretrained(tmp_path, output_loading_info=True)
    (name, fresh) = next((name, m) for name, m in binarizers(loaded).items() if "pooler" in name)
    assert any("pooler.dense.input_binarizer" in key for key in info["missing_keys"]), name
    assert fresh.alpha == 1 and not fresh.beta.any() and not fresh.initialized
    loaded.train()(**batch())
    assert fresh.initialized and 0.01 < fresh.alpha < 100
    others = {n: m for n, m in binarizers(loaded).items() if "pooler" not in n}
    assert len(others) == 20 and all(m.alpha != 1 for m in others.values())


@pytest.mark.parametrize(
    ("architecture", "head"),
    [("bert", AutoModelForMaskedLM), ("distilbert", AutoModelForMaskedLM), ("electra", ElectraForPreTraining)],
)
def test_a_head_with_an_activation_keeps_it_through_a_reload(architecture, head, tmp_path):
    cls = head if head is ElectraForPreTraining else type(head.from_config(CONFIGS[architecture]()))
    torch.manual_seed(0)
    model = warm_up(binarize(cls(CONFIGS[architecture]()).eval()))
    before = outputs(model, **batch())
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(outputs(cls.from_pretrained(tmp_path), **batch()), before)


def test_deepcopy():
    model = binary()
    twin = copy.deepcopy(model)
    same(outputs(twin, **batch()), outputs(model, **batch()))
    with torch.no_grad():
        twin.bert.encoder.layer[0].output.dense.input_binarizer.alpha *= 2
    set_precision(twin, "W1A2")
    assert model.config.quantization_config.precision == "W1A1"
    assert not torch.equal(outputs(twin, **batch())[0], outputs(model, **batch())[0])


# ----------------------------------------------------------------------------- compile, export, sync, steps


def test_compile_without_a_break():
    model, inputs = binary(num_hidden_layers=1).double(), batch()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits)

    gradients = []
    for forward in (model, compiled):
        model.train().zero_grad()
        forward(**inputs).logits.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_compile_of_a_fresh_binarizer():
    """The first training forward, which initialises alpha, compiles too."""
    layer, twin, x = ElasticBinarizer(4, bits=2), ElasticBinarizer(4, bits=2), torch.randn(3, 4)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(x), twin(x))
        assert torch.equal(layer.alpha, twin.alpha) and layer.initialized


@pytest.mark.parametrize(
    ("architecture", "kind"), [*((each, "bit W1A1") for each in CONFIGS), *(("bert", each) for each in METHODS[1:])]
)
def test_training_steps_lower_the_loss(architecture, kind):
    """Two classes of sentences, told apart by their first word."""
    layers = {"n_layers" if architecture == "distilbert" else "num_hidden_layers": 1}
    model = binarize(tiny(architecture, **layers), config_of(kind)).train()
    inputs = batch(size=8, length=6)
    labels = torch.arange(8) % 2
    inputs["input_ids"][:, 0] = 3 + labels
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        learning = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert not [name for name, grad in learning.items() if grad is None or not grad.isfinite().all()]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    if kind != "binarybert W1A1":  # which hardly learns anything, here as in the published table
        fives = [sum(losses[i : i + 5]) for i in range(26)]  # a binary model's loss is ragged
        assert min(fives) < 0.9 * fives[0]


# ----------------------------------------------------------------------------- what was silently otherwise once


@pytest.mark.parametrize(
    ("kept", "relu", "signed"),
    [
        (["intermediate"], [False, False], [True, True]),  # GELU stays, so that what it gives has both signs
        ("intermediate", [False, False], [True, True]),
        (["layer.0.intermediate"], [False, True], [True, False]),
        (["intermediate.dense"], [True, True], [False, False]),
    ],
)
def test_each_layer_decides_by_its_own_activation(kept, relu, signed, tmp_path):
    model = warm_up(binarize(tiny(), BitConfig(modules_to_not_convert=kept)))
    model.save_pretrained(tmp_path)
    for each in (model, type(model).from_pretrained(tmp_path), set_precision(copy.deepcopy(model), "W1A2")):
        found = layers(each)
        assert [isinstance(parts.activation, nn.ReLU) for parts in found] == relu
        assert [parts.second.input_binarizer.signed for parts in found] == signed


@pytest.mark.parametrize("kept", ["pooller", ["layer.7"], ["encoder.layer.0", "classifier.out"]])
def test_a_name_that_no_module_has_is_refused(kept, tmp_path):
    tiny().save_pretrained(tmp_path)
    config, model = BitConfig(modules_to_not_convert=kept), tiny()
    with pytest.raises(BitlabError, match=r"has no module '.*' to keep float"):
        binarize(model, config)
    assert not binarizers(model)
    with pytest.raises(BitlabError, match=r"has no module '.*' to keep float"):
        type(model).from_pretrained(tmp_path, quantization_config=config)


def test_a_name_may_be_gone_with_the_head_it_was_in(tmp_path):
    config = BitConfig(modules_to_not_convert=["pooler", "classifier"])
    warm_up(binarize(tiny(), config)).save_pretrained(tmp_path)
    assert len(binarizers(HEADS["span"].from_pretrained(tmp_path))) == 20


@pytest.mark.parametrize("precision", ["W1A2", " w1a2"])
def test_a_precision_is_configuration_enough(precision):
    model = binarize(tiny(), precision)
    assert model.config.quantization_config.precision == "W1A2"
    assert {module.bits for module in binarizers(model).values()} == {2}


@pytest.mark.parametrize("other", ["sdpa", "eager"])
def test_attention_without_bits_is_refused(other):
    model = warm_up(binarize(tiny()))
    expected = outputs(model, **batch())[0]
    model.set_attn_implementation(other)
    with pytest.raises(BitlabError, match=f"set to '{other}', which knows no bits"):
        outputs(copy.deepcopy(model), **batch())
    model.set_attn_implementation("bitlab")
    assert torch.equal(outputs(model, **batch())[0], expected)


def test_plain_from_pretrained_in_a_fresh_process(tmp_path):
    """`import bitlab` is all that it needs."""
    for architecture, config in (("bert", BitConfig()), ("distilbert", BitConfig(2, 4, method="binarybert"))):
        model = warm_up(binarize(tiny(architecture), config))
        model.save_pretrained(tmp_path / architecture)
        save_file({**batch(), "logits": outputs(model, **batch())[0]}, tmp_path / f"{architecture}.safetensors")
    save_packed(AutoModelForSequenceClassification.from_pretrained(tmp_path / "bert"), tmp_path / "packed")
    program = """
import sys, bitlab, torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification
for folder, file in (("bert", "bert"), ("distilbert", "distilbert"), ("packed", "bert")):
    tensors = load_file(f"{sys.argv[1]}/{file}.safetensors")
    logits = tensors.pop("logits")
    with torch.no_grad():
        found = AutoModelForSequenceClassification.from_pretrained(f"{sys.argv[1]}/{folder}").eval()(**tensors).logits
    torch.testing.assert_close(found, logits, rtol=0, atol=1e-4 if folder == "packed" else 0)
"""
    python("-c", program, tmp_path)
