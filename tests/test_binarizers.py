"""The formulas of the two sets and of the weight, written a second time in float64 NumPy, on random input.

Both sides compute in float64, where the same operations round the same way: ties and thresholds agree.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitlab import BitlabError
from bitlab.binarizers import binarize_weight, elastic, initial_alpha, levels

QUICK = settings(max_examples=60)
shapes = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)
seeds = st.integers(0, 2**32 - 1)
alphas = st.floats(0.05, 3.0)
sets = st.sampled_from([(bits, signed) for bits in (1, 2, 4) for signed in (True, False)])
SATURATING = st.sampled_from([(bits, signed) for bits in (2, 4) for signed in (True, False)] + [(1, False)])
CODES = {(1, True): [-1, 1], (1, False): [0, 1], (2, True): [-2, -1, 0, 1], (2, False): [0, 1, 2, 3]}
CODES |= {(4, True): list(range(-8, 8)), (4, False): list(range(16))}


def draw(shape, seed, alpha):
    """Normal values with exact zeros, ties and ends of the range among them, and an upstream gradient."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * rng.choice([0.3, 1.0, 5.0]) * alpha
    special = rng.choice(np.array([0.0, 0.5, -0.5, 1.0, -1.0, 1.5, 2.0, 3.0]), size=shape) * alpha
    return np.where(rng.random(shape) < 0.3, special, x), rng.normal(size=shape)


def reference(x, g, alpha, bits, signed):
    """Output, gradient of x and gradient of alpha, row by row of the table in BiT's section 3.2."""
    a = max(alpha, 1e-5)
    q = x / a
    if signed and bits == 1:
        signs = np.where(x < 0, -1.0, 1.0)
        return a * signs, np.where((q >= -1) & (q <= 1), g, 0), (signs * g).sum() / np.sqrt(x.size)
    low, high = CODES[bits, signed][0], CODES[bits, signed][-1]
    slope = np.select([q < low, q > high], [low, high], np.rint(q) - q)
    y = a * np.minimum(np.maximum(np.rint(q), low), high)
    return y, np.where((q >= low) & (q <= high), g, 0), (slope * g).sum() / np.sqrt(x.size * high)


def run(x, g, alpha, bits, signed):
    x = torch.tensor(x, requires_grad=True)
    alpha = torch.tensor(alpha, dtype=torch.float64, requires_grad=True)
    y = elastic(x, alpha, bits, signed)
    y.backward(torch.tensor(g))
    return y.detach().numpy(), x.grad.numpy(), alpha.grad.numpy()


@QUICK
@given(shapes, seeds, alphas, sets)
def test_elastic_is_the_formula(shape, seed, alpha, kind):
    x, g = draw(shape, seed, alpha)
    y, grad_x, grad_alpha = run(x, g, alpha, *kind)
    expected = reference(x, g, alpha, *kind)
    np.testing.assert_allclose(y, expected[0], rtol=1e-12)
    np.testing.assert_allclose(grad_x, expected[1], rtol=1e-12)
    np.testing.assert_allclose(grad_alpha, expected[2], rtol=1e-9, atol=1e-12)


@QUICK
@given(shapes, seeds, alphas, sets)
def test_elastic_stays_in_its_set(shape, seed, alpha, kind):
    x, _ = draw(shape, seed, alpha)
    x = np.append(x, [-1e30, 1e30]).astype(np.float32)
    y = elastic(torch.tensor(x), torch.tensor(alpha), *kind)
    allowed = torch.tensor(CODES[kind]) * torch.tensor(alpha)
    assert y.dtype == torch.float32
    assert torch.isin(y, allowed).all()
    assert allowed[0] in y and allowed[-1] in y


@pytest.mark.parametrize("kind", CODES)
def test_levels(kind):
    assert levels(*kind) == (CODES[kind][0], CODES[kind][-1])


@pytest.mark.parametrize("bits", [0, 3, 16, -1])
def test_bits_that_do_not_exist(bits):
    with pytest.raises(BitlabError, match=f"{bits} bits"):
        elastic(torch.ones(3), torch.tensor(1.0), bits)


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("alpha", [0.0, -1.0, 1e-9])
def test_alpha_is_at_least_1e_5(kind, alpha):
    x, g = draw((4, 5), 0, 1e-5)
    small, floor = run(x, g, alpha, *kind), run(x, g, 1e-5, *kind)
    for ours, expected in zip(small, floor):
        np.testing.assert_array_equal(ours, expected)


@QUICK
@given(shapes, seeds, alphas)
def test_alpha_gradient_of_the_sign_is_exact(shape, seed, alpha):
    """alpha * sign(x) is linear in alpha: its gradient is the finite difference, divided by sqrt(N)."""
    x, g = draw(shape, seed, alpha)
    _, _, grad_alpha = run(x, g, alpha, 1, True)
    np.testing.assert_allclose(grad_alpha, slope_in_alpha(x, g, alpha, 1, True) / np.sqrt(x.size), rtol=1e-6, atol=1e-8)


@QUICK
@given(shapes, seeds, alphas, SATURATING)
def test_saturated_elements_have_exact_gradients(shape, seed, alpha, kind):
    """Beyond the last level the output is alpha * Qp whatever x is: both gradients are finite differences."""
    rng = np.random.default_rng(seed)
    low, high = levels(*kind)
    outside = np.where(rng.random(shape) < 0.5, high + 0.1, low - 0.1) * alpha
    x, g = outside + np.sign(outside) * rng.random(shape), rng.normal(size=shape)
    _, grad_x, grad_alpha = run(x, g, alpha, *kind)
    scale = np.sqrt(x.size * high)
    np.testing.assert_allclose(grad_alpha, slope_in_alpha(x, g, alpha, *kind) / scale, rtol=1e-6, atol=1e-8)
    assert not grad_x.any()


def slope_in_alpha(x, g, alpha, bits, signed, step=1e-4):
    def value(a):
        return (elastic(torch.tensor(x), torch.tensor(a, dtype=torch.float64), bits, signed).numpy() * g).sum()

    return (value(alpha + step) - value(alpha - step)) / (2 * step)


@pytest.mark.parametrize(
    ("kind", "factor"), [((1, True), 2), ((4, True), 2 / 7**0.5), ((1, False), 4), ((2, False), 4 / 3**0.5)]
)
def test_initial_alpha(kind, factor):
    x = torch.tensor([[-1.0, 2.0], [0.0, 5.0]], requires_grad=True)
    alpha = initial_alpha(x, *kind)
    assert alpha.shape == () and not alpha.requires_grad
    assert alpha.item() == pytest.approx(2 * factor)


@QUICK
@given(st.integers(1, 7), st.integers(1, 7), seeds, st.booleans())
def test_weight_is_the_formula(rows, columns, seed, per_row):
    rng = np.random.default_rng(seed)
    w, g = rng.normal(rng.normal(), 1, size=(rows, columns)), rng.normal(size=(rows, columns))
    weight = torch.tensor(w, requires_grad=True)
    binary = binarize_weight(weight, per_row)
    binary.backward(torch.tensor(g))

    m = np.abs(w).mean(axis=1, keepdims=True) if per_row else np.abs(w).mean()
    np.testing.assert_allclose(binary.detach().numpy(), np.where(w < w.mean(), -m, m), rtol=1e-12)
    np.testing.assert_array_equal(weight.grad.numpy(), g)  # straight through, no clipping
    for part in binary.detach() if per_row else [binary.detach()]:
        assert len(part.abs().unique()) == 1
