"""Under autocast the products of codes stay exact, and only gradients are rounded."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny

from bitlab import BinaryLinear, BitConfig, binarize
from bitlab.products import code_product, exact_matmul


def bf16(enabled=True):
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)


@settings(max_examples=40)
@given(
    rows=st.integers(1, 40),
    width=st.integers(1, 900),
    out=st.integers(1, 70),
    bits=st.sampled_from([1, 2, 4, 8]),
    leading=st.sampled_from([(), (2,), (2, 3)]),
    learns=st.booleans(),
    mixed=st.booleans(),
)
def test_code_product_is_exact(rows, width, out, bits, leading, learns, mixed):
    codes = torch.randint(-(2 ** (bits - 1)), 2**bits, (*leading, rows, width)).float().requires_grad_(learns)
    signs = torch.randint(0, 2, (*leading, width, out)).float() * 2 - 1
    with bf16(mixed):
        product = code_product(codes, signs, bits)
    assert product.dtype == torch.float32
    assert torch.equal(product.double(), codes.double() @ signs.double())
    if learns:  # the gradient of the sum of the products: row sums of the signs, rounded only in mixed precision
        product.sum().backward()
        expected = signs.sum(-1)[..., None, :].expand_as(codes)
        torch.testing.assert_close(codes.grad, expected, rtol=2**-7 if mixed else 0, atol=0)


def test_plain_bf16_would_not_be_exact():
    """The reason for `code_product`: sums above 256 do not fit into bf16."""
    codes = torch.ones(1, 771, requires_grad=True)
    with bf16():
        assert (codes @ torch.ones(771, 1)).item() != 771
        assert code_product(codes, torch.ones(771, 1)).item() == 771
        assert exact_matmul(codes, torch.ones(771, 1)).item() == 771


def test_real_numbers_are_no_codes():
    """Under autocast W1A32 multiplies its inputs as they are (rounded to bf16), not as int8; W1A8 holds 255."""
    x = torch.rand(5, 16, requires_grad=True)
    layer = BinaryLinear(16, 8, activation_bits=32).train()
    with bf16():
        mixed = layer(x).float()
    torch.testing.assert_close(mixed, layer(x), rtol=0.02, atol=0.02)
    layer = BinaryLinear(16, 8, activation_bits=8, signed=False).train()
    exact = layer(x * 9)
    with bf16():
        assert torch.equal(layer(x * 9), exact)


def test_what_the_backward_keeps_is_small():
    """Of a product's two inputs one byte a number stays, where a plain product would keep the floats."""
    kept = []

    def pack(t):
        kept.append(t.dtype)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        code_product(torch.ones(3, 4, requires_grad=True), torch.ones(4, 2))
    assert kept == [torch.int8, torch.int8]


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
    torch.testing.assert_close(mixed, exact, rtol=0, atol=1e-5)
