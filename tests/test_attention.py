"""Binary attention against a plain composition of binarized tensors; masks, padding and neighbours."""

from types import SimpleNamespace

import pytest
import torch
from tiny_models import CONFIGS, METHODS, assert_same_gradients, batch, binarizers, binary, outputs, tiny

from bitlab import ElasticBinarizer
from bitlab.attention import binary_attention

DOUBLE = {"dtype": torch.float64}
HEADS, LENGTH, WIDTH = 2, 5, 3


def attention_module(bits):
    module = torch.nn.Module()
    for kind in ("query", "key", "value"):
        module.add_module(f"{kind}_binarizer", ElasticBinarizer(HEADS * WIDTH, bits, **DOUBLE))
    module.probs_binarizer = ElasticBinarizer(None, bits, signed=False, **DOUBLE)
    with torch.no_grad():
        for binarizer in module.children():
            binarizer.alpha.fill_(0.5 if binarizer.signed else 0.3)
            binarizer.initialized.fill_(True)
            binarizer.sync()
            if binarizer.beta is not None:
                binarizer.beta.copy_(0.3 * torch.randn(HEADS * WIDTH, **DOUBLE))
    return module


def qkv(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, HEADS, LENGTH, WIDTH)
    return [torch.randn(shape, generator=generator, **DOUBLE).requires_grad_() for _ in range(3)]


def padding_mask(hidden):
    mask = torch.zeros(2, 1, 1, LENGTH, **DOUBLE)
    mask[1, ..., -hidden:] = torch.finfo(torch.float32).min
    return mask


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_attention_is_the_formula(bits):
    torch.manual_seed(0)
    module, (q, k, v) = attention_module(bits), qkv()
    scores = []
    context, probs = binary_attention(module, q, k, v, padding_mask(2), attention_scores=scores)
    g = torch.randn_like(context)
    context.backward(g)
    grads = [tensor.grad.clone() for tensor in (q, k, v, *module.parameters())]

    def binarized(kind, x):  # one head at a time, with its own slice of the thresholds
        layer = getattr(module, f"{kind}_binarizer")
        joined = layer(torch.cat(list(x.unbind(1)), dim=-1))
        return torch.stack(joined.split(WIDTH, dim=-1), dim=1)

    for tensor in (q, k, v, *module.parameters()):
        tensor.grad = None
    bq, bk, bv = binarized("query", q), binarized("key", k), binarized("value", v)
    plain = torch.einsum("bhqd,bhkd->bhqk", bq, bk) / WIDTH**0.5
    bits_of_probs = module.probs_binarizer((plain + padding_mask(2)).softmax(-1))
    expected = torch.einsum("bhqk,bhkd->bqhd", bits_of_probs, bv)
    expected.backward(g)

    torch.testing.assert_close(scores, [plain])
    torch.testing.assert_close(probs, bits_of_probs)
    torch.testing.assert_close(context, expected)
    torch.testing.assert_close(grads, [tensor.grad for tensor in (q, k, v, *module.parameters())])
    assert not probs[1, ..., -2:].any() and probs[0, ..., -2:].any()  # masked keys have no bits


def test_dropped_probabilities_have_no_bits():
    """Dropout comes before the binarizer: what survives is a level of the set, what does not is 0."""
    torch.manual_seed(0)
    module = attention_module(1).train()
    _, probs = binary_attention(module, *qkv(), None, dropout=0.999)
    assert (probs == 0).float().mean() > 0.9
    module.eval()
    _, probs = binary_attention(module, *qkv(), None, dropout=0.999)
    assert probs.any() and torch.isin(probs.detach(), torch.tensor([0, 0.3], **DOUBLE)).all()


def test_scaling_is_that_of_the_caller():
    module, (q, k, v) = attention_module(1), qkv()
    scores = []
    for scaling in (None, 0.1):
        binary_attention(module, q, k, v, None, scaling=scaling, attention_scores=scores)
    torch.testing.assert_close(scores[0] * WIDTH**0.5 * 0.1, scores[1])


def test_without_binarizers_it_is_ordinary_attention():
    q, k, v = qkv()
    context, _ = binary_attention(SimpleNamespace(training=False), q, k, v, padding_mask(2))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, padding_mask(2))
    torch.testing.assert_close(context, expected.transpose(1, 2))


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_float_teacher_gives_its_scores(architecture):
    model = tiny(architecture)
    inputs = batch(pad=3)
    expected = outputs(model, **inputs)[0]
    model.set_attn_implementation("bitlab")
    scores = []
    torch.testing.assert_close(outputs(model, **inputs, attention_scores=scores)[0], expected)
    assert [tuple(layer.shape) for layer in scores] == [(3, 2, 9, 9)] * 2


# ------------------------------------------------------------------ padding, batches, gradients, in a model


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_an_example_does_not_see_padding_or_neighbours(architecture, kind):
    model, inputs = binary(architecture, kind=kind).double(), batch(size=4, length=7)
    together = outputs(model, **inputs)[0]
    assert together.std(dim=0).max() > 1e-2  # else everything is the same anyway
    for i in range(4):
        alone = {name: tensor[i : i + 1] for name, tensor in inputs.items()}
        torch.testing.assert_close(outputs(model, **alone)[0], together[i : i + 1], rtol=0, atol=1e-5)

    longer = batch(size=6, length=12, seed=5)  # other neighbours, five places of padding
    longer["input_ids"][:4] = torch.nn.functional.pad(inputs["input_ids"], (0, 5), value=1)
    longer["attention_mask"][:4, 7:] = 0
    torch.testing.assert_close(outputs(model, **longer)[0][:4], together, rtol=0, atol=1e-5)
    unmasked = dict(longer, attention_mask=torch.ones_like(longer["attention_mask"]))
    assert (outputs(model, **unmasked)[0][:4] - together).abs().max() > 1e-3  # the mask is what does it


@pytest.mark.parametrize("bits", [1, 2])
def test_gradients_do_not_see_padding(bits):
    """All but those of alpha, which are divided by sqrt(N) with N counting every place."""
    model, inputs, padded = binary(kind=f"bit W1A{bits}").double(), batch(length=7), batch(length=11, pad=4)
    padded["input_ids"][:, :7] = inputs["input_ids"]
    gradients = []
    for given in (inputs, padded):
        model.zero_grad()
        model(**given).logits.square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if not name.endswith("alpha")})
    assert_same_gradients(gradients[1], gradients[0])


@pytest.mark.parametrize("architecture", CONFIGS)
def test_attentions_of_a_model_are_bits(architecture):
    model = binary(architecture)
    with torch.no_grad():
        attentions = model(**batch(pad=3), output_attentions=True).attentions
    alphas = [m.alpha.detach() for name, m in binarizers(model).items() if name.endswith("probs_binarizer")]
    assert len(attentions) == len(alphas) == 2
    for probs, alpha in zip(attentions, alphas):
        assert probs.shape == (3, 2, 9, 9)
        assert not probs[..., -3:].any() and probs.any()
        assert torch.isin(probs, torch.cat([torch.zeros(1), alpha])).all()
