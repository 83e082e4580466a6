"""TernaryBERT's weights and BinaryBERT: the splitting identity, half width, activations, two phases a stage."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny_models import CONFIGS, SIZES, batch, binarizers, outputs, tiny, warm_up
from torch import nn
from transformers import BertConfig, BertModel

from bitlab import BitConfig, BitlabError, binarize, set_precision
from bitlab.binarizers import elastic
from bitlab.distillation.trainer import _of_kept_heads
from bitlab.rivals.binarybert import BinaryBertBinarizer, binarize_uncentred, pact, split_ternary, ternarize_weight

DOUBLE = {"dtype": torch.float64}
METHOD = {"method": "binarybert"}


def np_ternary(w):
    large = np.abs(w) > 0.7 * np.abs(w).mean()
    return np.sign(w) * large * (np.abs(w)[large].mean() if large.any() else 0.0)


def np_binary(w):
    return np.where(w >= 0, 1.0, -1.0) * np.abs(w).mean()


def of_rows(function, w, per_row):
    """Of the whole matrix, or of one row after the other."""
    return np.stack([function(row) for row in w]) if per_row else function(w)


# ----------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize(("ours", "numpys"), [(ternarize_weight, np_ternary), (binarize_uncentred, np_binary)])
def test_levels_and_gradient(ours, numpys, per_row):
    weight = torch.randn(6, 9, **DOUBLE, requires_grad=True)
    g = torch.randn(6, 9, **DOUBLE)
    out = ours(weight, per_row)
    out.backward(g)
    w = weight.detach().numpy()
    np.testing.assert_allclose(out.detach().numpy(), of_rows(numpys, w, per_row), rtol=1e-12)
    assert torch.equal(weight.grad, g)
    assert len(set(out[0].tolist())) == (3 if ours is ternarize_weight else 2)


def check_split(w, per_row):
    first, second = split_ternary(torch.tensor(w), per_row)
    assert first.shape == second.shape == w.shape and first.dtype == torch.float64
    first, second = first.numpy(), second.numpy()
    size = max(1.0, np.abs(w).max())
    binary = of_rows(np_binary, first, per_row) + of_rows(np_binary, second, per_row)
    np.testing.assert_allclose(binary, of_rows(np_ternary, w, per_row), rtol=0, atol=1e-12 * size)
    np.testing.assert_allclose(first + second, w, rtol=0, atol=1e-12 * size)


def room(w):
    """How far a split is from impossible: 1 where small weights cancel, below 0 where they outweigh the large ones."""
    small = np.abs(w) <= 0.7 * np.abs(w).mean()
    return 1 - abs(w[small].sum()) / np.abs(w[~small]).sum() if w.any() else 1.0


@settings(max_examples=200)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 12),
    columns=st.integers(1, 40),
    kind=st.sampled_from(["standard_normal", "standard_cauchy", "standard_exponential"]),
    per_row=st.booleans(),
)
def test_splitting_identity_on_random_tensors(seed, rows, columns, kind, per_row):
    w = getattr(np.random.default_rng(seed), kind)((rows, columns))
    w *= np.random.default_rng(seed + 1).choice([-1.0, 1.0], size=w.shape)
    assume(min(room(row) for row in (w if per_row else [w])) > 1e-3)
    check_split(w, per_row)


@settings(max_examples=200)
@given(w=arrays(float, (3, 8), elements=st.floats(-4, 4).map(lambda x: round(x, 3))), per_row=st.booleans())
def test_splitting_identity_on_odd_tensors(w, per_row):
    """Zeros, equal values, rows of nothing else: the identity holds or it is said that it can't."""
    least = min(room(row) for row in (w if per_row else [w]))
    assume(abs(least) > 1e-3)
    if least > 0:
        check_split(w, per_row)
        return
    with pytest.raises(BitlabError, match="no ternary split"):
        split_ternary(torch.tensor(w), per_row)


def test_what_cannot_be_split():
    w = torch.full((1, 100), 0.69)
    w[0, 0] = 31.0
    with pytest.raises(BitlabError, match="has no ternary split"):
        split_ternary(w)
    w[0, ::2] *= -1  # half of them of the other sign, and it can
    first, second = split_ternary(w)
    torch.testing.assert_close(binarize_uncentred(first) + binarize_uncentred(second), ternarize_weight(w))


# ------------------------------------------------------------------------------------------------- activations


@pytest.mark.parametrize("signed", [True, False])
def test_pact(signed):
    x = 2 * torch.randn(4, 30, **DOUBLE)
    x[0] = 0.7  # a token of one value
    x.requires_grad_()
    clip, g = torch.tensor([-2.5, 2.5], **DOUBLE, requires_grad=True), torch.randn(4, 30, **DOUBLE)
    out = pact(x, clip, signed)
    out.backward(g)
    for row, found in zip(x.detach().numpy(), out.detach().numpy()):
        y = np.clip(row, -2.5 if signed else 0.0, 2.5)
        low = y.min() if signed else 0.0
        step = max((y.max() - low) / 255, 1e-300)
        np.testing.assert_allclose(found, low + step * np.round((y - low) / step), rtol=1e-9, atol=1e-12)
        assert np.abs(found - y).max() <= step / 2 * (1 + 1e-9)
    bottom = -2.5 if signed else 0.0
    assert torch.equal(x.grad, torch.where((x >= bottom) & (x <= 2.5), g, 0))
    torch.testing.assert_close(clip.grad[1], g[x > 2.5].sum())
    torch.testing.assert_close(clip.grad[0], g[x < -2.5].sum() if signed else torch.zeros((), **DOUBLE))


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("signed", [True, False])
def test_lsq_is_the_elastic_function_without_thresholds(bits, signed):
    binarizer = BinaryBertBinarizer(7, bits, signed).train()
    x = torch.randn(5, 7).abs() if not signed else torch.randn(5, 7)
    torch.testing.assert_close(binarizer(x), elastic(x, binarizer.alpha, bits, signed))
    assert binarizer.beta is None and binarizer.initialized and binarizer.alpha != 1
    learning = {name for name, p in binarizer.named_parameters() if p.requires_grad}
    assert learning == {"alpha"}
    binarizer.set_bits(8)
    assert {name for name, p in binarizer.named_parameters() if p.requires_grad} == {"clip"}


@pytest.mark.parametrize("architecture", CONFIGS)
def test_relu_comes_and_goes_with_lsq(architecture, tmp_path):
    model = binarize(tiny(architecture), BitConfig(2, 8, **METHOD))

    def unsigned(model):
        return {name for name, b in binarizers(model).items() if not b.signed}

    before = unsigned(model)
    assert len(before) == 2 and all(name.endswith("probs_binarizer") for name in before)
    assert "ReLU" not in [type(m).__name__ for m in model.modules()]
    set_precision(model, "W1A4")
    assert len(unsigned(model)) == 2 + 2 * 2  # FFN-2 of both layers, both halves
    assert [type(m).__name__ for m in model.modules()].count("ReLU") == 2
    set_precision(warm_up(model), "W1A8").save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert unsigned(loaded) == unsigned(model) == before
    assert torch.equal(outputs(loaded, **batch())[0], outputs(model, **batch())[0])


# -------------------------------------------------------------------------------------------------- half width


@pytest.mark.parametrize("architecture", CONFIGS)
def test_half_of_a_model_is_the_model_without_the_other_half(architecture):
    """At full precision: silence the heads and neurons that go, and the full model gives what the half gives."""
    full, inputs = tiny(architecture), batch(pad=2)
    half = binarize(tiny(architecture), BitConfig(32, 32, **METHOD))
    dropped = 0
    modules = dict(half.named_modules())
    for name, module in full.named_modules():
        if not isinstance(module, nn.Linear) or modules[name].in_features == module.in_features:
            continue
        left = modules[name].weight
        with torch.no_grad():
            for column in range(module.in_features):
                if not (left == module.weight[:, column : column + 1]).all(dim=0).any():
                    module.weight[:, column] = 0
                    dropped += 1
    assert dropped == 2 * (16 // 2 + 32 // 2)  # layers: half of the heads' channels, half of the neurons
    torch.testing.assert_close(outputs(half, **inputs), outputs(full, **inputs))


def test_the_stronger_half_stays():
    model = tiny()
    layer = model.bert.encoder.layer[1]
    with torch.no_grad():
        layer.attention.self.value.weight[:8] *= 0.01  # the first of two heads
        layer.output.dense.weight[:, ::2] *= 0.01  # every other neuron
    kept = layer.intermediate.dense.weight[1::2].clone()
    binarize(model, BitConfig(2, 4, **METHOD))
    assert layer.attention.self.kept_heads.tolist() == [1]
    assert torch.equal(layer.intermediate.dense.weight, kept)


def test_the_teachers_scores_are_those_of_the_heads_that_stayed():
    student = binarize(tiny(), BitConfig(2, 4, **METHOD))
    kept = [layer.attention.self.kept_heads for layer in student.bert.encoder.layer]
    scores = tuple(torch.randn(3, 2, 5, 5) for _ in kept)
    ours = _of_kept_heads(student, scores)
    assert all(torch.equal(o, s[:, [k.item()]]) for o, s, k in zip(ours, scores, kept, strict=True))
    assert _of_kept_heads(student, ours) == ours  # a teacher of half width has no others
    assert _of_kept_heads(tiny(), scores) == scores


@pytest.mark.parametrize("odd", [{"num_attention_heads": 1}, {"intermediate_size": 31}], ids=str)
def test_what_cannot_be_halved(odd):
    with pytest.raises(BitlabError, match=f"{max(odd.values())} can't be halved"):
        binarize(BertModel(BertConfig(**SIZES | odd)), BitConfig(2, 4, **METHOD))


def test_one_of_two_layers_cannot_stay():
    with pytest.raises(BitlabError, match="can't be halved where only some"):
        binarize(tiny(), BitConfig(2, 4, modules_to_not_convert=["layer.0.output"], **METHOD))
    model = binarize(tiny(), BitConfig(2, 4, modules_to_not_convert=["layer.0"], **METHOD))
    assert model.bert.encoder.layer[0].intermediate.dense.out_features == 32
    assert model.bert.encoder.layer[1].intermediate.dense.out_features == 16
    assert outputs(model, **batch())[0].isfinite().all()


# --------------------------------------------------------------------------------------------------- splitting


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_split_model_is_the_ternary_model(architecture, bits):
    model, inputs = warm_up(binarize(tiny(architecture), BitConfig(2, bits, **METHOD))).double(), batch(pad=2)
    before = outputs(model, **inputs)[0]
    ternary = {name: p.detach().clone() for name, p in model.named_parameters()}
    alphas = len(binarizers(model))
    set_precision(model, f"W1A{bits}")
    after = outputs(model, **inputs)[0]
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)
    assert before.std(0).max() > 1e-2
    parameters = dict(model.named_parameters())
    for name, weight in ternary.items():
        if (twin := name.removesuffix("weight") + "twin.weight") in parameters and name.endswith("weight"):
            torch.testing.assert_close(parameters[name] + parameters[twin], weight)
            if (bias := name.removesuffix("weight") + "bias") in parameters:
                assert torch.equal(parameters[bias], ternary[bias] / 2)
    linears = sum(hasattr(m, "twin") and m.twin is not None and isinstance(m, nn.Linear) for m in model.modules())
    assert len(binarizers(model)) == alphas + linears  # each half quantizes its own input
    with torch.no_grad():
        next(m for m in model.modules() if getattr(m, "twin", None) is not None).twin.weight.mul_(-1)
    assert (outputs(model, **inputs)[0] - before).abs().max() > 1e-3  # both halves count


def test_a_split_model_does_not_go_back():
    model = warm_up(binarize(tiny(), BitConfig(2, 4, **METHOD)))
    set_precision(model, "W1A4")
    before = outputs(model, **batch())[0]
    for precision in ("W2A4", "W2A1"):
        with pytest.raises(BitlabError, match="do not become ternary again"):
            set_precision(model, precision)
    assert torch.equal(outputs(model, **batch())[0], before)
    set_precision(model, "W32A32")
    with pytest.raises(BitlabError, match="do not become ternary again"):
        set_precision(model, "W2A4")
    set_precision(model, "W1A4", alpha="carry")
    assert sum(getattr(m, "twin", None) is not None for m in model.modules()) == 1 + 12 + 1  # no twins of twins


def test_at_full_precision_the_halves_are_the_whole():
    model, inputs = binarize(tiny(hidden_act="relu"), BitConfig(32, 32, **METHOD)), batch()
    before = outputs(model, **inputs)[0]
    set_precision(set_precision(model, "W1A1"), "W32A32")
    torch.testing.assert_close(outputs(model, **inputs)[0], before)
