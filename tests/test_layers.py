"""ElasticBinarizer, BinaryLinear and BinaryEmbedding against the functions they are made of."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny
from torch import nn
from torch.nn import functional as F

from bitlab import BinaryEmbedding, BinaryLinear, BitlabError, ElasticBinarizer, binarize, layers, set_precision
from bitlab.binarizers import binarize_weight, elastic, initial_alpha

QUICK = settings(max_examples=25)
sets = st.sampled_from([(bits, signed) for bits in (1, 2, 4) for signed in (True, False)])
DOUBLE = {"dtype": torch.float64}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **DOUBLE)


def ready(module, seed=0):
    """alpha and beta away from 1 and 0, as if initialised."""
    binarizer = getattr(module, "input_binarizer", module)
    with torch.no_grad():
        binarizer.alpha.fill_(0.7)
        binarizer.initialized.fill_(True)
        if binarizer.beta is not None:
            binarizer.beta.copy_(0.2 * randn(binarizer.channels, seed=seed))
    binarizer.sync()
    return module


# ----------------------------------------------------------------------------------------- ElasticBinarizer


@QUICK
@given(sets, st.integers(1, 4), st.integers(1, 5), st.integers(0, 1000))
def test_binarizer_is_elastic_of_x_minus_beta(kind, rows, channels, seed):
    layer = ready(ElasticBinarizer(channels, *kind, **DOUBLE), seed)
    x, g = randn(2, rows, channels, seed=seed).requires_grad_(), randn(2, rows, channels, seed=seed + 1)
    y = layer(x)
    y.backward(g)

    x2, alpha = x.detach().clone().requires_grad_(), layer.alpha.detach().clone().requires_grad_()
    expected = elastic(x2 - layer.beta.detach(), alpha, *kind)
    expected.backward(g)
    assert torch.equal(y, expected)
    assert torch.equal(x.grad, x2.grad)
    torch.testing.assert_close(layer.alpha.grad, alpha.grad)
    torch.testing.assert_close(layer.beta.grad, -x.grad.sum(dim=(0, 1)))


def test_alpha_starts_from_the_first_training_batch_only():
    layer = ElasticBinarizer(4, bits=2)
    first, second = randn(3, 4, seed=1).float(), 5 * randn(3, 4, seed=2).float()
    layer.eval()(first)
    assert layer.alpha.item() == 1 and not layer.initialized
    layer.train()(first)
    assert layer.alpha.item() == pytest.approx(initial_alpha(first, 2).item()) and layer.initialized
    layer(second)
    assert layer.alpha.item() == pytest.approx(initial_alpha(first, 2).item())


def test_the_first_batch_is_taken_after_the_threshold_and_an_alpha_of_one_counts_as_any_other():
    layer = ElasticBinarizer(4)
    with torch.no_grad():
        layer.beta.fill_(1.0)
    layer(torch.full((2, 4), 1.5))
    assert layer.alpha.item() == 1  # 2 mean|1.5 - 1|
    layer(torch.full((2, 4), 9.0))
    assert layer.alpha.item() == 1


def test_initialized_is_in_the_state_dict():
    layer = ElasticBinarizer(4)
    layer(randn(3, 4).float())
    assert set(layer.state_dict()) == {"alpha", "beta", "initialized"}
    loaded = ElasticBinarizer(4)
    loaded.load_state_dict(layer.state_dict())
    loaded.train()(9 * randn(3, 4).float())
    assert torch.equal(loaded.alpha, layer.alpha)

    loaded.load_state_dict(ElasticBinarizer(4).state_dict())  # and the other way: fresh again
    loaded.train()(torch.full((3, 4), 2.0))
    assert loaded.alpha.item() == 4


def test_an_alpha_of_older_checkpoints_is_0_d():
    layer = ElasticBinarizer(4)
    state = layer.state_dict() | {"alpha": torch.tensor(0.7), "initialized": torch.tensor(True)}
    layer.load_state_dict(state)
    assert layer.alpha.shape == (1,) and layer.alpha.item() == pytest.approx(0.7)


def test_elastic_takes_an_alpha_of_either_shape():
    x, grads = randn(3, 4), []
    for shape in ((), (1,)):
        alpha = torch.full(shape, 0.7, dtype=x.dtype, requires_grad=True)
        y = elastic(x, alpha, 2)
        y.square().sum().backward()
        assert alpha.grad.shape == shape and y.shape == x.shape
        assert elastic(x[0, 0], alpha, 2).shape == ()
        grads.append(alpha.grad.view(()))
    assert torch.equal(*grads)


def test_forget_and_reset():
    layer = ready(ElasticBinarizer(4))
    beta = layer.beta.detach().clone()
    layer.forget_alpha()
    layer(torch.full((3, 4), 2.0))
    assert layer.alpha.item() != pytest.approx(0.7) and torch.equal(layer.beta, beta)
    layer.reset()
    assert layer.alpha.item() == 1 and not layer.beta.any() and not layer.initialized


def test_32_bits_pass_through():
    layer, x = ElasticBinarizer(4, bits=32), randn(3, 4).float()
    assert torch.equal(layer(x), x)
    assert not layer.initialized and not layer.alpha.requires_grad and not layer.beta.requires_grad
    layer.set_bits(1)
    assert layer.alpha.requires_grad and layer.beta.requires_grad


def test_what_was_frozen_stays_frozen_between_precisions():
    """32 bits put parameters out of use and into it; another change leaves their flags alone."""
    layer = ElasticBinarizer(4)
    layer.alpha.requires_grad_(False)
    layer.set_bits(2)
    assert not layer.alpha.requires_grad and layer.beta.requires_grad
    unused = ElasticBinarizer(4, bits=32).requires_grad_(True)
    unused.set_bits(32)
    assert unused.alpha.requires_grad and unused.beta.requires_grad
    layer.set_bits(32)
    assert not layer.beta.requires_grad


def test_freezing_a_model_outlives_a_change_of_precision():
    model = binarize(tiny()).requires_grad_(False)
    set_precision(model, "W1A2")
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_no_thresholds_without_channels():
    layer = ElasticBinarizer(None, signed=False)
    assert layer.beta is None and set(layer.state_dict()) == {"alpha", "initialized"}
    assert layer(torch.rand(2, 3, 5)).shape == (2, 3, 5)


def test_binarizer_of_3_bits():
    with pytest.raises(BitlabError, match="3 bits"):
        ElasticBinarizer(4, bits=3)
    with pytest.raises(BitlabError, match="3 bits"):
        ElasticBinarizer(4).set_bits(3)


# --------------------------------------------------------------------------------------------- BinaryLinear


@QUICK
@given(sets, st.booleans(), st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_linear_is_the_product_of_quantized_tensors(kind, bias, width, out, seed):
    torch.manual_seed(seed)
    layer = ready(BinaryLinear(width, out, bias, 1, *kind, **DOUBLE), seed)
    other = copy.deepcopy(layer)
    x, g = randn(2, 3, width, seed=seed).requires_grad_(), randn(2, 3, out, seed=seed + 1)
    x2 = x.detach().clone().requires_grad_()
    y = layer(x)
    expected = F.linear(other.input_binarizer(x2), binarize_weight(other.weight), other.bias)
    torch.testing.assert_close(y, expected)
    y.backward(g)
    expected.backward(g)
    torch.testing.assert_close(x.grad, x2.grad)
    ours, theirs = ({name: p.grad for name, p in each.named_parameters()} for each in (layer, other))
    assert len(ours) == 3 + bias
    torch.testing.assert_close(ours, theirs)


def test_float_parts_of_a_linear():
    """W32A1 and W1A32: the float operand has its ordinary gradient, by finite differences; W32A32 is nn.Linear."""
    x = randn(2, 5)
    layer = ready(BinaryLinear(5, 3, weight_bits=32, **DOUBLE))
    assert torch.autograd.gradcheck(lambda weight: F.linear(layer.input_binarizer(x), weight), layer.weight)
    torch.testing.assert_close(layer(x), F.linear(layer.input_binarizer(x), layer.weight, layer.bias))
    layer = BinaryLinear(5, 3, activation_bits=32, **DOUBLE)
    torch.testing.assert_close(layer(x), F.linear(x, binarize_weight(layer.weight), layer.bias))
    assert torch.autograd.gradcheck(layer, x.requires_grad_())
    layer = BinaryLinear(5, 3, weight_bits=32, activation_bits=32, **DOUBLE)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("bits", [1, 2, 8, 32])
@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5)])
def test_an_empty_batch_is_that_of_an_ordinary_linear(bits, shape):
    """In training it says nothing about alpha: the next batch does."""
    layer, x = BinaryLinear(5, 3, activation_bits=bits), torch.zeros(shape, requires_grad=True)
    assert layer.eval()(x).shape == (*shape[:-1], 3) == nn.Linear(5, 3)(x).shape
    layer.train()(x).sum().backward()
    assert x.grad.shape == shape and not layer.bias.grad.any() and not layer.weight.grad.any()
    assert layer.input_binarizer.alpha.grad is None and not layer.input_binarizer.initialized
    layer(torch.ones(2, 5))
    assert layer.input_binarizer.alpha.isfinite() and bool(layer.input_binarizer.initialized) == (bits != 32)


def test_from_float_shares_the_layer_s_the_parameters():
    linear = nn.Linear(5, 3).eval()
    layer = BinaryLinear.from_float(linear, activation_bits=2, signed=False)
    assert layer.weight is linear.weight and layer.bias is linear.bias
    assert not layer.training and not layer.input_binarizer.training
    assert (layer.input_binarizer.bits, layer.input_binarizer.signed) == (2, False)
    assert not any(tensor.is_meta for tensor in layer.state_dict().values())


# ------------------------------------------------------------------------------------------ BinaryEmbedding


@QUICK
@given(st.integers(2, 8), st.integers(1, 5), st.integers(0, 1000), st.booleans())
def test_embedding_is_binarizing_the_table_first(words, width, seed, padded):
    torch.manual_seed(seed)
    padding_idx = 1 if padded else None
    layer = BinaryEmbedding(words, width, padding_idx, **DOUBLE)
    with torch.no_grad():
        layer.weight.copy_(randn(words, width, seed=seed))
    ids = torch.randint(0, words, (3, 7))  # more places than words: ids repeat
    table = layer.weight.detach().clone().requires_grad_()
    rows, expected = layer(ids), F.embedding(ids, binarize_weight(table, per_row=True), padding_idx)
    torch.testing.assert_close(rows, expected)
    g = randn(3, 7, width, seed=seed + 1)
    rows.backward(g)
    expected.backward(g)
    torch.testing.assert_close(layer.weight.grad, table.grad)
    if padded:
        assert not layer.weight.grad[padding_idx].any()


def test_float_embedding():
    layer = BinaryEmbedding.from_float(nn.Embedding(5, 3), weight_bits=32)
    ids = torch.tensor([[0, 4, 4]])
    assert torch.equal(layer(ids), F.embedding(ids, layer.weight))


def test_from_float_shares_the_table():
    embedding = nn.Embedding(5, 3, padding_idx=2)
    layer = BinaryEmbedding.from_float(embedding)
    assert layer.weight is embedding.weight and layer.padding_idx == 2 and layer.weight_bits == 1


# ------------------------------------------------------------------------------------------- faster, and the same


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("short", [False, True])
def test_a_layer_in_training_is_the_product_of_its_codes(bits, bias, short, monkeypatch):
    """`binary_linear` against the same layer by `code_product`: values and every gradient, under autocast too."""
    layer = BinaryLinear(24, 16, bias, activation_bits=bits).train()
    x = torch.randn(3, 5, 24)
    layer(x)  # starts alpha
    found = []
    for taken in (True, False):
        if not taken:
            monkeypatch.setattr(layers, "trains_on_int8", lambda *args: False)
        inputs = x.clone().requires_grad_()
        layer.zero_grad()
        with torch.autocast("cpu", enabled=short):
            y = layer(inputs)
        assert ("_BinaryLinear" in _graph(y.grad_fn)) is taken
        (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
        gradients = {name: p.grad for name, p in layer.named_parameters()} | {"x": inputs.grad}
        found.append({"y": y.detach()} | {name: g for name, g in gradients.items() if g is not None})
    assert "weight" in found[0]
    torch.testing.assert_close(*found, rtol=1e-2 if short else 1e-5, atol=1e-2 if short else 1e-5)


def test_a_hook_sees_the_codes_of_a_layer_in_training():
    """And changes nothing: the layer then takes the way by the codes."""
    layer, x, seen = BinaryLinear(24, 16).train(), torch.randn(5, 24), []
    layer(x)  # starts alpha
    expected = layer(x)
    layer.input_binarizer.register_forward_hook(lambda module, inputs, found: seen.append(found))
    torch.testing.assert_close(layer(x), expected)
    ((codes, scale),) = seen
    assert set(codes.unique().tolist()) == {-1, 1} and scale == layer.input_binarizer.alpha


def _graph(node):
    """The names of all functions behind a tensor."""
    return "" if node is None else type(node).__name__ + "".join(_graph(n) for n, _ in node.next_functions)
