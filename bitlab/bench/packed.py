"""`bitlab bench`: packed inference against what torch offers, on the same shapes, interleaved.

Times are medians over the rounds, and ratios are medians of those within a round (`bitlab.bench.timing`). Contenders:

    float32           torch as it comes
    float32, medium   `torch.set_float32_matmul_precision("medium")`: on some processors another library, and its
                      inner precision may be bf16
    bf16              weights and activations
    int8 dynamic      `torch.ao.quantization.quantize_dynamic`
    fake-quant        the binary model as it is trained: bits in floats
    packed, int8      the fallback without a C compiler
    packed, c         the kernel
"""

import contextlib
import copy
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import nn
from transformers import BertConfig, BertModel

from bitlab.bench.timing import measure, ratio
from bitlab.compiled import matmul_precision
from bitlab.convert import binarize
from bitlab.errors import BitlabError
from bitlab.experiments import environment
from bitlab.layers import BinaryLinear
from bitlab.packed import backends, kernel
from bitlab.packed.checkpoint import pack
from bitlab.packed.layers import PackedLinear

SHAPES = ((768, 768, True), (768, 3072, True), (3072, 768, False))  # inputs, outputs, signed inputs: BERT-base
BASELINE = "float32"


@dataclass(frozen=True)
class Row:
    """One contender on one shape: median and least seconds, and how many times faster than float32."""

    what: str
    contender: str
    seconds: float
    fastest: float
    ratio: float


def bench(layers: int = 12, length: int = 128, batches=(1, 8), rounds: int = 7, threads: int = 1) -> dict:
    """Measure linear layers and a BERT-base encoder; returns what `bitlab bench --json` prints.

    Args:
        layers: of the encoder; 0 measures the linear layers alone.
        length: tokens of a sentence. batches: sentences in one call of the encoder.
        rounds: each contender runs once a round; there are three times as many for the linear layers.
        threads: of torch and of the kernel.
    """
    for name, value, least in (("rounds", rounds, 1), ("threads", threads, 1), ("length", length, 1)):
        if value < least:
            raise BitlabError(f"{name} is {value}: it must be {least} or more")
    if length > 512 or layers < 0 or any(batch < 1 for batch in batches):
        raise BitlabError("the encoder has up to 512 positions, 0 layers or more, and batches of 1 or more")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            limits = processor_limits()
            rows = linear_rows(length, 3 * rounds)  # they are short, and a busy machine is uneven
            for batch in batches if layers else ():
                rows += encoder_rows(layers, length, batch, rounds)
            name, why = backends.backend_status()
    finally:
        torch.set_num_threads(before)
    return {
        "machine": environment.machine() | {"threads": threads},
        "versions": environment.versions(),
        "kernel": {"name": name, "why": why},
        "limits": limits,
        "rows": [asdict(row) for row in rows],
    }


def processor_limits() -> dict[str, float] | None:
    """Multiply-accumulates a second of one core, in registers alone: fp32 FMA, and xor + popcount + add. int8 is 4
    times fp32, as its instruction does four products a lane. None without a compiled kernel."""
    try:
        library = kernel.load()
    except BitlabError:
        return None
    rounds, best = 2000, {"float32": float("inf"), "bits": float("inf")}
    for _ in range(200):
        for name, call in (
            ("float32", lambda: library.bitlab_limit_float(rounds, 0.99, 0.01)),
            ("bits", lambda: library.bitlab_limit_bits(rounds, 12345)),
        ):
            start = time.perf_counter()
            done = call()
            best[name] = min(best[name], time.perf_counter() - start) if done else float("inf")
    speed = {"float32": rounds * 256 / best["float32"], "bits": rounds * 256 * 32 / best["bits"]}
    return {"float32": speed["float32"], "int8": 4 * speed["float32"], "bits": speed["bits"]}


def linear_rows(length: int, rounds: int) -> list[Row]:
    """The three linear layers of a BERT-base layer, floats in and floats out."""
    rows = []
    for width, outputs, signed in SHAPES:
        times = measure(_linear_contenders(length, width, outputs, signed), rounds, at_least=0.002)
        rows += _rows(f"linear {length}x{width} -> {outputs}", times)
    return rows


def _linear_contenders(length: int, width: int, outputs: int, signed: bool) -> dict:
    linear, x = nn.Linear(width, outputs), torch.randn(length, width)
    binary = BinaryLinear.from_float(linear, signed=signed).eval()
    packed = PackedLinear(binary)
    half, short = copy.deepcopy(linear).bfloat16(), x.bfloat16()
    contenders = {
        BASELINE: lambda: linear(x),
        "float32, medium": lambda: _medium(linear, x),
        "bf16": lambda: half(short),
        "fake-quant": lambda: binary(x),
        "packed, int8": lambda: _with("int8", packed, x),
    }
    if quantized := _int8(nn.Sequential(linear)):
        contenders["int8 dynamic"] = lambda: quantized(x)
    if _c():
        contenders["packed, c"] = lambda: _with("c", packed, x)
    return contenders


def encoder_rows(layers: int, length: int, batch: int, rounds: int) -> list[Row]:
    """A BERT-base encoder with its embeddings, without a pooler; the W1A1 ones of random weights."""
    config = BertConfig(num_hidden_layers=layers, vocab_size=1000)
    model = BertModel(config, add_pooling_layer=False).eval()
    ids = torch.randint(0, config.vocab_size, (batch, length))
    half, quantized = copy.deepcopy(model).bfloat16(), _int8(model)
    binary = binarize(copy.deepcopy(model))
    binary.train()(ids[:1])
    packed = pack(binary.eval())
    contenders = {
        BASELINE: lambda: model(ids),
        "float32, medium": lambda: _medium(model, ids),
        "bf16": lambda: half(ids),
        "fake-quant": lambda: binary(ids),
        "packed, int8": lambda: _with("int8", packed, ids),
    }
    if quantized:
        contenders["int8 dynamic"] = lambda: quantized(ids)
    if _c():
        contenders["packed, c"] = lambda: _with("c", packed, ids)
    what = f"{layers} layer{'s' * (layers != 1)}, length {length}, batch {batch}"
    return _rows(what, measure(contenders, rounds))


def _rows(what: str, times: dict[str, list[float]]) -> list[Row]:
    rows = []
    for name, seconds in times.items():
        faster = 1 / ratio(seconds, times[BASELINE])
        rows.append(Row(what, name, statistics.median(seconds), min(seconds), faster))
    return sorted(rows, key=lambda row: row.ratio)


@contextlib.contextmanager
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _int8(model: nn.Module) -> nn.Module | None:
    """Torch's dynamic quantization, or None where this torch or this processor lacks it."""
    try:
        with _quiet():
            from torch.ao.quantization import quantize_dynamic

            return quantize_dynamic(copy.deepcopy(model), {nn.Linear}, torch.qint8)
    except (ImportError, RuntimeError):
        return None


def _medium(call: Callable, *inputs):
    with matmul_precision("medium"):
        return call(*inputs)


def _with(backend: str, model: nn.Module, x):
    with backends.use(backend):
        return model(x)


def _c() -> bool:
    return backends.available()[0] in backends.COMPILED


def table(result: dict) -> str:
    """A bench result for people to read."""
    machine, limits = result["machine"], result["limits"]
    lines = [
        f"{machine['processor']}, {machine['threads']} thread{'s' * (machine['threads'] != 1)}, torch "
        f"{result['versions'].get('torch', '')}, kernel {result['kernel']['name']} ({result['kernel']['why']})"
    ]
    if limits:
        numbers = ", ".join(f"{name} {value / 1e9:,.0f}" for name, value in limits.items())
        lines.append(f"limits of one core in 10^9 multiply-accumulates a second: {numbers}")
    what = None
    for row in result["rows"]:
        if row["what"] != what:
            what = row["what"]
            lines += ["", what]
        lines.append(f"  {row['contender']:24} {row['seconds'] * 1e3:10.3f} ms   {row['ratio']:6.2f} x")
    return "\n".join([*lines, "", "x: times faster than float32, median over rounds; times are medians"])
