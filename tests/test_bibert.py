"""BiBERT against formulas written here, in numpy and float64: layers, attention, the whole model, losses, gradients."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from tiny_models import batch, tiny
from transformers.modeling_outputs import ModelOutput

from bitlab import BitConfig, binarize
from bitlab.attention import binary_attention
from bitlab.distillation.losses import distillation_loss
from bitlab.experiments import Experiment
from bitlab.rivals.bibert import (
    BiBertLinear,
    SignBinarizer,
    binarize_activation,
    binarize_rows,
    binarize_scores,
    direction_distance,
    direction_losses,
)

DOUBLE = {"dtype": torch.float64}


def draw(*shape, seed=0, spread=1.0):
    return spread * np.random.default_rng(seed).standard_normal(shape)


def tensor(x):
    return torch.tensor(x, requires_grad=True)


def close(ours, expected, **tolerance):
    ours = ours.detach().numpy() if isinstance(ours, torch.Tensor) else ours
    np.testing.assert_allclose(ours, expected, **({"rtol": 1e-10, "atol": 1e-12} | tolerance))


def np_sign(x):
    return np.where(x >= 0, 1.0, -1.0)


def np_weight(w):
    """m_r sign(W - rowmean), one row after the other."""
    return np.stack([np.abs(row).mean() * np_sign(row - row.mean()) for row in w])


# ----------------------------------------------------------------------------------------- functions and layers


def test_weights():
    w, g = draw(5, 7, spread=1.5), draw(5, 7, seed=1)
    ours = tensor(w)
    out = binarize_rows(ours)
    out.backward(torch.tensor(g))
    close(out, np_weight(w))
    masked = g * (np.abs(w - w.mean(1, keepdims=True)) <= 1)
    assert 0 < (masked == 0).mean() < 1  # the clamp cuts some, not all
    close(ours.grad, masked - masked.mean(1, keepdims=True))  # the rowmean is part of what is clamped


def test_activations_and_scores():
    x, g = draw(40, spread=1.5), draw(40, seed=1)
    x[0], x[1], x[2] = 0.0, 1.0, -1.0
    for function, expected in ((binarize_activation, np_sign(x)), (binarize_scores, np.where(x > 0, 1.0, 0.0))):
        ours = tensor(x)
        out = function(ours)
        out.backward(torch.tensor(g))
        close(out, expected)
        close(ours.grad, np.where(np.abs(x) <= 1, g, 0))


def test_a_sign_binarizer_has_nothing_to_learn():
    binarizer = SignBinarizer(4).train()
    x = torch.tensor([[0.3, -2.0, 0.0, 5.0]])
    assert torch.equal(binarizer(x), torch.tensor([[1.0, -1.0, 1.0, 1.0]]))
    assert not list(binarizer.parameters()) and not binarizer.state_dict()
    binarizer.set_bits(32)
    assert torch.equal(binarizer(x), x) and not binarizer.takes_scores


def test_linear_layer_and_its_gradients():
    x, g = draw(2, 3, 6), draw(2, 3, 4, seed=1)
    layer = BiBertLinear.from_float(torch.nn.Linear(6, 4, **DOUBLE))
    with torch.no_grad():
        layer.weight *= 4  # so that the clamp matters
    w, b = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    given = tensor(x)
    out = layer(given)
    out.backward(torch.tensor(g))
    close(out, np_sign(x) @ np_weight(w).T + b)
    close(given.grad, (g @ np_weight(w)) * (np.abs(x) <= 1))
    to_weight = np.einsum("bto,bti->oi", g, np_sign(x)) * (np.abs(w - w.mean(1, keepdims=True)) <= 1)
    close(layer.weight.grad, to_weight - to_weight.mean(1, keepdims=True))
    close(layer.bias.grad, g.sum((0, 1)))


# -------------------------------------------------------------------------------------------------- Bi-Attention


def bi_attention_module(channels=6):
    module = torch.nn.Module()
    for kind in ("query", "key", "value"):
        module.add_module(f"{kind}_binarizer", SignBinarizer(channels))
    module.probs_binarizer = SignBinarizer(None, signed=False)
    return module


def test_bi_attention_and_its_gradients():
    q, k, v, g = (draw(2, 2, 5, 3, seed=i) for i in range(4))
    mask = np.zeros((2, 1, 1, 5))
    mask[1, ..., -2:] = np.finfo(np.float32).min
    given, raw = [tensor(x) for x in (q, k, v)], []
    out, bits = binary_attention(bi_attention_module(), *given, torch.tensor(mask), attention_inputs=raw)
    out.backward(torch.tensor(g).transpose(1, 2))

    scores = np.einsum("bhqd,bhkd->bhqk", np_sign(q), np_sign(k)) / 3**0.5 + mask
    step = np.where(scores > 0, 1.0, 0.0)  # no softmax
    close(bits, step)
    close(out, np.einsum("bhqk,bhkd->bqhd", step, np_sign(v)))
    assert not step[1, ..., -2:].any() and 0 < step.mean() < 1
    to_scores = np.einsum("bhqd,bhkd->bhqk", g, np_sign(v)) * (np.abs(scores) <= 1)
    close(given[0].grad, np.einsum("bhqk,bhkd->bhqd", to_scores, np_sign(k)) / 3**0.5 * (np.abs(q) <= 1))
    close(given[1].grad, np.einsum("bhqk,bhqd->bhkd", to_scores, np_sign(q)) / 3**0.5 * (np.abs(k) <= 1))
    close(given[2].grad, np.einsum("bhqk,bhqd->bhkd", step, g) * (np.abs(v) <= 1))
    assert all(a is b for a, b in zip(raw[0], given, strict=True))  # collected as they came, not binarized


def test_what_dropout_removes_does_not_attend():
    """Dropout comes before the step: a score of 0, of a real key or of padding, gives no bit."""
    q, k, v = (torch.tensor(draw(2, 2, 5, 3, seed=i)) for i in range(3))
    mask = torch.zeros(2, 1, 1, 5, **DOUBLE)
    mask[1, ..., -2:] = torch.finfo(torch.float32).min
    module = bi_attention_module().train()
    _, kept = binary_attention(module, q, k, v, mask, dropout=0.0)
    for _ in range(20):
        _, bits = binary_attention(module, q, k, v, mask, dropout=0.5)
        assert ((bits == 0) | (bits == 1)).all() and (bits <= kept).all() and bits.sum() < kept.sum()


# ------------------------------------------------------------------------------------------------ a whole model


def np_layer_norm(x, layer):
    return layer(torch.tensor(x)).detach().numpy()


def np_linear(x, layer):
    return np_sign(x) @ np_weight(layer.weight.detach().numpy()).T + layer.bias.detach().numpy()


def np_bibert(model, ids, mask):
    """BiBERT's forward, from word ids to logits."""
    encoder, (size, length) = model.bert, ids.shape
    tables = encoder.embeddings
    x = np_weight(tables.word_embeddings.weight.detach().numpy())[ids]
    x = x + tables.position_embeddings.weight.detach().numpy()[None, :length]
    x = np_layer_norm(x + tables.token_type_embeddings.weight.detach().numpy()[0], tables.LayerNorm)
    for layer in encoder.encoder.layer:
        own = layer.attention.self
        heads = own.num_attention_heads
        q, k, v = (
            np_sign(np_linear(x, each)).reshape(size, length, heads, -1) for each in (own.query, own.key, own.value)
        )
        scores = np.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        bits = (scores > 0) & (mask[:, None, None, :] == 1)
        context = np.einsum("bhqk,bkhd->bqhd", bits, v).reshape(size, length, -1)
        x = np_layer_norm(x + np_linear(context, layer.attention.output.dense), layer.attention.output.LayerNorm)
        inner = np_linear(x, layer.intermediate.dense)
        inner = torch.nn.functional.gelu(torch.tensor(inner)).numpy()
        x = np_layer_norm(x + np_linear(inner, layer.output.dense), layer.output.LayerNorm)
    pooled = np.tanh(np_linear(x[:, 0], encoder.pooler.dense))
    return pooled @ model.classifier.weight.detach().numpy().T + model.classifier.bias.detach().numpy()


def test_the_whole_forward():
    model = binarize(tiny().double(), BitConfig(method="bibert")).eval()
    inputs = batch(size=5, pad=2)
    with torch.no_grad():
        ours = model(**inputs).logits
    expected = np_bibert(model, inputs["input_ids"].numpy(), inputs["attention_mask"].numpy())
    close(ours, expected, rtol=1e-8, atol=1e-9)
    assert ours.std(0).min() > 1e-2


# -------------------------------------------------------------------------------------------------------- losses

MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
LAYERS, HEADS, WIDTH = 2, 2, 3


def arrays(seed):
    """q, k, v of every layer as one array, hidden states as another."""
    return draw(LAYERS, 3, 2, HEADS, 4, WIDTH, seed=seed), draw(LAYERS + 1, 2, 4, HEADS * WIDTH, seed=seed + 1)


def as_output(qkv, states, **others):
    triples = tuple(tuple(layer) for layer in qkv)
    return ModelOutput(attention_inputs=triples, hidden_states=tuple(states), **others)


def np_distance(s, t):
    return np.sqrt(((s / np.sqrt((s**2).sum()) - t / np.sqrt((t**2).sum())) ** 2).sum())


def np_directions(student, teacher):
    """Loops over layers, examples and heads; an example is cut to its real tokens."""
    found = dict.fromkeys(("query", "key", "value", "states"), 0.0)
    lengths = MASK.sum(1)
    for layer in range(LAYERS):
        for number, name in enumerate(("query", "key", "value")):
            for example, length in enumerate(lengths):
                for head in range(HEADS):
                    s, t = (side[0][layer, number, example, head, :length] for side in (student, teacher))
                    distance = np_distance(s @ s.T / WIDTH**0.5, t @ t.T / WIDTH**0.5)
                    found[name] += distance / (len(lengths) * HEADS)
    for layer in range(LAYERS + 1):
        for example, length in enumerate(lengths):
            s, t = (side[1][layer, example, :length] for side in (student, teacher))
            found["states"] += np_distance(s, t) / len(lengths)
    return found


def test_direction_matching_and_its_gradients():
    student, teacher = arrays(0), arrays(10)
    target = as_output(*(torch.tensor(x) for x in teacher))

    def losses(*given):
        return direction_losses(as_output(*given), target, mask=torch.tensor(MASK))

    ours, expected = [tensor(x) for x in student], np_directions(student, teacher)
    assert {name: loss.item() for name, loss in losses(*ours).items()} == pytest.approx(expected, rel=1e-10)
    assert all(0.1 < distance < 2 * (LAYERS + 1) for distance in expected.values())
    assert torch.autograd.gradcheck(lambda *given: tuple(losses(*given).values()), ours, fast_mode=True)


def test_only_directions_count():
    x, y = (torch.tensor(draw(2, 4, 5, seed=i)) for i in (0, 1))
    close(direction_distance(x, 7 * x), 0)
    close(direction_distance(x, -x), 2)
    close(direction_distance(x, 3 * y), direction_distance(x, y))
    same = x.clone().requires_grad_()
    direction_distance(same, x).backward()  # at the very minimum the norm has no slope
    assert same.grad.isfinite().all()


def whole_loss(logits, target, labels, task="mrpc"):
    student, teacher = arrays(0), arrays(10)
    (phase,) = Experiment(task, method="bibert").phases()
    terms = distillation_loss(
        as_output(*(torch.tensor(x) for x in student), logits=torch.tensor(logits)),
        as_output(*(torch.tensor(x) for x in teacher), logits=torch.tensor(target)),
        torch.tensor(MASK),
        phase.loss,
        (torch.tensor(labels),),
    )
    return {name: term.item() for name, term in terms.items()}, np_directions(student, teacher)


def test_the_whole_loss():
    logits, target, labels = draw(2, 3, seed=5), draw(2, 3, seed=6), np.array([2, 0])
    terms, directions = whole_loss(logits, target, labels)
    soft = -(softmax(target, -1) * log_softmax(logits, -1)).sum(-1).mean()
    hard = -log_softmax(logits, -1)[[0, 1], labels].mean()
    assert terms == pytest.approx({"logits": soft, "hard": 0.5 * hard, **directions})


def test_a_regression_learns_the_teachers_number_alone():
    logits, target = draw(2, 1, seed=5), draw(2, 1, seed=6)
    terms, directions = whole_loss(logits, target, np.array([3.0, 1.5]), "stsb")
    assert terms == pytest.approx({"logits": ((logits - target) ** 2).mean(), **directions})
