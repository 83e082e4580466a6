"""The C kernel and its loader: against plain arithmetic, under sanitizers, and where it cannot be built."""

import argparse
import json
import os
import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import batch, binarizers, tiny, warm_up

from bitlab import BitlabError, ElasticBinarizer, binarize, cli
from bitlab.bench import packed as bench
from bitlab.packed import backend_status, backends, commands, kernel, load_packed, pack, thresholds
from bitlab.packed.bits import pack_bits, pad_heads, unpack_bits, unpack_signs

ROOT = Path(__file__).parent.parent
COMPILER = kernel.compiler()
needs_compiler = pytest.mark.skipif(backends._compiled()[0] is None, reason=f"no kernel: {backends._compiled()[1]}")
ALL = [backends.INT8, backends.FLOAT, *filter(None, [backends._compiled()[0]])]


# -------------------------------------------------------------------------------------------------- arithmetic


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(0, 5), n=st.integers(1, 70))
def test_bits_and_back(rows, n):
    bits = torch.rand(rows, n) > 0.5
    packed = pack_bits(bits)
    assert packed.shape == (rows, -(-n // 8))
    assert np.array_equal(packed.numpy(), np.packbits(bits.numpy(), axis=1, bitorder="little"))
    assert torch.equal(unpack_bits(packed, n), bits)
    assert torch.equal(unpack_signs(packed, n), bits * 2.0 - 1)


def test_padded_heads():
    padded = pad_heads(torch.arange(6), (2, 3), 0, fill=-1)
    assert padded.shape == (64,)
    assert padded[[0, 1, 2, 32, 33, 34]].tolist() == [0, 1, 2, 3, 4, 5] and padded[3:32].eq(-1).all()
    assert pad_heads(torch.arange(64), (2, 32), 0).shape == (64,)


@pytest.mark.parametrize("backend", ALL, ids=lambda backend: backend.name)
@settings(deadline=None, max_examples=40)
@given(
    tokens=st.integers(1, 140),
    width=st.integers(1, 200),
    outputs=st.integers(1, 100),
    signed=st.booleans(),
    seed=st.integers(0, 99),
    threads=st.sampled_from([1, 2, 3]),
)
def test_linear_is_the_integer_product(backend, tokens, width, outputs, signed, seed, threads):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.rand(outputs, width, generator=generator) > 0.5
    x = torch.randn(tokens, width, generator=generator)
    beta, bias = torch.randn(width, generator=generator), torch.randn(outputs, generator=generator)
    residual = torch.randn(tokens, outputs, generator=generator)
    limits = torch.randint(-width - 1, width + 2, (outputs,), generator=generator, dtype=torch.int32)
    active = x >= beta
    codes = (active * 2 - 1 if signed else active).double()
    dot = codes @ (weight * 2 - 1).double().t()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        mine = backend.signs(x, beta[None])[0] if signed else backend.integers(active.float(), 1, False)
        plain = backend.prepare(backends.Linear(pack_bits(weight), width, signed, 0.0123, bias))
        bits = backend.prepare(backends.Linear(pack_bits(weight), width, signed, thresholds=limits, signed_out=True))
        last = backend.prepare(backends.Linear(pack_bits(torch.eye(outputs) > 0), outputs, True))
        assert torch.equal(backend.dot(plain, mine).double(), dot)
        expected = torch.addcmul(bias, dot.float(), torch.tensor(0.0123)) + residual
        assert torch.equal(backend.linear(plain, mine, residual), expected)
        passed = (dot >= limits).double() * 2 - 1
        # row n of the last layer is +1 at n and -1 elsewhere: 2 code_n - sum of codes
        assert torch.equal(backend.dot(last, backend.linear(bits, mine)).double(), 2 * passed - passed.sum(1, True))
    finally:
        torch.set_num_threads(before)


@needs_compiler
@settings(deadline=None, max_examples=30)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 70),
    heads=st.integers(1, 3),
    width=st.sampled_from([1, 16, 32, 33, 64, 96]),
    scale=st.floats(0, 2),
    alpha=st.floats(1e-5, 1),
    threads=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
)
def test_attention_is_the_same_in_all_backends(batch, length, heads, width, scale, alpha, threads, seed):
    generator = torch.Generator().manual_seed(seed)
    table = thresholds.exponentials(scale, width)
    limits = torch.randint(-length, length + 1, (heads * width,), generator=generator, dtype=torch.int32)
    attention = backends.Attention(heads, width, table, alpha / 2, limits)
    eye = torch.eye(heads * width) > 0
    keep = (torch.rand(batch, length, generator=generator) > 0.3).to(torch.uint8)
    x = torch.randn(3, batch * length, heads * width, generator=generator)
    results = []
    torch.set_num_threads(threads)
    for backend in ALL:
        project = backends.Linear(pack_bits(eye), heads * width, heads_out=(heads, width))
        shift = torch.full((heads * width,), 2 - heads * width, dtype=torch.int32)  # 2 code - sum: not bits of x alone
        project = backends.Linear(**vars(project) | {"thresholds": shift})
        q, k, v = (
            backend.linear(backend.prepare(project), backend.signs(part, torch.zeros(1, heads * width))[0])
            for part in x
        )
        context = backend.attention(backend.prepare_attention(attention), q, k, v, keep)
        read = backend.prepare(backends.Linear(pack_bits(eye), heads * width, heads_in=(heads, width)))
        results.append(backend.dot(read, context))
    torch.set_num_threads(1)
    assert all(torch.equal(result, results[0]) for result in results)


def test_thresholds_are_where_the_float_expression_turns():
    torch.manual_seed(1)
    binarizer = ElasticBinarizer(40, signed=False).eval()
    with torch.no_grad():
        binarizer.alpha.fill_(0.7)
        binarizer.beta.copy_(0.1 * torch.randn(40))
    bias, scale, width = torch.randn(40), torch.tensor(0.031), 50
    found = thresholds.after_linear(scale, bias, binarizer, width, relu=True)
    with torch.no_grad():
        dots = torch.arange(-width, width + 1.0)[:, None].expand(-1, 40)
        ones = binarizer(torch.relu(torch.addcmul(bias, dots, scale))) > 0
    assert torch.equal(ones, dots >= found)
    assert 0 < ones.float().mean() < 1
    never = thresholds.smallest(lambda dot: dot > 100, 5, 2)
    assert never.tolist() == [6, 6]


def test_sixty_five_exponentials():
    table = thresholds.exponentials(0.1, 64)
    assert table[0] == 2**40 and table[65:].eq(0).all() and len(table) == 196
    torch.testing.assert_close(
        table[:65].double() / 2**40, torch.exp(-0.2 * torch.arange(65).double()), rtol=1e-6, atol=0
    )


# -------------------------------------------------------------------------------------------------- sanitizers

DRIVER = r"""
#include <stdio.h>
#include KERNEL
static uint32_t state = 1;
static uint32_t next(void) { state ^= state << 13; state ^= state >> 17; return state ^= state << 5; }
static void *fill(long n)
{ uint32_t *p = malloc((size_t)(n ? n : 1) * 4); for (long i = 0; i < n; i++) p[i] = next(); return p; }
static void mask(uint32_t *p, long rows, long words, long width)
{ if (width % 32) for (long r = 0; r < rows; r++) p[r * words + words - 1] &= (1u << width % 32) - 1; }
static void linear(void)
{
    long tokens = next() % 70, width = 1 + next() % 1300, outputs = 1 + next() % 90, words = ceil_div(width, 32);
    long bytes = ceil_div(width, 8), blocks = ceil_div(outputs, 32);
    uint32_t *a = fill(tokens * words), *w = fill(blocks * words * 32), *bits = fill(tokens * blocks);
    uint8_t *rows = fill(outputs * bytes);
    int32_t *limits = fill(blocks * 32);
    float *bias = malloc((size_t)outputs * 4), *y = malloc((size_t)(tokens * outputs + 1) * 4);
    float *x = malloc((size_t)(tokens * width + 1) * 4);
    if (width % 8) for (long n = 0; n < outputs; n++) rows[n * bytes + bytes - 1] &= (1 << width % 8) - 1;
    for (long n = 0; n < outputs; n++) bias[n] = (float)n;
    for (long i = 0; i < tokens * width; i++) x[i] = (float)(next() % 9) - 4;
    bitlab_signs(x, x, tokens ? 1 : 0, width, words, 1, a, 1);
    mask(a, tokens, words, width);
    bitlab_repack(rows, outputs, bytes, words, w);
    for (int set = 0; set < 2; set++) {
        if (bitlab_linear(a, w, tokens, words, width, outputs, set, NULL, NULL, 1, NULL, NULL, y, 0, 1)) exit(3);
        for (long t = 0; t < tokens; t++) for (long n = 0; n < outputs; n++) {
            long dot = 0;
            for (long k = 0; k < width; k++) {
                int bit = a[t * words + k / 32] >> k % 32 & 1, sign = rows[n * bytes + k / 8] >> k % 8 & 1 ? 1 : -1;
                dot += set ? bit * sign : (bit ? sign : -sign);
            }
            if (y[t * outputs + n] != (float)dot) { printf("dot\n"); exit(4); }
        }
        bitlab_linear(a, w, tokens, words, width, outputs, set, limits, bits, 1, NULL, NULL, NULL, 0, 1);
        bitlab_linear(a, w, tokens, words, width, outputs, set, NULL, NULL, .5f, bias, y, y, 1, 1);
    }
    free(a); free(w); free(bits); free(rows); free(limits); free(bias); free(y); free(x);
}
static void attention(void)
{
    long batch = 1 + next() % 2, length = 1 + next() % 80, heads = 1 + next() % 3, width = 1 + next() % 70;
    long words = ceil_div(width, 32), n = batch * length * heads * words;
    uint32_t *q = fill(n), *k = fill(n), *v = fill(n), *out = fill(n);
    int32_t *limits = fill(heads * words * 32);
    uint8_t *keep = malloc((size_t)(batch * length));
    int64_t *table = calloc((size_t)(3 * width + 4), 8);
    mask(q, batch * length * heads, words, width); mask(k, batch * length * heads, words, width);
    for (long i = 0; i <= width; i++) table[i] = (int64_t)1 << (i < 40 ? 40 - i : 0);
    for (long i = 0; i < batch * length; i++) keep[i] = next() % 3 != 0;
    if (next() % 4 == 0) memset(keep, 0, (size_t)length);
    if (bitlab_attention(q, k, v, keep, batch, length, heads, words, width, table, .01, limits, out, 1)) exit(3);
    free(q); free(k); free(v); free(out); free(limits); free(keep); free(table);
}
int main(void)
{
    for (int i = 0; i < 60; i++) { linear(); attention(); }
    return (int)(bitlab_limit_float(1, 0, 0) + 0 * bitlab_limit_bits(1, 1));
}
"""


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
@pytest.mark.parametrize("flags", [["-march=native"], ["-mavx2", "-mfma"], ["-O3"]], ids=" ".join)
def test_no_fault_under_address_and_undefined_behaviour_sanitizers(flags, tmp_path):
    if "-mavx2" in flags and "avx2" not in Path("/proc/cpuinfo").read_text() * Path("/proc/cpuinfo").exists():
        pytest.skip("this processor has no AVX2")
    (tmp_path / "driver.c").write_text(DRIVER)
    command = [COMPILER, "-std=c99", "-g", "-O1", *flags, "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    command += ["-Wno-unused-parameter", "-Wno-misleading-indentation", "-Wno-unused-function"]
    command += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", f'-DKERNEL="{kernel.SOURCE}"']
    built = subprocess.run([*command, "driver.c", "-o", "driver", "-lm"], cwd=tmp_path, capture_output=True, text=True)
    if built.returncode and re.search("sanitize|asan|ubsan|unrecognized", built.stderr):
        pytest.skip("this compiler has no sanitizers, or not these flags")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([tmp_path / "driver"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


# ------------------------------------------------------------------------------------------------------ loader

# The loader without the rest of the package, which takes seconds to import.
LOAD = """
import sys, types
for name in ("bitlab", "bitlab.packed"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [sys.argv[1] + "/" + name.replace(".", "/")]
from bitlab.packed import kernel
print(kernel.load().bitlab_limit_float(1, 0, 1) != 0)
"""


@needs_compiler
def test_three_processes_compile_at_once(tmp_path):
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = [subprocess.Popen([sys.executable, "-c", LOAD, str(ROOT)], env=env, **pipes) for _ in range(3)]
    for process in started:
        out, errors = process.communicate(timeout=200)
        assert process.returncode == 0 and out.strip() == b"True", errors
    assert len(list((tmp_path / "bitlab").iterdir())) == 1  # one kernel, nothing left over


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A process that has not looked for a kernel yet, with an empty cache."""
    cached = (kernel._load, kernel.compiler, backends._compiled, backends._warn_once)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("BITLAB_KERNEL", "")
    for function in cached:
        function.cache_clear()
    yield tmp_path
    for function in cached:
        function.cache_clear()


@needs_compiler
def test_cache_is_used_and_a_damaged_one_built_again(fresh):
    assert backends.backend().name == "c"
    (built,) = (fresh / "bitlab").iterdir()
    before = built.stat()
    kernel._load.cache_clear()
    kernel.load()
    assert built.stat().st_mtime_ns == before.st_mtime_ns
    damaged = built.with_name("damaged")  # a new file: the old one is mapped into this process
    damaged.write_bytes(b"not a library")
    damaged.replace(built)
    done = subprocess.run([sys.executable, "-c", LOAD, str(ROOT)], capture_output=True, timeout=200)
    assert done.stdout.strip() == b"True", done.stderr
    assert built.stat().st_size == before.st_size


def falls_back(why):
    """One warning of one line, however often it is asked."""
    with pytest.warns(RuntimeWarning, match=why) as warned:
        assert [backends.backend().name for _ in range(3)] == ["int8"] * 3
    assert len(warned) == 1 and "\n" not in str(warned[0].message)
    assert re.search(why, backend_status()[1]) and backend_status()[0] == "int8"
    model = warm_up(binarize(tiny()))
    with torch.no_grad():
        assert torch.equal(pack(model)(**batch()).logits, model(**batch()).logits)


def test_cache_that_cannot_be_written(fresh):
    (fresh / "bitlab").write_text("a file where the folder should be")
    falls_back("cache folder cannot be used|no C compiler")


def test_compiler_that_fails(fresh, monkeypatch):
    compiler = fresh / "cc"
    compiler.write_text("#!/bin/sh\n[ $1 = --version ] && exit 0\necho 'x.c:1: error: out of luck' >&2\nexit 1\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CC", str(compiler))
    falls_back("cc failed .out of luck")


def test_no_compiler(fresh, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    falls_back("no C compiler found")


def test_forcing_a_backend(monkeypatch):
    for name in ("int8", "float"):
        monkeypatch.setenv("BITLAB_KERNEL", name)
        assert backends.backend().name == name and backend_status() == (name, f"BITLAB_KERNEL={name}")
    monkeypatch.setenv("BITLAB_KERNEL", "fast")
    with pytest.raises(BitlabError, match="'fast': set it to c, int8 or float"):
        backends.backend()
    monkeypatch.setenv("BITLAB_KERNEL", "c")
    monkeypatch.setattr(backends, "_compiled", lambda: (None, "no C compiler found"))
    with pytest.raises(BitlabError, match="BITLAB_KERNEL=c, but no C compiler found"):
        backends.backend()


def test_threads_share_a_model():
    packed = pack(warm_up(binarize(tiny())))
    inputs = [torch.randint(3, 60, (2, length)) for length in range(3, 19)]
    with torch.no_grad(), ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda ids: torch.no_grad()(packed)(ids).logits, inputs))
        alone = [packed(ids).logits for ids in inputs]
    assert all(torch.equal(a, b) for a, b in zip(together, alone))


# -------------------------------------------------------------------------------------------------- commands


def options(add, *arguments):
    parser = argparse.ArgumentParser()
    add(parser)
    return parser.parse_args(list(map(str, arguments)))


def test_pack_command(tmp_path, capsys):
    source, out = tmp_path / "W1A1", tmp_path / "packed"
    model = warm_up(binarize(tiny()))
    model.save_pretrained(source)
    (source / "vocab.txt").write_text("[PAD]\n")
    capsys.readouterr()
    assert commands.pack_command(options(commands.add_pack_arguments, source, out, "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["fused"] and result["bytes"] == (out / "model.safetensors").stat().st_size
    assert (out / "vocab.txt").exists() and len(binarizers(load_packed(out))) == 21
    assert commands.pack_command(options(commands.add_pack_arguments, source, out)) == 0
    assert "W1A1" in capsys.readouterr().out
    for wrong, message in (
        ((source, source), "same folder"),
        ((out, tmp_path / "again"), "packed already"),
        ((tmp_path / "nothing", out), "no checkpoint"),
    ):
        with pytest.raises(BitlabError, match=message):
            commands.pack_command(options(commands.add_pack_arguments, *wrong))


def test_packing_spares_another_model(tmp_path, capsys):
    """Another run's latent checkpoint, or what can't be read, stays; a packed model can be made again."""
    source, out = tmp_path / "W1A1", tmp_path / "out"
    warm_up(binarize(tiny())).save_pretrained(source)
    warm_up(binarize(tiny(seed=1))).save_pretrained(out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert cli.main(["pack", str(source), str(out)]) == 2
    assert "holds another model" in (err := capsys.readouterr().err) and err.count("bitlab:") == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    for content in ("{", "[]", "{}", '{"quantization_config": null}'):
        (out / "config.json").write_text(content)
        with pytest.raises(BitlabError, match="holds another model") as error:
            commands.pack_command(options(commands.add_pack_arguments, source, out))
        assert "\n" not in str(error.value)
    (out / "config.json").unlink()
    for _ in range(2):
        assert commands.pack_command(options(commands.add_pack_arguments, source, out)) == 0
    assert load_packed(out)


def test_bench_command(capsys, monkeypatch):
    monkeypatch.setattr(bench, "SHAPES", ((64, 32, True), (32, 64, False)))
    assert cli.main(["bench", "--layers", "0", "--length", "8", "--rounds", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    names = {row["contender"] for row in result["rows"]}
    assert {"float32", "bf16", "fake-quant", "packed, int8"} <= names
    assert {row["ratio"] for row in result["rows"] if row["contender"] == "float32"} == {1.0}
    assert result["machine"]["processor"] and all(row["seconds"] > 0 for row in result["rows"])
    assert "x float32" not in bench.table(result) and "linear 8x64 -> 32" in bench.table(result)
    assert cli.main(["bench", "--rounds", "0"]) == 2
    assert cli.main(["bench", "--growth"]) == 2
    assert "rounds is 0" in (errors := capsys.readouterr().err) and "bitlab bench train" in errors
