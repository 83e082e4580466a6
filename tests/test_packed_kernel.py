"""The C kernel and its loader: against plain arithmetic, under sanitizers, and where it cannot be built."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import batch, binarizers, tiny, warm_up

from bitlab import BinaryLinear, BitlabError, binarize, cli, compiled
from bitlab.bench import packed as bench
from bitlab.binarizers import codes_forward
from bitlab.compiled import torch_threads
from bitlab.packed import backend_status, backends, kernel, load_packed, pack
from bitlab.packed.bits import pack_bits, unpack_bits, unpack_signs
from bitlab.packed.layers import PackedLinear

ROOT = Path(__file__).parent.parent
COMPILER = kernel.compiler()
needs_compiler = pytest.mark.skipif(backends._compiled()[0] is None, reason=f"no kernel: {backends._compiled()[1]}")
ALL = backends.available()


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


def linear(width, outputs, bits, signed, bias, generator):
    """A packed layer of random weights, betas and scales."""
    made = BinaryLinear(width, outputs, bias, activation_bits=bits, signed=signed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        made.input_binarizer.alpha.copy_(0.1 + torch.rand((), generator=generator))
    return PackedLinear(made.eval())


def near_ties(packed, tokens, generator):
    """Numbers on the turns of a binarizer, a few units in the last place beside them, and anywhere else."""
    binarizer, shape = packed.input_binarizer, (tokens, packed.in_features)
    turns = torch.randint(-9, 260, shape, generator=generator) + 0.5
    turns[torch.rand(shape, generator=generator) < 0.3] = 0
    x = turns * binarizer.alpha + binarizer.beta
    x += torch.randint(-2, 3, shape, generator=generator) * torch.finfo(torch.float32).eps * x.abs()
    anywhere = torch.rand(shape, generator=generator) < 0.5
    return torch.where(anywhere, 3 * torch.randn(shape, generator=generator), x).detach()


@settings(deadline=None, max_examples=60)
@given(
    tokens=st.integers(0, 70),
    width=st.integers(1, 600),
    outputs=st.integers(1, 100),
    bits=st.sampled_from([1, 2, 4, 8]),
    signed=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 99),
    threads=st.sampled_from([1, 2, 3]),
)
def test_linear_is_the_integer_product(tokens, width, outputs, bits, signed, bias, seed, threads):
    generator = torch.Generator().manual_seed(seed)
    packed = linear(width, outputs, bits, signed, bias, generator)
    x = near_ties(packed, tokens, generator)
    binarizer = packed.input_binarizer
    codes = codes_forward(x, binarizer.alpha, binarizer.beta, bits, signed)
    dot = (codes.double() @ unpack_signs(packed.weight, width, torch.float64).t()).float()
    with torch.no_grad():
        scale = binarizer.scale() * packed.weight_scale
        expected = torch.addcmul(packed.bias, dot, scale) if bias else dot * scale
    for backend in ALL:
        with backends.use(backend), torch_threads(threads):
            assert torch.equal(packed(x), expected), backend


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_numbers_that_are_none_stay_none(bits, backend):
    """In the codes of several bits; the sign of no number is -1, as in the float model."""
    generator = torch.Generator().manual_seed(0)
    packed, x = linear(40, 5, bits, True, True, generator), torch.randn(3, 40)
    x[1, 7], x[2, 3], x[2, 4] = torch.nan, torch.inf, -torch.inf
    with backends.use(backend):
        y = packed(x)
    assert y[1].isnan().all() == (bits > 1) and y[[0, 2]].isfinite().all()


# -------------------------------------------------------------------------------------------------- sanitizers

DRIVER = ROOT / "tests" / "kernel_driver.c"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g"]
CPUINFO = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""


def drive(folder, compiler, flags, runner=()):
    """Build the driver with these flags and run it; skips where they do not exist."""
    command = [compiler, *kernel.BASE_FLAGS[:4], *flags, "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    command += ["-Wno-unused-parameter", "-Wno-misleading-indentation", "-Wno-unused-function"]
    command += [f"-I{kernel.SOURCE.parent}", str(DRIVER), "-o", "driver", "-lm"]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if built.returncode and re.search("sanitize|asan|ubsan|unrecognized|bad value", built.stderr):
        pytest.skip("this compiler has no sanitizers, or not these flags")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([*runner, "./driver"], cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
@pytest.mark.parametrize(
    "flags",
    [
        ["-march=native"],
        ["-march=native", "-mno-avx512vbmi"],
        ["-march=native", "-mno-avx512vnni"],
        ["-mavx2", "-mfma"],
        [],
    ],
    ids=["native", "no vbmi", "no vnni", "avx2", "plain"],
)
def test_no_fault_under_address_and_undefined_behaviour_sanitizers(flags, tmp_path):
    if "-mavx2" in flags and "avx2" not in CPUINFO:
        pytest.skip("this processor has no AVX2")
    drive(tmp_path, COMPILER, ["-O0", *flags, *SANITIZERS])


CROSS = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")


@pytest.mark.skipif(not all(CROSS), reason="no aarch64-linux-gnu-gcc and qemu-user")
@pytest.mark.parametrize("flags", [[], ["-march=armv8.2-a+dotprod"]], ids=["neon", "dotprod"])
def test_neon(flags, tmp_path):
    """Every entry point against plain arithmetic, on an emulated processor."""
    drive(tmp_path, CROSS[0], ["-O1", *flags, "-static"], [CROSS[1]])


# ------------------------------------------------------------------------------------------------------ loader

# The loader without the rest of the package, which takes seconds to import.
LOAD = """
import sys, types
for name in ("bitlab", "bitlab.packed"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [sys.argv[1] + "/" + name.replace(".", "/")]
from bitlab.packed import kernel
kernel.BASE_FLAGS += ("-O0",)  # sooner built
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
    cached = (kernel._load, compiled.find_compiler, backends._compiled, backends._warn_once)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("BITLAB_KERNEL", "")
    for function in cached:
        function.cache_clear()
    yield tmp_path
    for function in cached:
        function.cache_clear()


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The kernel, built as soon as may be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "BASE_FLAGS", (*kernel.BASE_FLAGS, "-O0"))
        return kernel._build(COMPILER, tmp_path_factory.mktemp("kernel"), "kernel").read_bytes()


@pytest.fixture
def builds(fresh, library, monkeypatch):
    """The folders that kernels are built in; copied ones, for these tests ask where they go."""
    folders = []

    def build(path, folder, name):
        folders.append(folder)
        file = folder / "new"
        file.write_bytes(library)
        return kernel._publish(file, folder / f"{name}-{kernel._digest(file)}.so")

    monkeypatch.setattr(kernel, "_build", build)
    return folders


@needs_compiler
def test_cache_is_used_and_a_damaged_one_built_again(fresh, library, builds):
    kernel.load()
    (built,) = (fresh / "bitlab").iterdir()
    kernel._load.cache_clear()
    kernel.load()
    assert len(builds) == 1
    for damaged in (b"not a library", library[:5000], b""):
        file = built.with_name("damaged")  # a new file: the old one is mapped into this process
        file.write_bytes(damaged)
        file.replace(built)
        kernel._load.cache_clear()
        kernel.load()
        assert [file.read_bytes() for file in (fresh / "bitlab").iterdir()] == [library]


def no_home():
    raise RuntimeError("Could not determine home directory.")


@needs_compiler
@pytest.mark.parametrize("why", ["for all", "for the group", "another's", "a file", "no home"])
def test_a_cache_that_is_not_ours_alone_is_not_used(why, fresh, builds, monkeypatch):
    kernel.load()
    folder = fresh / "bitlab"
    if why == "another's":
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    elif why == "a file":
        shutil.rmtree(folder)
        folder.write_text("")
    elif why == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", no_home)
    else:
        folder.chmod(0o777 if why == "for all" else 0o770)
    kernel._load.cache_clear()
    assert kernel.load().bitlab_has_kernel(1)
    assert len(builds) == 2 and builds[1] != folder and not builds[1].exists()


def falls_back(why):
    """One warning of one line, however often it is asked."""
    with pytest.warns(RuntimeWarning, match=why) as warned:
        assert [backends.compiled_for(torch.ones(1)) for _ in range(3)] == [None] * 3
    assert len(warned) == 1 and "\n" not in str(warned[0].message)
    assert re.search(why, backend_status()[1]) and backend_status()[0] == "int8"
    model = warm_up(binarize(tiny()))
    with torch.no_grad():
        assert torch.equal(pack(model)(**batch()).logits, model(**batch()).logits)


@pytest.mark.parametrize("said", ["out of luck", r"\377\376 out of luck"])
def test_compiler_that_fails(said, fresh, monkeypatch):
    compiler = fresh / "cc"
    compiler.write_text(f"#!/bin/sh\n[ $1 = --version ] && exit 0\nprintf 'x.c:1: error: {said}\\n' >&2\nexit 1\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CC", str(compiler))
    falls_back("cc failed .*out of luck")


@needs_compiler
def test_nowhere_to_build(fresh, monkeypatch):
    (fresh / "bitlab").write_text("a file where the folder should be")
    monkeypatch.setattr(kernel.tempfile, "tempdir", str(fresh / "nothing"))
    falls_back("cannot be built or loaded")


def test_no_compiler(fresh, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    falls_back("no C compiler found")


def test_forcing_a_backend(monkeypatch):
    x = torch.ones(1)
    for name in ALL:
        monkeypatch.setenv("BITLAB_KERNEL", name)
        assert backend_status() == (name, f"BITLAB_KERNEL={name}")
        assert (backends.compiled_for(x) is None) == (name in ("int8", "float"))
    monkeypatch.setenv("BITLAB_KERNEL", "fast")
    with pytest.raises(BitlabError, match=r"'fast': set it to c, tiles, .* or float"):
        backends.compiled_for(x)
    monkeypatch.setattr(backends, "_compiled", lambda: (None, "no C compiler found"))
    for name in ("c", "tiles"):
        monkeypatch.setenv("BITLAB_KERNEL", name)
        with pytest.raises(BitlabError, match=f"BITLAB_KERNEL={name}, but no C compiler found"):
            backends.compiled_for(x)


@needs_compiler
def test_a_kernel_that_this_processor_lacks(monkeypatch):
    backends._named.cache_clear()
    monkeypatch.setattr(backends._compiled()[0], "found", ["bytes"])
    with pytest.raises(BitlabError, match="has no tiles: leave it unset"), backends.use("tiles"):
        backends.compiled_for(torch.ones(1))


# -------------------------------------------------------------------------------------------------- commands


def test_pack_command(tmp_path, capsys):
    source, out = tmp_path / "W1A1", tmp_path / "packed"
    model = warm_up(binarize(tiny()))
    model.save_pretrained(source)
    (source / "vocab.txt").write_text("[PAD]\n")
    capsys.readouterr()
    assert cli.main(["pack", str(source), str(out), "--json"]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert not said.err and result["fused"] and result["bytes"] == (out / "model.safetensors").stat().st_size
    assert (out / "vocab.txt").exists() and len(binarizers(load_packed(out))) == 21
    assert cli.main(["pack", str(source), str(out)]) == 0
    assert "W1A1" in capsys.readouterr().out
    for wrong, message in (
        ((source, source), "same folder"),
        ((out, tmp_path / "again"), "packed already"),
        ((tmp_path / "nothing", out), "there is no model in"),
    ):
        assert cli.main(["pack", *map(str, wrong)]) == 2
        assert message in capsys.readouterr().err


def test_bench_command(capsys, monkeypatch):
    monkeypatch.setattr(bench, "SHAPES", ((64, 32, True), (32, 64, False)))
    assert cli.main(["bench", "--layers", "0", "--length", "8", "--rounds", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {"float32", "bf16", "fake-quant", "packed, int8"} <= {row["contender"] for row in result["rows"]}
    assert {row["ratio"] for row in result["rows"] if row["contender"] == "float32"} == {1.0}
    assert result["machine"]["processor"] and all(row["seconds"] > 0 for row in result["rows"])
    assert cli.main(["bench", "--rounds", "0"]) == 2
    assert cli.main(["bench", "--growth"]) == 2
    assert "rounds is 0" in (errors := capsys.readouterr().err) and "bitlab bench train" in errors
