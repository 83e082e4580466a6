"""Under autocast the products of codes stay exact, and only gradients are rounded."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny

from bitlab import BinaryLinear, BitConfig, binarize
from bitlab.binarizers import code_product, exact_matmul


def bf16(enabled=True):
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 40), width=st.integers(1, 900), out=st.integers(1, 70), bits=st.sampled_from([1, 2, 4]))
def test_code_product_is_exact(rows, width, out, bits):
    codes = torch.randint(-(2 ** (bits - 1)), 2**bits, (2, rows, width)).float()
    signs = torch.randint(0, 2, (out, width)).float() * 2 - 1
    expected = codes.double() @ signs.double().t()
    with bf16():
        product = code_product(codes, signs)
    assert product.dtype == torch.float32
    assert torch.equal(product.double(), expected)


def test_plain_bf16_would_not_be_exact():
    """The reason for `code_product`: sums above 256 do not fit into bf16."""
    codes = torch.ones(1, 771)
    with bf16():
        assert torch.nn.functional.linear(codes, torch.ones(1, 771)).item() != 771
        assert code_product(codes, torch.ones(1, 771)).item() == 771


def test_exact_matmul_leaves_autocast():
    a = torch.ones(2, 3, 5, 771)
    with bf16():
        assert torch.equal(exact_matmul(a, a.transpose(2, 3)), torch.full((2, 3, 5, 5), 771.0))


def test_gradients_agree_to_bf16():
    torch.manual_seed(0)
    x = torch.randn(4, 7, 96)
    layer = BinaryLinear(96, 40).train()
    layer(x)  # initialises alpha
    grads = []
    for enabled in (False, True):
        layer.zero_grad()
        leaf = x.clone().requires_grad_()
        with bf16(enabled):
            layer(leaf).square().sum().backward()
        grads.append([leaf.grad, *(p.grad for p in layer.parameters())])
    for exact, rounded in zip(*grads, strict=True):
        assert rounded.dtype == torch.float32
        assert (exact - rounded).norm() < 0.01 * exact.norm()
    assert not torch.equal(grads[0][0], grads[1][0]), "the backward does run in bf16"


def test_a_model_binarizes_alike():
    """The whole forward: what differs is the float head and nothing before it."""
    torch.manual_seed(0)
    model = binarize(tiny(), BitConfig(1, 1)).train()
    ids = torch.randint(5, 60, (3, 9))
    model(ids)
    model.eval()
    with torch.no_grad():
        exact = model(ids, output_hidden_states=True).hidden_states
        with bf16():
            mixed = model(ids, output_hidden_states=True).hidden_states
    for a, b in zip(exact, mixed, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
