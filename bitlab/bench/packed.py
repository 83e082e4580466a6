"""`bitlab bench`: packed inference against what a user would run instead, on the same shapes, interleaved.

Times are medians over the rounds, and ratios are medians of those within a round (`bitlab.bench.timing`), with their
quartiles. Contenders:

    float32           torch as it comes
    float32, medium   `torch.set_float32_matmul_precision("medium")`: on some processors another library, and its
                      inner precision may be bf16
    bf16              weights and activations
    int8 dynamic      `torch.ao.quantization.quantize_dynamic`
    onnxruntime, OpenVINO   see `bitlab.bench.engines`; encoders only
    fake-quant        the binary model as it is trained: bits in floats
    packed, int8      W1A1 without a C compiler
    packed, c         W1A1 by the kernel; packed, c, W1A2 and packed, c, W1A4 with more bits

"best other" is the fastest of those that are not ours, on this shape and this processor.
"""

import contextlib
import copy
import functools
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from bitlab.bench.engines import engines
from bitlab.bench.timing import measure, ratio
from bitlab.compiled import matmul_precision
from bitlab.config import BitConfig
from bitlab.convert import binarize
from bitlab.errors import BitlabError
from bitlab.experiments import environment
from bitlab.layers import BinaryLinear
from bitlab.packed import backends, kernel
from bitlab.packed.checkpoint import pack
from bitlab.packed.layers import PackedLinear

SHAPES = ((768, 768, True), (768, 3072, True), (3072, 768, False))  # inputs, outputs, signed inputs: BERT-base
ENCODERS = {"base": (768, 12, 3072), "minilm": (384, 12, 1536)}  # width, heads, inner width
BASELINE = "float32"
OURS = ("fake-quant", "packed")
FLAGS = ("amx_int8", "amx_bf16", "avx512_vpopcntdq", "avx512_vnni", "avx512_bf16", "avx512f", "avx_vnni", "avx2")
FLAGS += ("asimddp", "asimd")  # ARM's names


@dataclass(frozen=True)
class Row:
    """One contender on one shape: median and least seconds; how many times faster than float32 and than the best of
    the others, each with its quartiles; bytes of its weights on disk; the processor."""

    what: str
    contender: str
    seconds: float
    fastest: float
    ratio: float
    spread: tuple[float, float]
    best_other: str
    against_best: float
    against_best_spread: tuple[float, float]
    bytes: int | None
    processor: str


@dataclass(frozen=True)
class Contender:
    run: Callable
    bytes: int | None = None


def bench(
    layers: int = 12,
    length: int = 128,
    batches=(1, 8),
    rounds: int = 7,
    threads: int = 1,
    shape: str = "base",
    others: bool = True,
) -> dict:
    """Measure linear layers and an encoder; returns what `bitlab bench --json` prints.

    Args:
        layers: of the encoder; 0 measures the linear layers alone.
        length: tokens of a sentence. batches: sentences in one call of the encoder.
        rounds: each contender runs once a round; there are three times as many for the linear layers.
        threads: of torch, the kernel and the engines.
        shape: of the encoder, "base" (BERT-base) or "minilm" (half as wide).
        others: also the engines of `bitlab.bench.engines` that are installed.
    """
    for name, value, least in (("rounds", rounds, 1), ("threads", threads, 1), ("length", length, 1)):
        if value < least:
            raise BitlabError(f"{name} is {value}: it must be {least} or more")
    if length > 512 or layers < 0 or any(batch < 1 for batch in batches):
        raise BitlabError("the encoder has up to 512 positions, 0 layers or more, and batches of 1 or more")
    if shape not in ENCODERS:
        raise BitlabError(f"shape is {shape!r}: choose {' or '.join(ENCODERS)}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            limits = processor_limits()
            rows = linear_rows(length, 3 * rounds)  # they are short, and a busy machine is uneven
            found, absent = (encoder_rows(layers, length, batches, rounds, shape, others)) if layers else ([], {})
            name, why = backends.backend_status()
    finally:
        torch.set_num_threads(before)
    return {
        "machine": environment.machine() | {"threads": threads},
        "versions": environment.versions(),
        "kernel": {"name": name, "why": why},
        "clock": "processor time" if threads == 1 else "wall",
        "limits": limits,
        "absent": absent,
        "rows": [asdict(row) for row in rows + found],
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
        contenders["packed, c"] = lambda: _with(_kernel(), packed, x)
    return contenders


def encoder_rows(layers: int, length: int, batches, rounds: int, shape: str, others: bool) -> tuple[list[Row], dict]:
    """An encoder with its embeddings, of random weights and without a pooler; and which engines are absent, why."""
    width, heads, inner = ENCODERS[shape]
    sizes = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": inner}
    config = BertConfig(num_hidden_layers=layers, vocab_size=1000, **sizes)
    model = BertModel(config, add_pooling_layer=False).eval()
    contenders, absent = _encoders(model, torch.randint(0, config.vocab_size, (1, length)), others)
    rows = []
    for batch in batches:
        ids = torch.randint(0, config.vocab_size, (batch, length))
        calls = {name: functools.partial(c.run, ids) for name, c in contenders.items()}
        times = measure(calls, rounds)
        what = f"{layers} layer{'s' * (layers != 1)}, length {length}, batch {batch}"
        sizes = {name: contender.bytes for name, contender in contenders.items()}
        rows += _rows(what if shape == "base" else f"{what}, {shape}", times, sizes)
    return rows, absent


def _encoders(model: BertModel, ids: Tensor, others: bool) -> tuple[dict[str, Contender], dict[str, str]]:
    half, quantized = copy.deepcopy(model).bfloat16(), _int8(model)
    contenders = {
        BASELINE: Contender(model, _bytes(model)),
        "float32, medium": Contender(lambda ids: _medium(model, ids), _bytes(model)),
        "bf16": Contender(half, _bytes(half)),
    }
    if quantized:
        contenders["int8 dynamic"] = Contender(quantized)
    for bits in (1, 2, 4):
        binary = binarize(copy.deepcopy(model), BitConfig(1, bits))
        binary.train()(ids)
        packed = pack(binary.eval())
        if bits == 1:
            contenders["fake-quant"] = Contender(binary, _bytes(binary))
            contenders["packed, int8"] = Contender(
                lambda ids, packed=packed: _with("int8", packed, ids), _bytes(packed)
            )
        if _c():
            name = "packed, c" if bits == 1 else f"packed, c, W1A{bits}"
            contenders[name] = Contender(functools.partial(_with, _kernel(), packed), _bytes(packed))
    found, absent = engines(copy.deepcopy(model), ids, torch.get_num_threads()) if others else ({}, {})
    return contenders | {name: Contender(engine.run, engine.bytes) for name, engine in found.items()}, absent


def _bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def _rows(what: str, times: dict[str, list[float]], sizes: dict[str, int | None] | None = None) -> list[Row]:
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    best = min((name for name in times if not name.startswith(OURS)), key=median.get)
    rows, here = [], processor()
    for name, seconds in times.items():
        faster, against = (_faster(times[other], seconds) for other in (BASELINE, best))
        compared = (faster[0], faster[1:], best, against[0], against[1:])
        rows.append(Row(what, name, median[name], min(seconds), *compared, (sizes or {}).get(name), here))
    return sorted(rows, key=lambda row: row.ratio)


def _faster(others: list[float], own: list[float]) -> tuple[float, float, float]:
    """How many times faster: median, lower and upper quartile of the ratios within a round."""
    ratios = [other / mine for other, mine in zip(others, own, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return 1 / ratio(own, others), low, high


def processor() -> str:
    """The processor's name and those of its instruction sets that decide such times."""
    info = Path("/proc/cpuinfo")
    words = set(info.read_text().split()) if info.exists() else set()
    flags = [flag for flag in FLAGS if flag in words]
    return environment.processor().split(" (")[0] + (f" ({' '.join(flags)})" if flags else "")


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


def _kernel() -> str:
    """The kernel that BITLAB_KERNEL names, or "c": chosen for each call."""
    named = os.environ.get(backends.VARIABLE, "")
    return named if named in backends.COMPILED else "c"


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
    lines += [f"absent: {name} ({why})" for name, why in result["absent"].items()]
    what = None
    for row in result["rows"]:
        if row["what"] != what:
            what = row["what"]
            lines += ["", f"{what} (best other: {row['best_other']})"]
        size = f"{row['bytes'] / 2**20:8.1f} MiB" if row["bytes"] else " " * 12
        low, high = row["against_best_spread"]
        times = f"{row['seconds'] * 1e3:10.3f} ms {row['ratio']:7.2f} x {row['against_best']:7.2f} y"
        lines.append(f"  {row['contender']:18} {times} ({low:.2f} to {high:.2f}) {size}")
    note = "x: times faster than float32; y: than the best other, with quartiles; medians over rounds, times too"
    return "\n".join([*lines, "", note])
