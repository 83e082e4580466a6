"""Fused formulas: compiled and plain agree, and whatever keeps torch.compile from working changes no result."""

import contextlib
import io

import pytest
import torch
from tiny_models import assert_same_gradients, batch, python, tiny, warm_up
from torch._subclasses.fake_tensor import FakeTensorMode

from bitlab import BitConfig, binarize, compiled
from bitlab.binarizers import codes_backward, codes_forward, elastic, weight_forward
from bitlab.errors import BitlabError
from bitlab.products import linear_backward, linear_forward

needs_compiler = pytest.mark.skipif(compiled.compiler() is None, reason="no C++ compiler here")
BROKEN = """
import torch
from bitlab import compiled
from bitlab.binarizers import elastic
x = torch.linspace(-2, 2, 24).reshape(4, 6).requires_grad_()
alpha = torch.tensor(0.7, requires_grad=True)
y = elastic(x, alpha, 2)
y.square().sum().backward()
print(y.sum().item(), x.grad.sum().item(), alpha.grad.item())
print(compiled.status())
"""


@pytest.fixture
def on(monkeypatch):
    monkeypatch.setenv(compiled.VARIABLE, "on")
    yield
    assert not compiled._broken, "compiling failed, the comparison was of a formula with itself"


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@needs_compiler
@pytest.mark.parametrize(  # every width, set and beta once or more: each case takes seconds to compile
    ("bits", "signed", "thresholds"),
    [(1, True, True), (1, False, False), (2, True, False), (2, False, True), (4, True, True), (4, False, False)],
)
def test_compiled_and_plain_agree(on, bits, signed, thresholds):
    generator = torch.Generator().manual_seed(bits)
    alpha = torch.tensor(0.4)
    beta = torch.randn(7, generator=generator) / 5 if thresholds else None
    for rows in (5, 9):  # two lengths: one compiled function serves them all
        x = torch.randn(rows, 7, generator=generator)
        x = x if signed else x.relu()
        grad = torch.randn(rows, 7, generator=generator)
        given = (alpha, beta, bits, signed)
        assert torch.equal(codes_forward(x, *given), codes_forward.formula(x, *given))
        close(codes_backward(grad, x, *given), codes_backward.formula(grad, x, *given))


@needs_compiler
def test_weights_agree(on):
    weight = torch.randn(6, 5)
    found, expected = weight_forward(weight), weight_forward.formula(weight)
    assert torch.equal(found[0], expected[0])
    close(found[1], expected[1])


@needs_compiler
@pytest.mark.parametrize(("bits", "signed", "bias"), [(1, True, True), (2, False, False)])
def test_layers_agree(on, bits, signed, bias):
    """A whole layer: the same signs and scale, the same product of codes, the same gradients."""
    x, weight, grad = torch.randn(5, 7), torch.randn(6, 7), torch.randn(5, 6)
    learned = torch.tensor(0.4), torch.randn(7) / 5, bits, signed
    given = x, weight, torch.randn(6) if bias else None, *learned
    found, expected = linear_forward(*given), linear_forward.formula(*given)
    assert torch.equal(found[1], expected[1])
    close((found[0], found[2]), (expected[0], expected[2]))
    given = grad, x, *expected[1:], *learned, torch.float32
    close(linear_backward(*given), linear_backward.formula(*given))


def distance(model, inputs):
    """The distillation loss of a tiny model on one batch."""
    with torch.no_grad():
        target = tiny(seed=1).to(model.dtype)(**inputs).logits.softmax(-1)
    return -(target * model(**inputs).logits.log_softmax(-1)).sum(-1).mean()


@needs_compiler
@pytest.mark.parametrize("bits", [1, 2])
def test_a_step_is_the_same(monkeypatch, bits):
    """The loss and every gradient, from the same state. Not a training: it goes on from the last bit of every sum."""
    inputs, found = batch(8), {}
    model = warm_up(binarize(tiny(), BitConfig(1, bits))).double().train()
    for mode in ("off", "on"):
        monkeypatch.setenv(compiled.VARIABLE, mode)
        model.zero_grad()
        loss = distance(model, inputs)
        loss.backward()
        found[mode] = {"loss": loss.detach()} | {name: p.grad.clone() for name, p in model.named_parameters()}
    assert not compiled._broken
    assert_same_gradients(found["on"], found["off"])


def test_a_compiler_that_does_not_work_changes_nothing(tmp_path, monkeypatch):
    """A process with a broken compiler and no compiled functions kept on disk prints what a plain one does."""
    fake = tmp_path / "c++"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    kept = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "kept")}
    numbers, status = python("-c", BROKEN, BITLAB_COMPILE="on", CXX=str(fake), **kept).splitlines()
    monkeypatch.setenv(compiled.VARIABLE, "off")
    with contextlib.redirect_stdout(io.StringIO()) as plain:
        exec(BROKEN, {})
    assert numbers == plain.getvalue().splitlines()[0] and "torch.compile failed" in status


def test_failing_once_is_enough(monkeypatch):
    """After a failure nobody tries again, and the result is the formula's."""
    calls = []

    def compile_(formula, **options):
        def fails(*args):
            calls.append(args)
            raise RuntimeError("C++ compile error\nwith much more text")

        return fails

    monkeypatch.setenv(compiled.VARIABLE, "on")
    monkeypatch.setattr(compiled, "compiler", lambda: "/usr/bin/c++")
    monkeypatch.setattr(compiled, "_broken", [])
    monkeypatch.setattr(torch, "compile", compile_)
    double = compiled.compiled(lambda x: x * 2)
    assert torch.equal(double(torch.ones(3)), torch.full((3,), 2.0)) and len(calls) == 1
    assert torch.equal(double(torch.ones(3)), torch.full((3,), 2.0)) and len(calls) == 1
    assert compiled.status() == (False, "torch.compile failed: C++ compile error")


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_without_a_compiler_the_formulas_run(monkeypatch, mode):
    monkeypatch.setenv(compiled.VARIABLE, mode)
    monkeypatch.setattr(compiled, "compiler", lambda: None)
    monkeypatch.setattr(compiled, "_broken", [])
    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: pytest.fail("there is no compiler"))
    assert torch.equal(compiled.compiled(lambda x: x + 1)(torch.zeros(2)), torch.ones(2))
    if not torch.cuda.is_available():
        assert compiled.status() == (False, "no C++ compiler found (install g++ or clang)")


@pytest.mark.parametrize(
    ("mode", "size", "compiles"),
    [("auto", 1_000_000, False), ("auto", 1_100_000, True), ("on", 10, True), ("off", 1_000_000, False)],
)
def test_what_is_compiled(monkeypatch, mode, size, compiles):
    seen = []
    monkeypatch.setenv(compiled.VARIABLE, mode)
    monkeypatch.setattr(compiled, "compiler", lambda: "/usr/bin/c++")
    monkeypatch.setattr(compiled, "_broken", [])
    monkeypatch.setattr(torch, "compile", lambda formula, **options: seen.append(formula) or formula)
    compiled.compiled(lambda x: x + 1)(torch.zeros(size))
    assert bool(seen) is compiles
    assert compiled.status()[0] is (mode != "off")


@pytest.mark.parametrize("value", ["nonsense", "1", ""])
def test_another_word_is_a_clear_error(monkeypatch, value):
    monkeypatch.setenv(compiled.VARIABLE, value)
    with pytest.raises(BitlabError, match=r"BITLAB_COMPILE is .*: set it to auto, on or off"):
        elastic(torch.ones(3), torch.tensor(1.0))


def test_the_compiler_that_is_named_comes_first(monkeypatch, tmp_path):
    named = tmp_path / "my-c++"
    named.write_text("#!/bin/sh\n")
    named.chmod(0o755)
    monkeypatch.setenv("CXX", str(named))
    assert compiled.find_compiler.__wrapped__("CXX", "c++") == str(named)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX")
    assert compiled.find_compiler.__wrapped__("CXX", "c++") is None
    assert compiled.find_compiler.__wrapped__("CXX", "c++", "my-c++") == str(named)


def test_fake_tensors_run_the_formula(monkeypatch):
    """They have a shape and no memory: compiled code that reads it would take the process down."""
    monkeypatch.setenv(compiled.VARIABLE, "on")
    with FakeTensorMode():
        x = torch.empty(4, 8, requires_grad=True)
        assert not compiled._worth_it(x)
        assert elastic(x, torch.ones(())).shape == (4, 8)
